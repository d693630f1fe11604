"""``sweep``: search λs and other recipe settings with Optuna; every trial is an MLflow run."""

from __future__ import annotations

from pathlib import Path

from benchmark.options import TrackingOptions
from benchmark.parser import ConfigOptions, JsonOptions
from benchmark.progress import console
from benchmark.sweep import StudyOptions, SweepOptions, launch
from cliptex_common.errors import UserError
from cliptex_common.files import write_json
from cliptex_common.settings import options_dataclass
from reports.store import using
from sweeps.study import best_recipe, finished_trials, load_study, storage_errors


@options_dataclass
class Launch(ConfigOptions, SweepOptions, TrackingOptions):
    """Start or resume a sweep, then show its report.

    examples:
      python -m benchmark sweep launch --search grid --vary lambda_clip=0.1,1,10
        --vary lambda_seg=0.1,1,10 --executor slurm --executor-arg partition=gpu
      python -m benchmark sweep launch --search tpe --trials 40 --vary lambda_seg=0.01:100
        --vary lr=1e-5:1e-3
    """

    def main(self) -> int:
        """Exit code 1 if trials failed."""
        with using(self.tracking_uri), storage_errors(self.url):
            return launch(self)


@options_dataclass
class Best(StudyOptions, JsonOptions):
    """Show the best trial, and write a recipe file for `train --recipe`."""

    out: Path | None = None
    """the recipe file (.json)"""

    def main(self) -> int:
        with storage_errors(self.url):
            study = load_study(self.study, self.url)
            if study is None or not finished_trials(study):
                raise UserError("no finished trial there; start a study with `sweep launch`")
            trial, recipe = study.best_trial, best_recipe(study)
        best = {
            "study": study.study_name,
            "trial": trial.number,
            "params": trial.params,
            "value": trial.value,
            "run": trial.user_attrs["mlflow.run"],
            "recipe": recipe,
        }
        if not self.output_json(best):
            console.print_json(data=best)
        if self.out:
            write_json(self.out, recipe)
        return 0


SWEEP_COMMAND = {"launch": Launch, "best": Best}
