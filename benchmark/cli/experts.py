"""``experts train``: train a model that writes pseudo-labels."""

from __future__ import annotations

import asyncio
from dataclasses import field

from benchmark.cli.parser import ConfigOptions, Positional
from benchmark.execution import ExecutionOptions
from benchmark.planning.options import Changes, PluginOptions, TrackingOptions
from cliptex_common.settings import Folder, Seed, options_dataclass


@options_dataclass
class TrainExpert(ConfigOptions, ExecutionOptions, PluginOptions, TrackingOptions):
    """Train an expert on a dataset in its official layout and evaluate it.

    examples:
      python -m benchmark experts train unet-seg --data-root DIR --out seg/
      python -m benchmark experts train unet-depth --data-root DIR --set epochs=4 --out depth/
    """

    name: Positional[str]
    """the expert; see `list experts`"""
    data_root: Folder
    """folder with coco/ (seg), nyu/ (depth, normal) or TASK/ (of a plugin), train and val"""
    out: Folder
    """output folder"""
    overrides: Changes = field(default_factory=dict)
    """change a setting of its training (repeatable): size, epochs, lr …"""
    seed: Seed = 0
    """random seed"""
    experiment: str = "experts"
    """MLflow experiment"""

    def main(self) -> int:
        """Train one expert."""
        from benchmark.execution.progress import console
        from benchmark.stages.experts import ExpertTraining, make_expert
        from benchmark.stages.session import open_executor_and_tracker
        from reports.mlflow.client import using

        inputs = ExpertTraining(
            self.name,
            self.data_root.absolute(),
            self.out.absolute(),
            self.overrides,
            self.seed,
            experiment=self.experiment,
        )
        opened = open_executor_and_tracker(self, self.experiment)
        with using(self.tracking_uri), opened as (executor, _):
            asyncio.run(make_expert(inputs, executor))
        options = [f"--plugin {path}" for path in self.plugins]
        options.append(f"--experts {self.name}={self.out} --pairs … --out …")
        console.print("label with it: python -m benchmark labels predict", *options)
        return 0


COMMAND = {"train": TrainExpert}
