"""A worker: takes one cell after the other until every cell of the study is finished, by whomever."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from reports.tracking import PARENT_TAG, Run, Tracker
from sweeps.cells import end_trial, next_trial, progress
from sweeps.errors import TrialPruned
from sweeps.objective import TaskFacts, task_gains
from sweeps.space import Value, short
from sweeps.study import Sweep

Report = Callable[[int, float], None]  # (step, value); more is better


@dataclass(frozen=True)
class Evaluation:
    """What came out of a trial.

    Attributes:
        metrics: task → metric → value.
        tags: links for MLflow: ``train.run``, ``weights.sha256``, ``weights.file`` …
        costs: seconds and the like.
    """

    metrics: Mapping[str, Mapping[str, float]]
    tags: Mapping[str, str] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)


# (params, the trial's MLflow run, report(step, value) which raises TrialPruned) → what came out
Evaluate = Callable[[Mapping[str, Value], Run, Report], Evaluation]


def work(
    sweep: Sweep,
    evaluate: Evaluate,
    tracker: Tracker,
    *,
    process: dict[str, str] | None = None,
    poll: float | None = None,
    say: Callable[[str], None] = lambda line: None,
    follow: int | None = None,
) -> int:
    """Run trials until none is left; returns how many this worker finished.

    A worker that finds nothing to take waits while others are at work: theirs may be lost.

    Args:
        sweep: the open study.
        evaluate: trains with a trial's params, probes, and returns metrics.
        tracker: where the trial's runs go; the parent is the study's ``mlflow`` fact.
        process: what the trial remembers of its process (default: this one).
        poll: seconds between looks while waiting; default: the heartbeat, at most 2.
        say: told one line for each trial.
        follow: pid of the launching process; the worker ends when it is gone.

    Raises:
        Exception: whatever ``evaluate`` raises that the user can mend (``exit_code`` 2, a full disk); others fail the trial only.
        KeyboardInterrupt: interrupted; the trial under way is queued again by whoever works next.
    """
    facts = sweep.facts
    parent = Run(tracker, facts["mlflow"]["run"], sweep.name)
    tasks = {name: TaskFacts(**value) for name, value in facts.get("tasks", {}).items()}
    pause = poll if poll is not None else min(2.0, _beat(sweep))
    finished = 0
    while follow is None or os.getppid() == follow:
        trial = next_trial(sweep, process, lambda lost: close_lost(tracker, lost, say))
        if trial is None:
            now = progress(sweep)
            if now.left == 0:
                break
            if now.running:
                time.sleep(pause)
            continue
        finished += _run(sweep, trial, evaluate, tracker, parent, tasks, say)
    return finished


def close_lost(tracker: Tracker, trial: FrozenTrial, say: Callable[[str], None]) -> None:
    """End the MLflow run of a trial whose worker vanished, and those under it (its training, the probe under way)."""
    say(f"trial {trial.number} was lost with its worker; its cell is queued again")
    run = trial.user_attrs.get("mlflow.run")
    if not run:
        return
    try:
        under = tracker.search(f"attributes.status = 'RUNNING' and tags.`{PARENT_TAG}` = '{run}'")
        for one in [*(child.info.run_id for child in under), run]:
            tracker.close(one, "the worker vanished: its process is gone, or its heartbeat lapsed")
    except Exception as error:  # another store than it was written to, say; the trial is queued again all the same
        say(f"its MLflow run {run} stays as it is: {first_line(error)}")


def _run(
    sweep: Sweep,
    trial: optuna.Trial,
    evaluate: Evaluate,
    tracker: Tracker,
    parent: Run,
    tasks: Mapping[str, TaskFacts],
    say: Callable[[str], None],
) -> int:
    """One trial from params to its end; returns 1 when it counts."""
    started = time.perf_counter()
    shown = ""
    with _heartbeat(sweep.storage, trial._trial_id, _beat(sweep)):
        try:
            params = sweep.space.suggest(trial)
            shown = short(params, sweep.space.base)
            cell = str(trial.storage.get_trial_user_attrs(trial._trial_id).get("cell", ""))
            tags = {"study": sweep.name, "trial": str(trial.number), "cell.params": cell, "suite": tracker.experiment}
            with tracker.run(f"trial {trial.number} · {shown}", tags=tags, params=params, parent=parent) as run:
                trial.set_user_attr("mlflow.run", run.id)
                try:
                    result = evaluate(params, run, _reporter(sweep, trial, run))
                except TrialPruned as pruned:
                    run.status = "KILLED"  # stopped on purpose, before its end
                    run.set_tags({"failure": f"pruned: {pruned}"})
                    result = None
                values = _record(sweep, run, result, tasks) if result is not None else None
        except KeyboardInterrupt:
            end_trial(sweep, trial, TrialState.FAIL, attrs={"interrupted": True})
            raise
        except Exception as error:
            mine = is_the_users(error)
            reason = first_line(error)
            # What the user must mend (a full disk, a store that is away) is not the cell's fault and does not count against it.
            end_trial(sweep, trial, TrialState.FAIL, attrs={"interrupted" if mine else "failure": reason})
            say(f"trial {trial.number} · {shown} failed: {reason}")
            if mine:
                raise
            return 0
        if values is None:
            counted = end_trial(sweep, trial, TrialState.PRUNED)
            text = "pruned"
        else:
            counted = end_trial(sweep, trial, TrialState.COMPLETE, values, _attrs(result))
            text = ", ".join(f"{o.label} {v:+.3g}" for o, v in zip(sweep.objectives, values, strict=True))
    if not counted:
        tracker.close(run.id, "given up for lost meanwhile; another trial has this cell")
        text = "came too late: another worker has this cell"
    say(f"trial {trial.number} · {shown} · {text} · {time.perf_counter() - started:.0f} s")
    return int(counted)


def _record(sweep: Sweep, run: Run, result: Evaluation, tasks: Mapping[str, TaskFacts]) -> list[float]:
    """Everything about a trial into its MLflow run; returns the objectives' values."""
    baseline = sweep.facts.get("baseline", {})
    values = [objective.value(result.metrics, baseline) for objective in sweep.objectives]
    flat = {f"{task}/{name}": value for task, found in result.metrics.items() for name, value in found.items()}
    gains = task_gains(result.metrics, baseline, tasks)
    run.log_metrics(flat)
    run.log_metrics({f"gain/{task}": gain for task, gain in gains.items()})
    run.log_metrics({f"objective/{o.name}": value for o, value in zip(sweep.objectives, values, strict=True)})
    run.log_metrics({f"cost/{name}": value for name, value in result.costs.items()})
    run.set_tags(result.tags)
    return values


