"""A λ sweep as MLflow stores it: its trials, the best one against the base, Optuna's figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cliptex_common.errors import suggest
from reports.figures import Figure
from reports.records import PLOTS, Record, TrackingError
from reports.statistics import LEVEL, MetricSample, difference, estimate
from reports.store import PREFIX, Store
from reports.tables import with_interval

# metrics of a trial, in percent of clip-ft; gain/TASK are those of single tasks
GAINS = {"objective": "interquartile mean gain (%)", "zero-shot": "zero-shot gain (%)"}


RESULTS = ("the difference is undecided", "it is better", "it is worse")


@dataclass(frozen=True)
class Study:
    """A sweep.

    Attributes:
        parent: its own run.
        trials: of each setting the newest run, a finished one if there is any; the best first,
            those without a value last.
        again: setting → seed → run, of the best and the base on fresh seeds.
        figures: drawn by Optuna.
    """

    name: str
    parent: Record
    trials: Sequence[Record]
    again: Mapping[str, Mapping[int, Record]]
    figures: Sequence[Figure]

    @property
    def complete(self) -> list[Record]:
        return [run for run in self.trials if run.is_finished]

    @property
    def headline(self) -> str:
        """The best trial, and whether it is better than the base on fresh seeds: the best of many
        is also the luckiest on these images, so the level is divided by the number of others."""
        best, count = self.trials[0], len(self.complete)
        setting, gain = best.tags["setting"], best.metrics["objective"]
        samples = [_sample(self.again.get(name, {})) for name in (setting, "base")]
        words = "; not confirmed on fresh seeds, and the best of many is also the luckiest"
        if setting == "base":
            words = ""
        elif all(len(sample.seeds) > 1 for sample in samples):
            gap = estimate(difference(*samples))
            if gap.has_interval:
                reach = gap.reach(LEVEL / max(1, count - 1))
                result = RESULTS[int(gap.value > reach) - int(gap.value < -reach)]
                to_base = f"{with_interval(gap, 2, True)} to the base, on these images"
                words = f"; on fresh seeds {result} ({to_base})"
        return (
            f"{setting} is best by interquartile mean gain over clip-ft ({gain:+.2f} %) of"
            f" {count} finished trials{words}."
        )

    @property
    def notes(self) -> list[str]:
        """Caveats."""
        notes, broken = [], self.trials[len(self.complete) :]
        if broken:
            reason = broken[0].failure
            notes.append(f"{len(broken)} of {len(self.trials)} trials have no value: {reason}")
        if (gain := self.trials[0].metrics.get("zero-shot", 0.0)) < 0:
            notes.append(f"the best trial loses {-gain:.2f} % in zero-shot against clip-ft")
        return notes


def _sample(runs: Mapping[int, Record]) -> MetricSample:
    seeds = tuple(sorted(runs))
    return MetricSample(seeds, np.array([runs[seed].metrics["objective"] for seed in seeds]))


def find_study(store: Store, name: str, experiments: Sequence[str] = ()) -> Study:
    """The study ``name`` in the named experiments or in all.

    Raises:
        TrackingError: it does not exist, or none of its trials is finished.
    """
    runs = store.runs(list(experiments) or list(store.experiments()), f"tags.`{PREFIX}study` != ''")
    studies = {study.name: study for study in find_studies(store, runs)}
    if name not in studies:
        raise TrackingError(
            f"no study {name!r} with a finished trial in the MLflow store; {suggest(name, studies)}"
        )
    return studies[name]


def find_studies(store: Store, runs: Sequence[Record]) -> list[Study]:
    """The studies with a finished trial, of each name the newest.

    Args:
        runs: of any kind, the oldest first.
    """
    parents = {run.study: run for run in runs if run.tags.get("stage") == "sweep"}
    studies = []
    for name, parent in sorted(parents.items()):
        trials: dict[str, Record] = {}
        again: dict[str, dict[int, Record]] = defaultdict(dict)
        for run in runs:
            if run.parent != parent.run_id:
                continue
            setting = run.tags.get("setting", "")
            if "again" in run.tags and run.is_finished:
                again[run.tags["again"]][int(run.tags["seed"])] = run
            elif setting and (run.is_finished or setting not in trials):
                trials[setting] = run
        gain = lambda run: run.metrics["objective"] if run.is_finished else -np.inf
        ranked = sorted(trials.values(), key=gain, reverse=True)
        if ranked and ranked[0].is_finished:
            alt = "the table of trials has its numbers"
            figures = [
                Figure(f"optuna-{name}-{n}", plot["title"], "Drawn by Optuna.", alt, plot["spec"])
                for n, plot in enumerate(store.json(parent, PLOTS))
            ]
            studies.append(Study(name, parent, ranked, again, figures))
    return studies


def study_frame(study: Study) -> pd.DataFrame:
    """A row for each trial, best first, and for means over fresh seeds: params, gains over clip-ft,
    state and run."""
    tasks = [name for name in study.trials[0].metrics if name.startswith("gain/")]
    names = [*(name for name in GAINS if name in study.trials[0].metrics), *tasks]
    rows = []
    for run in study.trials:
        state = run.failure or "complete"
        rows.append((run.tags["trial"], [run], state))
    for setting, runs in study.again.items():
        rows.append((f"again: {setting}", [*runs.values()], f"mean of {len(runs)} fresh seeds"))
    return pd.DataFrame(
        {
            "trial": title,
            **{
                name.replace("lambda_", "λ "): value
                for name, value in sorted(runs[0].params.items())
            },
            **{
                GAINS.get(name, name.removeprefix("gain/")): np.mean(
                    [run.metrics.get(name, np.nan) for run in runs]
                )
                for name in names
            },
            "state": state,
            "run": runs[0].run_id,
        }
        for title, runs, state in rows
    )
