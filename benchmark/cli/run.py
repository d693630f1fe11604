"""``run``: probe backbones on a suite's tasks."""

from __future__ import annotations

from pathlib import Path

from benchmark.cli.parser import ConfigOptions
from benchmark.planning.options import DryRunOptions, RunOptions, TrackingOptions
from cliptex_common.errors import UserError
from cliptex_common.settings import options_dataclass


@options_dataclass
class RunTasks(ConfigOptions, RunOptions, DryRunOptions, TrackingOptions):
    """Probe backbones on a suite's tasks and log the results to MLflow.

    examples:
      python -m benchmark run --backbone cliptex --seeds 3
      python -m benchmark run --backbone clip,dinov2-b14 --suite paper --task voc/linear
        --data-root DIR --json out.json
    """

    json: Path | None = None
    """write all metrics to this file"""
    dump_config: bool = False
    """print each task's resolved config (MMEngine) instead of running"""

    def main(self) -> int:
        """Run, print the table and where the results are."""
        from benchmark.execution.progress import console
        from benchmark.results.report import write_report
        from benchmark.results.run_result import as_json, check_writable
        from benchmark.results.table import show
        from benchmark.run import run
        from benchmark.workflows import dry_run
        from cliptex_common.files import write_json
        from cliptex_common.secrets import hide_secrets
        from reports.mlflow.client import using

        if self.json and (self.dry_run or self.dump_config):
            raise UserError("--json needs a run; leave out --dry-run and --dump-config")
        with using(self.tracking_uri) as uri:
            if self.dump_config:
                dry_run.dump_config(self)
                return 0
            if self.dry_run:
                dry_run.dry_run(self)
                return 0
            if self.json:
                check_writable(self.json)
            result = run(self)
            if self.json:
                write_json(self.json, as_json(result))
            has_metrics = any(cell.metrics for cell in result.cells)
            line, report = "", None
            try:
                if has_metrics:
                    line, report = write_report(result)
            finally:  # the table also where a report has a bug
                show(result, report)
        if all(cell.status == "not applicable" for cell in result.cells):
            raise UserError(
                "none of these tasks applies to these backbones; choose others with --task or"
                " --backbone"
            )
        flag = f" --tracking-uri {hide_secrets(uri)}" if self.tracking_uri else ""
        experiment = result.tracker.experiment
        console.print(f"all results: MLflow experiment {experiment}, python -m benchmark ui{flag}")
        if self.json:
            console.print(f"metrics: {self.json}")
        if line:
            console.print(line)
        return 1 if result.failed else 0


COMMAND = RunTasks
