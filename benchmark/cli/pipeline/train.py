"""``train``: make a backbone's weights from image-caption pairs (and experts' labels) by a recipe;
also under ``torchrun``."""

from __future__ import annotations

import argparse
import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.cli.options import add, add_execution, add_tracking, executor_spec, number
from benchmark.cli.parser import with_examples
from common.errors import UserError

if TYPE_CHECKING:
    from benchmark.execution import ExecutorSpec
    from benchmark.stages.weights import TrainedWeights, TrainingInputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``train``."""
    with_examples(
        parser,
        "--init open_clip/ViT-B-16/openai --pairs 'cc3m/{00000..00331}.tar' --labels labels/ --out"
        " b16.safetensors",
        "--recipe clip-ft --init open_clip/ViT-B-16/openai --pairs pairs.csv --set epochs=10 --out"
        " ft.safetensors --dry-run",
    )
    add(parser, "--config", "--dry-run", "--recipe")
    add(parser, "--init", "--pairs", required=True)
    add(parser, "--labels")
    about = "labels that come before the experts' where a pair has some; of `labels make`"
    parser.add_argument("--manual-labels", type=Path, metavar="DIR", help=about)
    about = "only these of seg, depth, normal (the same as --set experts=…)"
    parser.add_argument("--experts", metavar="TASK[,TASK]", help=about)
    add(parser, "--set", help="change a setting of the recipe (repeatable)")
    add(parser, "--out", required=True, metavar="FILE.safetensors", help="where the weights go")
    about = "between savings of what a killed run goes on from (default: 60)"
    parser.add_argument(
        "--save-every", type=number(0, kind=float), default=60.0, metavar="SECONDS", help=about
    )
    about = "export weights every so many steps into OUT.steps/, for `watch` (default: none)"
    parser.add_argument("--keep-every", type=number(0), default=0, metavar="STEPS", help=about)
    add_execution(parser)
    add_tracking(parser, "train")


def main(options: argparse.Namespace) -> int:
    """Train, export, say how to use the weights."""
    import backbones
    from backbones.cliptex.training.distributed import first_process
    from backbones.cliptex.training.recipes import find_recipe
    from benchmark.execution.progress import Bar, console, reporting
    from benchmark.results.outcome import must_be_writable
    from benchmark.stages.weights import TrainingInputs, train_unit
    from reports.mlflow.client import using
    from reports.mlflow.run import Tracker

    spec = executor_spec(options)
    if options.out.is_file():
        _may_be_replaced(options)
    elif not options.dry_run:
        must_be_writable(options.out, "--out")
    overrides = list(options.overrides) + (
        [f"experts={options.experts}"] if options.experts else []
    )
    recipe = find_recipe(options.recipe, overrides)
    inputs = TrainingInputs(
        recipe=recipe,
        init=options.init,
        pairs=options.pairs,
        out=options.out.absolute(),
        labels=tuple(
            path.absolute() for path in (options.manual_labels, options.labels) if path is not None
        ),
        save_seconds=options.save_every,
        keep_every=options.keep_every,
        experiment=options.experiment,
    )
    if options.dry_run:
        from benchmark.stages.dry_run import preview_train

        jobs = 1 if spec.name == "local" else spec.jobs
        with using(options.tracking_uri):
            preview_train(inputs, replace(spec, jobs=jobs, several_nodes=True))
        return 0
    with using(options.tracking_uri):
        here = replace(
            inputs,
            device=spec.device,
            num_workers=2 if spec.num_workers is None else spec.num_workers,
        )
        if "RANK" not in os.environ:
            made = _submit(inputs, spec)
        elif first_process():  # of those that torchrun has started: it speaks for all
            tracker = Tracker(options.experiment)
            tracker.close_stale()
            with Bar() as bar, reporting(bar):
                made = train_unit(here)
            tracker.close_stale()  # of one that was killed a moment before this began
        else:
            made = train_unit(here)
    if first_process():
        told = (
            "trained"
            if made.trained
            else "found (same recipe, weights, pairs and labels: not trained again)"
        )
        run = f"  MLflow run {made.run}" if made.run else ""
        console.print(
            f"{recipe.name} {told}: {options.out}  sha256 {made.sha256[:16]}{run}", markup=False
        )
        known = (
            recipe.name if recipe.name in backbones.names() else "cliptex"
        )  # a recipe file's name may be any
        console.print(
            f"probe it: python -m benchmark run --backbone {known} --weights {options.out} --suite"
            " paper --data-root DIR",
            markup=False,
        )
    return 0


def _may_be_replaced(options: argparse.Namespace) -> None:
    """Raises ``UserError`` where the file at ``--out`` is the initial weights, or was not written
    by a training."""
    from backbones.checkpoint import is_suite_checkpoint

    if Path(options.init).is_file() and options.out.samefile(options.init):
        raise UserError(f"--out {options.out} is the file that --init starts from; name another")
    if not is_suite_checkpoint(options.out):
        raise UserError(
            f"--out {options.out} is there, and no weights of this suite; name another file, or"
            " move it away"
        )


def _submit(inputs: TrainingInputs, spec: ExecutorSpec) -> TrainedWeights:
    """The training as a unit of work – here in this process, of which a debugger sees all – on
    SLURM with several nodes or GPUs under torchrun."""
    from benchmark.stages.stage import driving
    from benchmark.stages.torchrun import torchrun_unit
    from benchmark.stages.weights import train_stage

    jobs = 1 if spec.name == "local" else spec.jobs
    with driving(replace(spec, jobs=jobs, several_nodes=True), inputs.experiment) as (executor, _):
        settings = spec.settings
        if spec.name != "slurm" or all(settings.get(key, "1") == "1" for key in ("nodes", "gpus")):
            return asyncio.run(train_stage(inputs, executor))
        inputs = replace(inputs, device=executor.device, num_workers=executor.num_workers)
        asked = executor.needs("train")
        if asked["gpus"]:  # the processes of a node: each has what one needs
            asked["cpus"] *= int(settings.get("gpus", "1"))
        patience = int(settings.get("signal_delay_s") or settings.get("signal-delay-s") or 90)
        return executor.submit(
            torchrun_unit, inputs, patience, **asked, name=f"train {inputs.recipe.name}"
        ).result()
