"""``train``: train a backbone on image-caption pairs by a recipe; also under ``torchrun``."""

from __future__ import annotations

import asyncio
import os
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat, NonNegativeInt

from benchmark.cli.parser import ConfigOptions
from benchmark.execution import ExecutionOptions
from benchmark.planning.options import (
    Changes,
    DryRunOptions,
    PairsOptions,
    PluginOptions,
    TrackingOptions,
)
from cliptex_common.errors import UserError
from cliptex_common.settings import Names, options_dataclass

if TYPE_CHECKING:
    from benchmark.stages.weights import TrainedWeights, Training


@options_dataclass
class TrainBackbone(
    ConfigOptions, PairsOptions, ExecutionOptions, PluginOptions, DryRunOptions, TrackingOptions
):
    """Train a backbone by a recipe: clip, clip-ft, cliptex.

    examples:
      python -m benchmark train --init open_clip/ViT-B-16/openai --pairs 'cc3m/{00000..00331}.tar'
        --labels labels/ --out b16.safetensors
      python -m benchmark train --recipe clip-ft --init open_clip/ViT-B-16/openai --pairs pairs.csv
        --set epochs=10 --out ft.safetensors --dry-run
    """

    multi_node = True
    recipe: str = "cliptex"
    """a name from `list recipes`, or a .json or .toml file"""
    init: str
    """initial weights: open_clip/ARCH/PRETRAINED, a weights file of this package, random, or
    imagenet (the recipe's model, its timm image tower with ImageNet weights)"""
    labels: Path | None = None
    """pseudo-labels of the pairs, from `labels predict`"""
    overrides: Changes = field(default_factory=dict)
    """change a setting of the recipe (repeatable)"""
    out: Path
    """file of the trained weights (.safetensors)"""
    manual_labels: Path | None = None
    """labels that override the experts' where a pair has them; from `labels make`"""
    experts: Names = ()
    """only these of seg, depth, normal (the same as --set experts=…)"""
    save_every: NonNegativeFloat = 60.0
    """seconds between two checkpoints to resume from; more where they would take over 2 % of the
    time"""
    keep_every: NonNegativeInt = 0
    """export weights every so many steps into OUT.steps/, for `watch`; 0: never"""
    experiment: str = "train"
    """MLflow experiment"""

    def main(self) -> int:
        """Train, export, and print how to use the weights."""
        import backbones
        from backbones.cliptex.recipes import find_recipe
        from backbones.cliptex.trainer import first_process
        from benchmark.execution.progress import console
        from benchmark.stages.weights import Training, preview_training
        from reports.mlflow.client import using

        self._check_output()
        experts = {"experts": ",".join(self.experts)} if self.experts else {}
        recipe = find_recipe(self.recipe).changed({**self.overrides, **experts})
        labels = [path.absolute() for path in (self.manual_labels, self.labels) if path]
        inputs = Training(
            recipe=recipe,
            init=self.init,
            pairs=self.pairs,
            out=self.out.absolute(),
            labels=tuple(labels),
            save_seconds=self.save_every,
            keep_every=self.keep_every,
            experiment=self.experiment,
        )
        with using(self.tracking_uri):
            if self.dry_run:
                os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported
                preview_training(inputs)
                return 0
            weights = _train_rank(inputs, self) if "RANK" in os.environ else _submit(inputs, self)
        if first_process():
            cached = "found in the cache (same recipe, initial weights, pairs and labels)"
            action = "trained" if weights.trained else cached
            run = f"  MLflow run {weights.run}" if weights.run else ""
            console.print(f"{recipe.name} {action}: {self.out}  sha256 {weights.sha256[:16]}{run}")
            name = recipe.name if recipe.name in backbones.names() else "cliptex"
            options = [f"--plugin {path}" for path in self.plugins]
            options.append(f"--backbone {name} --weights {self.out} --suite paper --data-root DIR")
            console.print("probe it: python -m benchmark run", *options)
        return 0

    def _check_output(self) -> None:
        """Raise ``UserError`` if ``--out`` is the initial weights or not written by a training."""
        from backbones.checkpoint import is_suite_checkpoint
        from benchmark.results.run_result import check_writable

        if not self.out.is_file():
            if not self.dry_run:
                check_writable(self.out, "--out")
            return
        if Path(self.init).is_file() and self.out.samefile(self.init):
            raise UserError(f"--out {self.out} is the file of --init; give another")
        if not is_suite_checkpoint(self.out):
            raise UserError(
                f"--out {self.out} exists and has no weights of this package; give another file, or"
                " move it away"
            )


COMMAND = TrainBackbone


def _train_rank(inputs: Training, options: ExecutionOptions) -> TrainedWeights:
    """Train as one of torchrun's processes; the first one reports progress."""
    from backbones.cliptex.trainer import first_process
    from benchmark.execution.progress import Bar, reporting
    from benchmark.stages.weights import train_unit
    from reports.mlflow.run import Tracker

    workers = 2 if options.num_workers is None else options.num_workers
    inputs = replace(inputs, device=options.device, num_workers=workers)
    if not first_process():
        return train_unit(inputs)
    tracker = Tracker(inputs.experiment)
    tracker.close_stale()
    with Bar() as bar, reporting(bar):
        weights = train_unit(inputs)
    tracker.close_stale()  # of a process that was killed just before the start
    return weights


def _submit(inputs: Training, options: ExecutionOptions) -> TrainedWeights:
    """Train as a unit of work; on SLURM in a process for each GPU of each node."""
    from benchmark.stages.session import open_executor_and_tracker
    from benchmark.stages.weights import train_weights

    if options.executor == "local":
        options = replace(options, jobs=1)
    with open_executor_and_tracker(options, inputs.experiment) as (executor, _):
        return asyncio.run(train_weights(inputs, executor))
