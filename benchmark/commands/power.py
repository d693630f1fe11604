"""``power``: what a comparison can find, before it is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveInt

import benchmark.catalog  # noqa: F401 – registers datasets, probes and suites
from benchmark.commands.looking import print_table
from benchmark.options import PluginOptions, TaskNames, TrackingOptions
from benchmark.parser import ConfigOptions
from benchmark.progress import console
from benchmark.suites import SUITES
from cliptex_common.files import expand_user
from cliptex_common.settings import Names, options_dataclass, split_words
from probes.registry import find_task

if TYPE_CHECKING:
    from reports.comparison import Judgement


@options_dataclass
class Power(ConfigOptions, TrackingOptions, PluginOptions):
    """Say which difference between a backbone and a baseline is decided with 80 %, for each task,
    from the noise of stored results of the same task or one of its kind, else of published seeds.

    examples:
      python -m benchmark power --suite paper --seeds 1,3,5
      python -m benchmark power --suite paper --against mini --difference 0.5
      python -m benchmark power --task voc/linear --against others.zip --images 5000
    """

    suite: str | None = None
    """its tasks are planned (default: those that are stored)"""
    tasks: TaskNames = ()
    """or only these tasks"""
    seeds: Annotated[Sequence[PositiveInt], BeforeValidator(split_words), Field(min_length=1)] = (
        field(default=(1, 3, 5))
    )
    """numbers of seeds, as 1,3,5"""
    images: PositiveInt | None = None
    """val images of each task (default: as many as stored)"""
    difference: NonNegativeFloat = 0.0
    """also say how many seeds, or images with the most of these seeds, decide this difference"""
    against: Names = ()
    """where noise is known from: experiments, files or folders of `results export`, URLs (default:
    the experiment with the latest results). Of an experiment and a folder with one name, NAME is
    the experiment and ./NAME the folder"""
    experiment: Names = ()
    """the same, of experiments alone"""

    def main(self) -> int:
        """Print a line for each task."""
        from reports.power import power_frame
        from reports.records import TrackingError
        from reports.tables import count

        names = self.tasks or (SUITES.find(self.suite).tasks if self.suite else ())
        try:
            stored = self._stored()
        except TrackingError:
            if not names or self.against or self.experiment:
                raise
            stored = None
        columns = stored.selection.columns if stored else ()
        # a dataset of the user's is known by what is stored of it
        kinds = {column.task.partition(":")[0]: column.kind for column in columns}
        planned = {
            task: kinds.get(task.partition(":")[0]) or find_task(task)[0].kind for task in names
        } or None
        frame = power_frame(stored, self.seeds, self.images or 0, self.difference, planned)
        texts = frame.reset_index().map(_text)
        print_table([list(texts.columns), *texts.to_numpy().tolist()])
        baseline = stored.selection.baseline if stored else "another"
        console.print(
            f"Differences of one backbone to {baseline} that are decided with 80 % if no other task"
            f" differs, {count(len(frame), 'task')} judged together; noise: of which stored task,"
            " or of published seeds, to which images add theirs. One seed speaks of these weights"
            " alone, several of the recipe. Unknown: it needs two backbones, and more than one seed"
            " to plan for several. –: unknown, or more than can be planned for."
        )
        return 0

    def _stored(self) -> Judgement:
        from reports.comparison import analyse
        from reports.leaderboard import build_leaderboard
        from reports.report import ReportRequest, select_runs
        from reports.sharing import load_files
        from reports.store import Store

        files = [name for name in self.against if self._is_shared(name)]
        experiments = [name for name in (*self.experiment, *self.against) if name not in files]
        if files and not experiments:
            return build_leaderboard(load_files(files)).analysis
        store = Store(self.tracking_uri)
        request = ReportRequest(experiments, shared=files)
        return analyse(store, select_runs(store, request)[1])

    def _is_shared(self, name: str) -> bool:
        """Whether a name of ``against`` is that of shared results, not of an experiment."""
        from reports.sharing import SUFFIX
        from reports.tracking import Tracker

        if "://" in name or name.endswith(SUFFIX):
            return True
        if not expand_user(name).exists():
            return False
        return "/" in name or Tracker.existing(name, self.tracking_uri) is None


def _text(value: object) -> str:
    """A cell of the table."""
    if isinstance(value, float) and value == value:
        return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    return "–" if value is None or value != value else str(value)


POWER_COMMAND = Power
