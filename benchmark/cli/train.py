"""``train``: make a backbone's weights from image-caption pairs (and experts' labels) by a recipe; also under ``torchrun``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.cli.options import REPEATED, add_execution, add_tracking, at_least, bar_of_process, executor_spec

if TYPE_CHECKING:
    from benchmark.execution import Bar, ExecutorSpec
    from benchmark.pipeline.weights import TrainedWeights, TrainingInputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``train``."""
    add = parser.add_argument
    add("--recipe", default="cliptex", metavar="NAME|FILE", help="clip, clip-ft, cliptex, or a .json/.toml file")
    add(
        "--init",
        required=True,
        metavar="WEIGHTS",
        help="open_clip/ARCH/PRETRAINED, a weights file of this suite, random, or imagenet (the recipe's model, its timm image "
        "tower with ImageNet weights)",
    )
    add("--pairs", required=True, metavar="SHARDS|CSV", help="webdataset tars ('cc3m/{00000..00331}.tar'), CSV or TSV")
    add("--labels", type=Path, metavar="DIR", help="pseudo-labels made by `label`")
    add("--manual-labels", type=Path, metavar="DIR", help="labels that come before the experts' where a pair has some")
    add("--experts", metavar="TASKS", help="only these of seg, depth, normal (the same as --set experts=…)")
    add("--set", **REPEATED, metavar="KEY=VALUE", dest="overrides", help="change a setting of the recipe")
    add("--out", type=Path, required=True, metavar="FILE.safetensors", help="where the weights go")
    add_execution(parser)
    add(
        "--save-every",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="between savings of what a killed run goes on from",
    )
    add("--experiment", default="train", help="MLflow experiment (default: train)")
    add_tracking(parser)


def main(options: argparse.Namespace) -> int:
    """Train, export, say how to use the weights."""
    from backbones.cliptex.processes import first_process
    from backbones.cliptex.recipes import find_recipe
    from benchmark.evaluation.results import must_be_writable
    from benchmark.execution.progress import console, reporting
    from benchmark.pipeline.weights import TrainingInputs, train_unit
    from reports.store import using
    from reports.tracking import Tracker

    at_least(0, save_every=options.save_every)
    spec = executor_spec(options)
    if not options.out.is_file():
        must_be_writable(options.out, "--out")
    overrides = list(options.overrides) + ([f"experts={options.experts}"] if options.experts else [])
    recipe = find_recipe(options.recipe, overrides)
    inputs = TrainingInputs(
        recipe=recipe, init=options.init, pairs=options.pairs, out=options.out.absolute(),
        labels=tuple(path.absolute() for path in (options.manual_labels, options.labels) if path is not None),
        device=spec.device if spec.name == "local" else spec.task_device, num_workers=options.num_workers,
        save_seconds=options.save_every, experiment=options.experiment,
    )  # fmt: skip
    first = first_process()
    with using(options.tracking_uri), bar_of_process() as bar, reporting(bar):
        if first:
            Tracker(options.experiment).close_stale()
        made = train_unit(inputs) if spec.name == "local" else _submitted(inputs, spec, bar)
    if first:
        told = "trained" if made.trained else "found (same recipe, weights, pairs and labels: not trained again)"
        console.print(
            f"{recipe.name} {told}: {options.out}  sha256 {made.sha256[:16]}"
            + (f"  MLflow run {made.run}" if made.run else ""),
            markup=False,
        )
        console.print(
            f"probe it: python -m benchmark run --backbone {recipe.name} --weights {options.out} --suite paper --data-root DIR",
            markup=False,
        )
    return 0


def _submitted(inputs: TrainingInputs, spec: ExecutorSpec, bar: Bar) -> TrainedWeights:
    """The training as a unit of another executor; on SLURM with several nodes or GPUs under torchrun."""
    from benchmark.evaluation.needs import needs
    from benchmark.execution import make_executor
    from benchmark.pipeline.torchrun import torchrun_unit
    from benchmark.pipeline.weights import train_unit
    from reports.store import tracking_uri

    with make_executor(replace(spec, several_nodes=True), bar) as executor:
        executor.check_store(tracking_uri())
        asked = needs("train", executor, spec.task_device, inputs.num_workers)
        name, settings = f"train {inputs.recipe.name}", spec.settings
        if spec.name != "slurm" or all(settings.get(key, "1") == "1" for key in ("nodes", "gpus")):
            return executor.submit(train_unit, inputs, **asked, name=name).result()
        if asked["gpus"]:  # the processes of a node: each has what one needs
            asked["cpus"] *= int(settings.get("gpus", "1"))
        patience = int(settings.get("signal_delay_s") or settings.get("signal-delay-s") or 90)
        return executor.submit(torchrun_unit, inputs, patience, **asked, name=name).result()
