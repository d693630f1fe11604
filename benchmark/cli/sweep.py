"""``sweep``: search λs and other recipe settings with Optuna; every trial is an MLflow run."""

from __future__ import annotations

import shlex
from pathlib import Path

from benchmark.cli.parser import ConfigOptions, JsonOptions
from benchmark.options import TrackingOptions
from benchmark.sweep import table
from benchmark.sweep.options import StudyOptions, SweepOptions
from cliptex_common.files import write_json
from cliptex_common.settings import options_dataclass
from sweeps.study import Sweep, load_sweep


@options_dataclass
class Launch(ConfigOptions, SweepOptions, TrackingOptions):
    """Start or resume a sweep, then summarise it.

    examples:
      python -m benchmark sweep launch --search grid --lambdas clip,seg --values 0.1,1,10
        --executor slurm --executor-arg partition=gpu
      python -m benchmark sweep launch --search tpe --range 0.01,100 --trials 40
        --vary lr=1e-5:1e-3 --objective dense,zero-shot
    """

    dry_run: bool = False
    """show what would be done, and do nothing"""

    def main(self) -> int:
        """Exit code 1 if cells failed or are pending."""
        from benchmark.sweep import launch
        from cliptex_common.secrets import hide_secrets
        from reports.attach import report_line
        from reports.mlflow.client import using
        from reports.report import ReportRequest
        from sweeps.storage import storage_url
        from sweeps.summary import best_trial

        if self.dry_run:
            launch.preview(self)
            return 0
        with using(self.tracking_uri) as uri:
            sweep, tracker = launch.launch(self)
            table.print_line(table.summary_text(sweep))
            code = table.show_state(sweep)
            if best_trial(sweep):
                _print_training(self.recipe_file)
            experiments = [tracker.experiment]
            request = ReportRequest(
                experiments=experiments, study=sweep.name, tracking_uri=tracker.uri
            )
            table.print_line(report_line(request, [sweep.metadata["mlflow"]["run"]])[0])
        flag = f" --tracking-uri {hide_secrets(uri)}" if self.tracking_uri else ""
        table.print_line(f"MLflow: experiment {tracker.experiment}, python -m benchmark ui{flag}")
        storage = hide_secrets(storage_url(self.storage))
        arguments = f"--study {shlex.quote(sweep.name)} --storage {shlex.quote(storage)}"
        table.print_line(f"every trial: python -m benchmark sweep show {arguments}")
        return code


@options_dataclass
class ShowOptions(StudyOptions, JsonOptions):
    """A sweep to show."""

    def load(self) -> Sweep:
        return load_sweep(self.study, self.storage)


class Status(ShowOptions):
    """Show how many cells are done, running, failed and pending, and the time left."""

    def main(self) -> int:
        sweep = self.load()
        if not self.output_json(table.state(sweep)):
            table.show_state(sweep)
        return 0


@options_dataclass
class Best(ShowOptions):
    """Show the best λs, and write a recipe file for `train --recipe`."""

    out: Path | None = None
    """the recipe file (.json)"""

    def main(self) -> int:
        sweep = self.load()
        best = table.best(sweep)
        printed_json = self.output_json(best)
        if not printed_json:
            table.show_best(sweep)
        if self.out:
            write_json(self.out, best["recipe"])
            if not printed_json:
                _print_training(self.out)
        return 0


class Show(ShowOptions):
    """Show every trial, and the best λ of each task."""

    def main(self) -> int:
        sweep = self.load()
        if not self.output_json(table.trials(sweep)):
            table.show_trials(sweep)
        return 0


COMMAND = {"launch": Launch, "status": Status, "best": Best, "show": Show}


def _print_training(recipe: Path) -> None:
    arguments = f"--recipe {shlex.quote(str(recipe))} --init … --pairs … --labels … --out …"
    table.print_line(f"train the best λs: python -m benchmark train {arguments}")