def _attrs(result: Evaluation | None) -> dict[str, Any]:
    """What the Optuna trial keeps: links, and all metrics, so that a study alone is enough for its summary."""
    return {} if result is None else {**result.tags, "metrics": {t: dict(m) for t, m in result.metrics.items()}}


def _reporter(sweep: Sweep, trial: optuna.Trial, run: Run) -> Report:
    # More is better of what is watched, whereas Optuna's pruner keeps what is best in the study's own direction.
    sign = 1.0 if sweep.directions[0] == "maximize" else -1.0

    def report(step: int, value: float) -> None:
        if not sweep.prune:
            return
        trial.report(sign * value, step)
        run.log_metrics({"intermediate": value}, step)
        if trial.should_prune():
            raise TrialPruned(f"{sweep.prune} {value:.4g} at step {step} is not among the better half")

    return report


def _beat(sweep: Sweep) -> float:
    """Seconds between signs of life."""
    return float(sweep.storage.get_heartbeat_interval() or 1)


def is_the_users(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is something that the user must mend."""
    while error is not None:
        if getattr(error, "exit_code", None) == 2 or isinstance(error, OSError | MemoryError):
            return True
        error = error.__cause__
    return False


def first_line(error: BaseException) -> str:
    """An error's kind and what it says, in one line of at most 400 characters."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:400]


@contextmanager
def _heartbeat(storage: RDBStorage, trial_id: int, every: float):
    """Signs of life from a thread; a storage that is away for a moment is tried again, not given up."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(every):
            try:
                storage.record_heartbeat(trial_id)
            except Exception:  # the trial's own calls will say it when it lasts
                continue
        storage.remove_session()

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
