"""The one driver of a sweep: gets trials from Optuna, evaluates them, and stores the results.

There is one driver at a time (``sweeps.study.sole_driver``), so a trial that is RUNNING when it
starts was left by an earlier driver: it is resumed, with its params and its MLflow run. So every
cell ends once, wherever a driver is killed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import optuna
from optuna.trial import TrialState

from cliptex_common.errors import error_summary, user_error_message
from reports.mlflow.run import Run, Tracker
from sweeps.errors import TrialPruned
from sweeps.objective import task_gains
from sweeps.pruning import Pruning
from sweeps.space import Value, short
from sweeps.storage import answering
from sweeps.study import Sweep, sampler_for

FAILURES = 2  # failed attempts of one launch after which a cell is given up


@dataclass(frozen=True)
class Evaluation:
    """The result of a trial.

    Attributes:
        metrics: task → metric → value.
        tags: links for MLflow: ``train.run``, ``weights.sha256``, ``weights.file`` …
        costs: seconds and the like.
    """

    metrics: dict[str, dict[str, float]]
    tags: Mapping[str, str] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)

    def log(self, run: Run) -> None:
        """Log metrics, links and costs to an MLflow run."""
        run.set_tags(self.tags)
        for task, metrics in self.metrics.items():
            run.log_metrics({f"{task}/{name}": value for name, value in metrics.items()})
        run.log_metrics({f"cost/{name}": value for name, value in self.costs.items()})


# (params, id of the trial's MLflow run, its pruning) → result
Evaluate = Callable[[Mapping[str, Value], str, Pruning | None], Awaitable[Evaluation]]


async def drive(
    sweep: Sweep,
    evaluate: Evaluate,
    tracker: Tracker,
    parent: Run,
    *,
    width: int,
    on_line: Callable[[str], None],
) -> int:
    """Run trials inside ``sole_driver`` until every cell is finished or given up.

    Args:
        evaluate: trains with a trial's params, probes, and returns metrics.
        tracker: the store of the trials' runs, under ``parent``.
        width: most trials at the same time.
        on_line: gets one line for each trial.

    Returns:
        How many trials it finished.

    Raises:
        Exception: any error of ``evaluate`` that the user can fix; others fail the trial only.
        CancelledError: interrupted; the next driver resumes the running trials.
    """
    driver = _Driver(sweep, evaluate, tracker, parent, on_line)
    running: set[asyncio.Task[int]] = set()
    finished = 0
    with answering(sweep.url):
        sweep.queue()
        try:
            while True:
                while len(running) < max(1, width) and (trial := driver.next_trial()) is not None:
                    running.add(asyncio.create_task(driver.run(trial)))
                    await asyncio.sleep(0)  # it samples its params before the next one is created
                if not running:
                    return finished
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                finished += sum(task.result() for task in done)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


@dataclass
class _Driver:
    sweep: Sweep
    evaluate: Evaluate
    tracker: Tracker
    parent: Run
    on_line: Callable[[str], None]
    started: set[int] = field(default_factory=set)
    failures: Counter[str] = field(default_factory=Counter)

    def next_trial(self) -> optuna.Trial | None:
        """A trial of an earlier driver, else the next one in the queue, with its sampler."""
        study, trials = self.sweep.study, self.sweep.trials
        resumed = [t for t in trials(TrialState.RUNNING) if t._trial_id not in self.started]
        pending = resumed or trials(TrialState.WAITING)
        if not pending:
            return None
        study.sampler = sampler_for(self.sweep, pending[0].number)
        trial = optuna.Trial(study, resumed[0]._trial_id) if resumed else study.ask()
        self.started.add(trial._trial_id)
        return trial

    async def run(self, trial: optuna.Trial) -> int:
        """Run one trial to its end; returns 1 if it counts."""
        start, sweep = time.perf_counter(), self.sweep
        params, cell = sweep.space.suggest(trial), trial.user_attrs["cell"]
        name = f"trial {trial.number} · {short(params, sweep.space.base)}"
        try:
            text = await self._run(trial, params, name)
        except Exception as error:
            if user_error_message(error) is not None:
                raise
            reason = error_summary(error)
            self.on_line(f"{name} failed: {reason}")
            trial.set_user_attr("failure", reason)
            sweep.study.tell(trial, state=TrialState.FAIL)
            self.failures[cell] += 1
            if self.failures[cell] < FAILURES:
                sweep.queue(cell)  # a sampler draws new params
            return 0
        self.on_line(f"{name} · {text} · {time.perf_counter() - start:.0f} s")
        return 1

    async def _run(self, trial: optuna.Trial, params: Mapping[str, Value], name: str) -> str:
        """Evaluate a trial in an MLflow run and store its values; returns them for people."""
        sweep, tracker, study = self.sweep, self.tracker, self.sweep.study
        tags = {
            "study": sweep.name,
            "trial": str(trial.number),
            "cell.params": trial.user_attrs["cell"],
            "suite": tracker.experiment,
        }
        earlier = tracker.find_run(trial.user_attrs.get("mlflow.run"))
        resume = earlier.info.run_id if earlier else None
        pruning = None
        if sweep.prune:
            pruning = Pruning(sweep.url, sweep.name, trial._trial_id, sweep.prune)
        values = []
        with tracker.run(name, tags=tags, params=params, parent=self.parent, resume=resume) as run:
            trial.set_user_attr("mlflow.run", run.id)
            try:
                result = await self.evaluate(params, run.id, pruning)
                values = self._log(run, result)
            except TrialPruned as pruned:
                run.status = "KILLED"
                run.set_tags({"failure": f"pruned: {pruned}"})
            for step, value in sweep.trials()[trial.number].intermediate_values.items():
                run.log_metrics({"intermediate": sweep.objectives[0].sign * value}, step)
        if not values:
            study.tell(trial, state=TrialState.PRUNED)
            return "pruned"
        for key, attr in {**result.tags, "metrics": result.metrics}.items():
            trial.set_user_attr(key, attr)
        study.tell(trial, values)
        return sweep.describe(values)

    def _log(self, run: Run, result: Evaluation) -> list[float]:
        """Log a trial's result to its MLflow run; returns the objectives' values."""
        sweep, metrics = self.sweep, result.metrics
        values = [each.value(metrics, sweep.baseline) for each in sweep.objectives]
        result.log(run)
        logged = {
            f"objective/{objective.name}": value
            for objective, value in zip(sweep.objectives, values, strict=True)
        }
        for task, gain in task_gains(metrics, sweep.baseline, sweep.tasks).items():
            logged[f"gain/{task}"] = gain
        run.log_metrics({**logged, "constraint/zero-shot": sweep.zero_shot_excess(metrics)})
        return values
