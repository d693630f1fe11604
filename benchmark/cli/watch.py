"""``watch``: probe the checkpoints of a folder while a training writes them."""

from __future__ import annotations

from benchmark.cli.parser import ConfigOptions
from benchmark.planning.options import TrackingOptions, WatchOptions
from cliptex_common.settings import options_dataclass


@options_dataclass
class Watch(ConfigOptions, WatchOptions, TrackingOptions):
    """Probe the checkpoints of a folder while a training writes them.

    examples:
      python -m benchmark watch --backbone cliptex --dir weights.steps/ --data-root DIR
      python -m benchmark watch --backbone open_clip/ViT-B-16 --dir checkpoints/ --suite paper
        --task voc/linear --data-root DIR --once
    """

    def main(self) -> int:
        """Print each checkpoint's table."""
        from benchmark.execution.progress import console
        from benchmark.results.table import show
        from benchmark.workflows.watch import watch
        from reports.mlflow.client import using

        with using(self.tracking_uri):
            failed = watch(self, show)
        console.print("curves by training step: the MLflow run whose name begins with watch")
        return 1 if failed else 0


COMMAND = Watch
