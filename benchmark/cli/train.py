"""``train``: train a backbone on image-caption pairs by a recipe; also under ``torchrun``."""

from __future__ import annotations

import argparse
import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.cli.options import (
    SECONDS,
    add,
    add_execution,
    add_tracking,
    executor_spec,
    number,
)
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
    parser.add_argument(
        "--manual-labels",
        type=Path,
        metavar="DIR",
        help="labels that override the experts' where a pair has them; from `labels make`",
    )
    parser.add_argument(
        "--experts",
        metavar="TASK[,TASK]",
        help="only these of seg, depth, normal (the same as --set experts=…)",
    )
    add(parser, "--set", help="change a setting of the recipe (repeatable)")
    add(parser, "--out", required=True, metavar="FILE.safetensors", help="the trained weights")
    parser.add_argument(
        "--save-every",
        **SECONDS,
        default=60.0,
        help="seconds between two checkpoints to resume from (default: 60)",
    )
    parser.add_argument(
        "--keep-every",
        type=number(0),
        default=0,
        metavar="N",
        help="export weights every N steps into OUT.steps/, for `watch` (default: never)",
    )
    add_execution(parser)
    add_tracking(parser, "train")


def main(options: argparse.Namespace) -> int:
    """Train, export, and print how to use the weights."""
    import backbones
    from backbones.cliptex.training.distributed import first_process
    from backbones.cliptex.training.recipes import find_recipe
    from benchmark.execution.progress import console
    from benchmark.stages.weights import TrainingInputs, preview_training
    from reports.mlflow.client import using

    spec = executor_spec(options)
    spec = replace(spec, jobs=1 if spec.name == "local" else spec.jobs, multi_node=True)
    _check_output(options)
    experts = [f"experts={options.experts}"] if options.experts else []
    recipe = find_recipe(options.recipe, [*options.overrides, *experts])
    labels = [path for path in (options.manual_labels, options.labels) if path is not None]
    inputs = TrainingInputs(
        recipe=recipe,
        init=options.init,
        pairs=options.pairs,
        out=options.out.absolute(),
        labels=tuple(path.absolute() for path in labels),
        save_seconds=options.save_every,
        keep_every=options.keep_every,
        experiment=options.experiment,
    )
    with using(options.tracking_uri):
        if options.dry_run:
            os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported
            preview_training(inputs)
            return 0
        weights = _train_rank(inputs, spec) if "RANK" in os.environ else _submit(inputs, spec)
    if first_process():
        cached = "found in the cache (same recipe, initial weights, pairs and labels)"
        action = "trained" if weights.trained else cached
        run = f"  MLflow run {weights.run}" if weights.run else ""
        console.print(f"{recipe.name} {action}: {options.out}  sha256 {weights.sha256[:16]}{run}")
        name = recipe.name if recipe.name in backbones.names() else "cliptex"
        arguments = f"--backbone {name} --weights {options.out} --suite paper --data-root DIR"
        console.print(f"probe it: python -m benchmark run {arguments}")
    return 0


def _check_output(options: argparse.Namespace) -> None:
    """Raise ``UserError`` if ``--out`` is the initial weights or not written by a training."""
    from backbones.checkpoint import is_suite_checkpoint
    from benchmark.results.outcome import check_writable

    if not options.out.is_file():
        if not options.dry_run:
            check_writable(options.out, "--out")
        return
    if Path(options.init).is_file() and options.out.samefile(options.init):
        raise UserError(f"--out {options.out} is the file of --init; give another")
    if not is_suite_checkpoint(options.out):
        raise UserError(
            f"--out {options.out} exists and has no weights of this suite; give another file, or"
            " move it away"
        )


def _train_rank(inputs: TrainingInputs, spec: ExecutorSpec) -> TrainedWeights:
    """Train as one of torchrun's processes; the first one reports progress."""
    from backbones.cliptex.training.distributed import first_process
    from benchmark.execution.progress import Bar, reporting
    from benchmark.stages.weights import train_unit
    from reports.mlflow.run import Tracker

    workers = 2 if spec.num_workers is None else spec.num_workers
    inputs = replace(inputs, device=spec.device, num_workers=workers)
    if not first_process():
        return train_unit(inputs)
    tracker = Tracker(inputs.experiment)
    tracker.close_stale()
    with Bar() as bar, reporting(bar):
        weights = train_unit(inputs)
    tracker.close_stale()  # of a process that was killed just before the start
    return weights


def _submit(inputs: TrainingInputs, spec: ExecutorSpec) -> TrainedWeights:
    """Train as a unit of work; on SLURM in a process for each GPU of each node."""
    from benchmark.stages.stage import open_executor_and_tracker
    from benchmark.stages.weights import train_stage

    with open_executor_and_tracker(spec, inputs.experiment) as (executor, _):
        return asyncio.run(train_stage(inputs, executor))
