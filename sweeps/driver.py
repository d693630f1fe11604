"""The one driver of a sweep: asks Optuna for trials, gives out their work, waits, tells.

There is one driver at a time (``sweeps.study.sole_driver``), so a trial that is RUNNING when it
starts is one that a driver
before it left: it is taken up again, with its params and its MLflow run. So every cell ends once,
wherever a driver is killed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.trial import TrialState

from common.errors import error_summary, user_error_message
from reports.mlflow.run import Run, Tracker
from sweeps.errors import TrialPruned
from sweeps.objective import task_gains
from sweeps.pruning import Pruning
from sweeps.space import Value, short
from sweeps.storage import answering
from sweeps.study import Sweep, must_drive, sampler_for

FAILURES = 2  # attempts of one launch that may break before a cell is given up


@dataclass(frozen=True)
class Evaluation:
    """What came out of a trial.

    Attributes:
        metrics: task → metric → value.
        tags: links for MLflow: ``train.run``, ``weights.sha256``, ``weights.file`` …
        costs: seconds and the like.
    """

    metrics: dict[str, dict[str, float]]
    tags: Mapping[str, str] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)

    def log(self, run: Run) -> None:
        """Metrics, links and costs into an MLflow run."""
        run.set_tags(self.tags)
        run.log_metrics(
            {
                f"{task}/{name}": v
                for task, found in self.metrics.items()
                for name, v in found.items()
            }
        )
        run.log_metrics({f"cost/{name}": value for name, value in self.costs.items()})


# (params, id of the trial's MLflow run, what stops it early) → what came out
Evaluate = Callable[[Mapping[str, Value], str, Pruning | None], Awaitable[Evaluation]]


async def drive(
    sweep: Sweep,
    evaluate: Evaluate,
    tracker: Tracker,
    parent: Run,
    *,
    width: int,
    say: Callable[[str], None],
) -> int:
    """Run trials until every cell is finished or given up, inside ``sole_driver``; returns how many
    it finished.

    Args:
        evaluate: trains with a trial's params, probes, and returns metrics.
        tracker: where the trials' runs go, under ``parent``.
        width: most trials under way at once.
        say: told one line for each trial.

    Raises:
        Exception: whatever ``evaluate`` raises that the user can mend; others fail the trial only.
        CancelledError: interrupted; the trials under way are taken up by the next driver.
    """
    driver = _Driver(sweep, evaluate, tracker, parent, say)
    under_way: set[asyncio.Task[int]] = set()
    finished = 0
    with answering(sweep.url):
        must_drive(sweep)
        sweep.queue()
        try:
            while True:
                while len(under_way) < max(1, width) and (trial := driver.next_trial()) is not None:
                    under_way.add(asyncio.create_task(driver.run(trial)))
                    await asyncio.sleep(0)  # it draws its params before the next one is asked for
                if not under_way:
                    return finished
                ended, under_way = await asyncio.wait(
                    under_way, return_when=asyncio.FIRST_COMPLETED
                )
                finished += sum(task.result() for task in ended)
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)


@dataclass
class _Driver:
    sweep: Sweep
    evaluate: Evaluate
    tracker: Tracker
    parent: Run
    say: Callable[[str], None]
    begun: set[int] = field(default_factory=set)
    failures: Counter[str] = field(default_factory=Counter)

    def next_trial(self) -> optuna.Trial | None:
        """One that a driver before this one left, else the next in the queue, with the sampler that
        draws for it."""
        must_drive(self.sweep)
        study = self.sweep.study
        left = [t for t in self.sweep.trials(TrialState.RUNNING) if t._trial_id not in self.begun]
        for found in left or self.sweep.trials(TrialState.WAITING):
            study.sampler = sampler_for(self.sweep, found.number)
            trial = optuna.Trial(study, found._trial_id) if left else study.ask()
            self.begun.add(trial._trial_id)
            return trial
        return None

    async def run(self, trial: optuna.Trial) -> int:
        """One trial to its end; returns 1 when it counts."""
        began, sweep, tracker = time.perf_counter(), self.sweep, self.tracker
        params, attrs = sweep.space.suggest(trial), trial.user_attrs
        cell = str(attrs.get("cell", ""))
        name = f"trial {trial.number} · {short(params, sweep.space.base)}"
        tags = {
            "study": sweep.name,
            "trial": str(trial.number),
            "cell.params": cell,
            "suite": tracker.experiment,
        }
        resume = attrs.get("mlflow.run") if tracker.known(attrs.get("mlflow.run")) else None
        pruning = (
            Pruning(sweep.url, sweep.name, trial._trial_id, sweep.prune) if sweep.prune else None
        )
        try:
            with tracker.run(
                name, tags=tags, params=params, parent=self.parent, resume=resume
            ) as run:
                trial.set_user_attr("mlflow.run", run.id)
                values = None
                try:
                    result = await self.evaluate(params, run.id, pruning)
                    values = self._record(run, result)
                except TrialPruned as pruned:
                    run.status = "KILLED"  # stopped on purpose, before its end
                    run.set_tags({"failure": f"pruned: {pruned}"})
                for step, value in sweep.trials()[trial.number].intermediate_values.items():
                    run.log_metrics({"intermediate": sweep.objectives[0].sign * value}, step)
        except Exception as error:
            if user_error_message(error) is not None:
                raise
            reason = error_summary(error)
            self.say(f"{name} failed: {reason}")
            self._end(trial, TrialState.FAIL, None, {"failure": reason})
            self.failures[cell] += 1
            if cell and self.failures[cell] < FAILURES:
                sweep.queue(cell)  # once more; a sampler then draws anew
            return 0
        text = "pruned"
        if values is None:
            self._end(trial, TrialState.PRUNED, None, {})
        else:
            self._end(
                trial, TrialState.COMPLETE, values, {**result.tags, "metrics": result.metrics}
            )
            text = sweep.told(values)
        self.say(f"{name} · {text} · {time.perf_counter() - began:.0f} s")
        return 1

    def _end(
        self,
        trial: optuna.Trial,
        state: TrialState,
        values: Sequence[float] | None,
        attrs: Mapping[str, object],
    ) -> None:
        must_drive(self.sweep)  # else its cell is another driver's by now
        for key, value in attrs.items():
            trial.set_user_attr(key, value)
        self.sweep.study.tell(trial, values, state)

    def _record(self, run: Run, result: Evaluation) -> list[float]:
        """Everything about a trial into its MLflow run; returns the objectives' values."""
        objectives, baseline = self.sweep.objectives, self.sweep.baseline
        values = {
            objective.name: objective.value(result.metrics, baseline) for objective in objectives
        }
        result.log(run)
        gains = task_gains(result.metrics, baseline, self.sweep.tasks)
        run.log_metrics({f"gain/{task}": gain for task, gain in gains.items()})
        run.log_metrics({f"objective/{name}": value for name, value in values.items()})
        run.log_metrics({"constraint/zero-shot": self.sweep.too_much_lost(result.metrics)})
        return list(values.values())
