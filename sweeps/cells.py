"""Which cells are finished, which are left, and handing them out: each is finished exactly once, however many workers.

Everything that changes a trial's place in the queue happens inside ``storage.exclusive``: finding lost trials, queueing cells,
taking one, ending one. So a cell is never queued or taken twice, and a worker that was given up for lost (its machine slept)
finds out when it comes back that its result is no longer asked for.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweeps.processes import gone, this_process
from sweeps.space import Cell, cell_name
from sweeps.storage import exclusive
from sweeps.study import Sweep, pruner_for, sampler_for

DONE = (TrialState.COMPLETE, TrialState.PRUNED)
FAILURES = 2  # attempts that may break before a cell is left to the next `sweep launch`
LOSSES = 5  # attempts that may vanish: a cell that kills its worker each time must not do so for ever


def cell_of(sweep: Sweep, trial: FrozenTrial) -> str:
    """The cell that a trial is an attempt at."""
    if key := trial.user_attrs.get("cell"):
        return str(key)
    return cell_name(trial.params) if trial.params else ""


@dataclass
class Progress:
    """Where a sweep stands, in cells.

    Attributes:
        done: finished, of which ``pruned`` were stopped early.
        running: under way; ``waiting``: queued.
        given_up: broke too often, with the last reason.
        left: neither done nor given up.
        failures, lost: attempts that broke, or vanished with their process.
        seconds: mean duration of a finished trial, NaN before the first.
    """

    total: int
    done: int = 0
    pruned: int = 0
    running: int = 0
    waiting: int = 0
    failures: int = 0
    lost: int = 0
    given_up: dict[str, str] = field(default_factory=dict)
    seconds: float = float("nan")

    @property
    def left(self) -> int:
        return self.total - self.done - len(self.given_up)

    @property
    def seconds_left(self) -> float:
        """Time until the last cell, at the pace of the finished ones and the workers of the moment."""
        return self.seconds * self.left / max(1, self.running)


def progress(sweep: Sweep, trials: Sequence[FrozenTrial] | None = None) -> Progress:
    """Count cells, not trials."""
    trials = sweep.trials() if trials is None else trials
    by_cell = _by_cell(sweep, trials)
    cells = sweep.space.cells()
    found = Progress(len(cells))
    spent = []
    for trial in trials:
        found.failures += trial.state == TrialState.FAIL and "failure" in trial.user_attrs
        found.lost += is_lost(trial)
        if trial.state in DONE and trial.duration is not None:
            spent.append(trial.duration.total_seconds())
    if spent:
        found.seconds = sum(spent) / len(spent)
    for cell in cells:
        attempts = by_cell.get(cell.key, [])
        states = {trial.state for trial in attempts if not _vanished(trial)}
        if states & set(DONE):
            found.done += 1
            found.pruned += TrialState.COMPLETE not in states
        elif TrialState.RUNNING in states:
            found.running += 1
        elif TrialState.WAITING in states:
            found.waiting += 1
        elif _spent(attempts):
            found.given_up[cell.key] = next(
                (str(t.user_attrs["failure"]) for t in reversed(attempts) if "failure" in t.user_attrs),
                f"its worker vanished {LOSSES} times",
            )
    return found


def is_lost(trial: FrozenTrial) -> bool:
    """Whether an attempt vanished with its process: it failed without a word."""
    return trial.state == TrialState.FAIL and not {"failure", "interrupted", "duplicate"} & set(trial.user_attrs)


def fill(sweep: Sweep, *, again: bool = False) -> int:
    """Queue every cell that is not finished, queued or running; returns how many. Call it inside ``exclusive``.

    Args:
        again: also those that broke too often.
    """
    by_cell = _by_cell(sweep, sweep.trials())
    queued = 0
    for cell in sweep.space.cells():
        attempts = by_cell.get(cell.key, [])
        if any(trial.state != TrialState.FAIL for trial in attempts) or (_spent(attempts) and not again):
            continue
        sweep.study.add_trial(_waiting(cell, attempts))
        queued += 1
    return queued


def fail_lost(sweep: Sweep) -> list[FrozenTrial]:
    """Mark running trials whose process is gone (this machine) or silent for too long (any) as failed; returns them.
    Call it inside ``exclusive``."""
    running = {t._trial_id for t in sweep.trials() if t.state == TrialState.RUNNING}
    for trial in sweep.trials():
        if _vanished(trial):
            sweep.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(sweep.study)
    return [t for t in sweep.trials() if t._trial_id in running and t.state == TrialState.FAIL]


def take(sweep: Sweep, process: dict[str, str] | None = None) -> optuna.Trial | None:
    """The next queued trial, now running in this process; None when nothing is queued. Call it inside ``exclusive``."""
    trials = sweep.trials()
    by_cell = _by_cell(sweep, trials)
    for trial in trials:
        if trial.state != TrialState.WAITING:
            continue
        key = trial.user_attrs.get("cell")
        if key and any(t.state in (*DONE, TrialState.RUNNING) for t in by_cell[key]):
            # somebody else's queueing (Optuna's own, by hand); the cell has its one trial already
            sweep.storage.set_trial_user_attr(trial._trial_id, "duplicate", True)
            sweep.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            continue
        # Both before it is "running": a worker killed right after would leave a trial that nobody could call lost.
        sweep.storage.set_trial_user_attr(trial._trial_id, "process", process or this_process())
        sweep.storage.record_heartbeat(trial._trial_id)
        if not sweep.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
            continue
        sweep.study.sampler = sampler_for(sweep.space, trial.number)
        sweep.study.pruner = pruner_for(sweep.prune)
        return optuna.Trial(sweep.study, trial._trial_id)
    return None


def next_trial(
    sweep: Sweep, process: dict[str, str] | None, on_lost: Callable[[FrozenTrial], None]
) -> optuna.Trial | None:
    """Give up lost trials (each told to ``on_lost``), queue what is missing, take one."""
    with exclusive(sweep.storage, sweep.name):
        lost = fail_lost(sweep)
        fill(sweep)
        trial = take(sweep, process)
    for old in lost:
        on_lost(old)
    return trial


def end_trial(
    sweep: Sweep,
    trial: optuna.Trial,
    state: TrialState,
    values: Sequence[float] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> bool:
    """End a trial; False when it was given up for lost meanwhile, so that its cell is another trial's."""
    with exclusive(sweep.storage, sweep.name):
        if sweep.storage.get_trial(trial._trial_id).state != TrialState.RUNNING:
            return False
        for key, value in (attrs or {}).items():
            trial.set_user_attr(key, value)
        sweep.study.tell(trial, values if state == TrialState.COMPLETE else None, state)
    return True


def _waiting(cell: Cell, attempts: Sequence[FrozenTrial]) -> FrozenTrial:
    params = dict(cell.params) if cell.params is not None else None
    if params is None and attempts and "failure" not in attempts[-1].user_attrs and attempts[-1].params:
        params = attempts[-1].params  # it vanished: its training goes on where it stopped; one that broke is drawn anew
    system = {"fixed_params": params} if params is not None else {}
    return create_trial(state=TrialState.WAITING, system_attrs=system, user_attrs={"cell": cell.key})


def _vanished(trial: FrozenTrial) -> bool:
    """Whether a trial is "running" in a process of this machine that is no more."""
    return trial.state == TrialState.RUNNING and gone(trial.user_attrs.get("process", {}))


def _spent(attempts: Sequence[FrozenTrial]) -> bool:
    counts = Counter("failure" if "failure" in t.user_attrs else "lost" if is_lost(t) else "" for t in attempts)
    return counts["failure"] >= FAILURES or counts["lost"] >= LOSSES


def _by_cell(sweep: Sweep, trials: Sequence[FrozenTrial]) -> dict[str, list[FrozenTrial]]:
    by_cell: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        by_cell.setdefault(cell_of(sweep, trial), []).append(trial)
    return by_cell
