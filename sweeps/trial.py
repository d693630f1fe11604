"""The trials of a sweep: recipes that are trained, probed and compared with clip-ft."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import optuna
from optuna.trial import TrialState

from backbones.cliptex.recipes import RECIPES, Recipe
from cliptex_common.errors import UserError, error_summary, user_error_message
from probes.dense.tasks import DENSE_TASKS
from probes.registry import find_task
from reports import records
from reports.statistics import interquartile_mean, relative_gain
from reports.store import PARENT_TAG
from reports.tracking import Run, Tracker
from sweeps.space import Space, Value
from sweeps.study import best_recipe, figures, finished_trials, next_trial, queue_trials

Metrics = Mapping[str, Mapping[str, float]]  # task → metric → value
Evaluate = Callable[[Recipe, Run], Awaitable[Metrics]]  # train, probe, and log to the run


def gains(metrics: Metrics, baseline: Metrics) -> dict[str, float]:
    """Gains in percent of the baseline, NaN where a metric is missing: ``gain/TASK`` of each task,
    and interquartile means: ``zero-shot``, and ``objective`` over the dense tasks (without any,
    over all)."""
    gain: dict[str, float] = {}
    means = defaultdict[str, list[float]](list)
    for name, base in baseline.items():
        spec, probe = find_task(name)
        main, metric = next(iter(probe.metrics.items()))
        pair = metrics.get(name, {}).get(main, math.nan), base.get(main, math.nan)
        gain[f"gain/{name}"] = value = relative_gain(*pair, metric.direction, metric.floor)
        if spec.kind == "detection" or spec.kind in DENSE_TASKS:
            means["objective"].append(value)
        elif probe.needs_text:
            means["zero-shot"].append(value)
    means.setdefault("objective", list(gain.values()))
    for name, values in means.items():
        gain[name] = float(interquartile_mean(np.array([values]).T)[0])
    return gain


@dataclass
class Sweep:
    """The trials of a study, each recipe under an MLflow run of its own.

    Attributes:
        recipe: the base recipe.
        notify: gets a line for each recipe.
        baseline: clip-ft's metrics.
        parent: the run of the sweep.
    """

    study: optuna.Study
    space: Space
    recipe: Recipe
    evaluate: Evaluate
    tracker: Tracker
    notify: Callable[[str], None]
    baseline: Metrics = field(default_factory=dict)
    parent: Run = field(init=False)

    @property
    def unfinished(self) -> int:
        """Number of trials that are not finished."""
        return max(0, self.space.total - len(finished_trials(self.study)))

    async def run(self, width: int, seeds: Sequence[int]) -> None:
        """Measure clip-ft, every trial that is not finished, and the best one and the base again:
        the best of many is also the luckiest.

        Args:
            width: most trials at once.
            seeds: fresh ones for the best and the base.

        Raises:
            Exception: any that the user can correct; others fail their trial.
        """
        study = self.study
        earlier = self.tracker.find_run(study.user_attrs.get("mlflow.run", ""))
        if earlier and earlier.status == "still running":  # on another machine
            raise UserError(f"study {study.study_name!r} is driven by another process; wait for it")
        tags = {"study": study.study_name, "stage": "sweep"}
        resume = earlier.run_id if earlier else None
        with self.tracker.run(f"sweep {study.study_name}", tags=tags, resume=resume) as parent:
            self.parent = parent
            study.set_user_attr("mlflow.run", parent.id)
            study.set_user_attr("recipe", self.recipe.settings())
            clip_ft = RECIPES["clip-ft"]
            recipe = replace(
                self.recipe, name=clip_ft.name, lambdas=clip_ft.lambdas, experts=clip_ft.experts
            )
            # the first measurement sets ``baseline``, of which all others are gains
            if await self._measure(recipe, {"baseline": recipe.name}):
                queue_trials(study, self.space)
                pending = iter(range(self.unfinished))
                await asyncio.gather(*(self._run_trials(pending) for _ in range(width)))
            if self.baseline and finished_trials(study):
                pair = [study.best_params, self.space.base]
                if pair[0] != pair[1]:
                    repeats = [self._measure_again(*each) for each in product(pair, seeds)]
                    await asyncio.gather(*repeats)
                self.parent.log_json(figures(study), records.PLOTS)
                self.parent.log_json(best_recipe(study), "best_recipe.json")
            if self.unfinished:
                self.parent.fail(f"{self.unfinished} trials are not finished")

    async def _run_trials(self, pending: Iterator[int]) -> None:
        """Run trials until ``pending``, which several coroutines share, has no more."""
        for _ in pending:
            trial = next_trial(self.study, self.space)
            tags = {"trial": str(trial.number), "setting": self.space.name(trial.params)}
            recipe = self.recipe.changed(trial.params)
            if result := await self._measure(recipe, tags, trial.params):
                trial.set_user_attr("mlflow.run", result[0])
                self.study.tell(trial, result[1])
            else:
                self.study.tell(trial, state=TrialState.FAIL)

    async def _measure_again(self, params: Mapping[str, Value], seed: int) -> None:
        tags = {"again": self.space.name(params), "seed": str(seed)}
        if not self.tracker.finished(**tags, **{PARENT_TAG: self.parent.id}):
            await self._measure(self.recipe.changed({**params, "seed": seed}), tags, params)

    async def _measure(
        self, recipe: Recipe, tags: Mapping[str, str], params: Mapping[str, Value] | None = None
    ) -> tuple[str, float] | None:
        """Id of a recipe's run, and the objective's value; None, with a line that says why, if it
        fails."""
        name = " · ".join(f"{key} {value}" for key, value in tags.items())
        tags = {"study": self.study.study_name, **tags}
        try:
            with self.tracker.run(name, tags=tags, params=params, parent=self.parent) as run:
                metrics = await self.evaluate(recipe, run)
                values = gains(metrics, self.baseline or metrics)
                run.log_metrics(values)
                if missing := [key for key in values if not math.isfinite(values[key])]:
                    raise RuntimeError(f"no value for {', '.join(missing)}")
        except Exception as error:
            if user_error_message(error) is not None:
                raise
            self.notify(f"{name} failed: {error_summary(error)}")
            return None
        self.baseline = self.baseline or metrics
        self.notify(f"{name}: {values['objective']:+.3g} %")
        return run.id, values["objective"]
