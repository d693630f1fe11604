"""A sweep is an ordinary Optuna study that knows what it was started with, refuses to go on with
anything else, and is driven by one process at a time."""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import optuna
import pandas as pd
from filelock import Timeout
from optuna.trial import FrozenTrial, TrialState

from common.errors import UserError
from common.locks import lock_path, locked
from common.secrets import hide_secrets
from reports.mlflow.heartbeat import SILENT, gone, this_process
from sweeps.errors import NoSweep
from sweeps.objective import Metrics, Objective, ObjectiveTask, make_objectives
from sweeps.space import Space, cell_name
from sweeps.storage import open_storage, storage_url

VERSION = 3  # of what a study stores
BEAT = 20.0  # seconds between the driver's signs of life


@dataclass(frozen=True)
class Plan:
    """What a sweep is started with.

    Attributes:
        inputs: what a trial's value depends on beside the space, as JSON: suite, tasks and their
            settings, fixed recipe settings, pairs, labels, initial weights.
        prune: metric of the training to prune on by successive halving, '' for none.
    """

    space: Space
    objectives: tuple[Objective, ...]
    tasks: Mapping[str, ObjectiveTask]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    prune: str = ""

    def identity(self) -> dict[str, Any]:
        """All that must be the same when a study goes on, as JSON would give it back."""
        space, names = self.space.identity(), [objective.name for objective in self.objectives]
        whole = {
            "version": VERSION,
            "space": space,
            "objectives": names,
            "prune": self.prune,
            **self.inputs,
        }
        return json.loads(json.dumps(whole, default=list))


@dataclass
class Sweep:
    """An open study with its declaration."""

    url: str = field(repr=False)  # of its storage; it may hold a password
    study: optuna.Study
    space: Space
    objectives: tuple[Objective, ...]
    tasks: Mapping[str, ObjectiveTask]
    prune: str
    constraint: Objective | None = None

    @property
    def name(self) -> str:
        return self.study.study_name

    @property
    def metadata(self) -> dict[str, Any]:
        """What is stored with the study: ``identity``, ``baseline``, ``mlflow`` …"""
        return self.study.user_attrs

    @property
    def baseline(self) -> Metrics:
        """clip-ft's, empty until it is measured."""
        return self.metadata.get("baseline", {})

    def too_much_lost(self, metrics: Metrics) -> float:
        """By how many percent zero-shot lost more than it may; 0 or less for a trial that may be
        chosen.

        Raises:
            ValueError: a metric is missing.
        """
        if self.constraint is None:
            return 0.0
        return (
            -self.constraint.value(metrics, self.baseline)
            - self.metadata["identity"]["zero_shot_loss"]
        )

    def note(self, key: str, value: Any) -> None:
        """Store something with the study (anything JSON holds)."""
        self.study.set_user_attr(key, value)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """All trials, or those in these states, fresh from the storage."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def attempts(self) -> dict[str, list[FrozenTrial]]:
        """Cell → its trials."""
        found: dict[str, list[FrozenTrial]] = {}
        for trial in self.trials():
            found.setdefault(cell_of(trial), []).append(trial)
        return found

    def queue(self, only: str = "") -> None:
        """Queue every cell (or this one) that is not finished, queued or under way: those that
        broke are tried again."""
        attempts = self.attempts()
        for cell in self.space.cells():
            before = attempts.get(cell.key, [])
            if only in ("", cell.key) and all(trial.state == TrialState.FAIL for trial in before):
                once = cell.params is not None and not before
                self.study.enqueue_trial(
                    dict(cell.params or {}), {"cell": cell.key}, skip_if_exists=once
                )

    def told(self, values: Sequence[float]) -> str:
        """A trial's values for people."""
        return ", ".join(
            f"{o.label} {value:+.3g}" for o, value in zip(self.objectives, values, strict=True)
        )

    @property
    def driver(self) -> str:
        """The process that drives it, as far as this machine can say; '' for none."""
        sign = self.metadata.get("driver") or {"time": 0.0, "process": ""}
        return (
            sign["process"]
            if time.time() - sign["time"] <= SILENT and not gone(sign["process"])
            else ""
        )


def cell_of(trial: FrozenTrial) -> str:
    """The cell that a trial is an attempt at."""
    params = trial.params or trial.system_attrs.get("fixed_params")
    return str(trial.user_attrs.get("cell") or (cell_name(params) if params else ""))


@contextmanager
def sole_driver(sweep: Sweep) -> Iterator[None]:
    """While the block runs, this process drives the study and no other one does: a lock here, and a
    sign of life in the study for other machines.

    Raises:
        UserError: another process drives it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(
                locked(lock_path("sweep", [hide_secrets(sweep.url), sweep.name]), wait=False)
            )
        except Timeout:
            raise _driven(sweep) from None
        must_be_free(sweep)
        over = threading.Event()

        def sign() -> None:
            sweep.note("driver", {"process": this_process(), "time": time.time()})

        def beat() -> None:
            while not over.wait(BEAT):
                with suppress(
                    Exception
                ):  # a storage that is away: the driver's own calls will say it when it lasts
                    must_drive(sweep)
                    sign()

        sign()
        thread = threading.Thread(
            target=beat, name="driver", daemon=True
        )  # a task of one process may block the loop
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            with suppress(Exception):
                must_drive(sweep)
                sweep.note("driver", None)


def must_be_free(sweep: Sweep) -> None:
    """Raises ``UserError`` when another process drives the study."""
    if sweep.driver:
        raise _driven(sweep)


def _driven(sweep: Sweep) -> UserError:
    where = f" on {sweep.driver.partition('/')[0]}" if sweep.driver else ""
    return UserError(
        f"study {sweep.name!r} is driven by another process{where}; wait for it, or stop it: it is"
        f" taken for gone when it was silent for {SILENT:.0f} s"
    )


def must_drive(sweep: Sweep) -> None:
    """Raises ``UserError`` when this process does not drive the study (any more): it was silent for
    too long."""
    if (sweep.metadata.get("driver") or {}).get("process") != this_process():
        raise UserError(
            f"another process has taken study {sweep.name!r} over, as this one gave no sign of life"
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``a.b: 1 → 2`` for every leaf that differs between two JSON values."""

    leaves: list[Any] = [pd.json_normalize(dict(each)).to_dict("records")[0] for each in (old, new)]
    was, now = (
        {key: json.dumps(leaf, ensure_ascii=False) for key, leaf in each.items()} for each in leaves
    )
    pairs = {
        key: (was.get(key, "(absent)"), now.get(key, "(absent)")) for key in sorted({**was, **now})
    }
    return [
        f"{key}: {one:.80} → {other:.80}" for key, (one, other) in pairs.items() if one != other
    ]


def must_agree(name: str, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises ``UserError`` naming what differs; of ``stored`` only the top-level keys that
    ``wanted`` has are looked at."""
    if found := differences({key: value for key, value in stored.items() if key in wanted}, wanted):
        more = [f"and {len(found) - 6} more"] if len(found) > 6 else []
        raise UserError(
            f"study {name!r} was started with something else: {'; '.join(found[:6] + more)}. "
            "Give the same options, or start another with --study NAME"
        )


def start_sweep(name: str, storage: str | None, plan: Plan) -> Sweep:
    """The study ``name``, made when it is not there; a sampler's number of trials may grow.

    Raises:
        UserError: it was started with another space, suite or data (says what differs), or the
            storage cannot be used.
    """
    url = storage_url(storage)
    opened = open_storage(url, create=True)
    with locked(
        lock_path("study", [hide_secrets(url), name])
    ):  # of two that start it at once, one finds it made
        directions = [objective.direction for objective in plan.objectives]
        study = optuna.create_study(
            storage=opened, study_name=name, directions=directions, load_if_exists=True
        )
        stored, identity = study.user_attrs, plan.identity()
        if "identity" in stored:
            must_agree(name, stored["identity"], identity)
        elif study.get_trials(deepcopy=False):
            raise UserError(
                f"study {name!r} was not made by `sweep launch`; choose another --study NAME"
            )
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names([objective.label for objective in plan.objectives])
            study.set_user_attr("tasks", {name: asdict(task) for name, task in plan.tasks.items()})
        study.set_user_attr("trials", max(plan.space.trials, int(stored.get("trials", 0))))
        study.set_user_attr("identity", identity)  # last: a study that has it is whole
        return _sweep(url, study)


def load_sweep(name: str | None, storage: str | None) -> Sweep:
    """An existing study; without a name the only one there is.

    Raises:
        UserError: no such study (names those there are), or one that `sweep launch` did not make.
    """
    url = storage_url(storage)
    opened, shown = open_storage(url, create=False), hide_secrets(url)
    known = sorted(found.study_name for found in opened.get_all_studies())
    if name is None:
        if len(known) != 1:
            hint = "say which with --study" if known else "start one"
            raise UserError(f"{shown} holds {', '.join(known) or 'no study'}; {hint}")
        name = known[0]
    elif name not in known:
        raise NoSweep(f"no study {name!r} at {shown}; there: {', '.join(known) or 'none'}")
    study = optuna.load_study(storage=opened, study_name=name)
    if "identity" not in study.user_attrs:
        raise UserError(
            f"study {name!r} was not made by `sweep launch`, so it does not say what to run"
        )
    return _sweep(url, study)


def _sweep(url: str, study: optuna.Study) -> Sweep:
    stored, name = study.user_attrs, study.study_name
    identity = stored["identity"]
    if (version := identity["version"]) != VERSION:
        raise UserError(
            f"study {name!r} is of format {version}, this is {VERSION}; use the version that"
            " made it"
        )
    space = Space.from_identity(identity["space"], int(stored["trials"]))
    tasks = {name: ObjectiveTask(**told) for name, told in stored["tasks"].items()}
    objectives = make_objectives(identity["objectives"], tasks)
    constraint = None  # where zero-shot is no objective it must not be lost
    if "zero_shot_loss" in identity and any(task.group == "zero-shot" for task in tasks.values()):
        (zero_shot,) = make_objectives(["zero-shot"], tasks)
        aimed = {task for objective in objectives for task in objective.tasks}
        constraint = None if aimed & set(zero_shot.tasks) else zero_shot
    return Sweep(url, study, space, objectives, tasks, identity["prune"], constraint)


def sampler_for(sweep: Sweep, number: int) -> optuna.samplers.BaseSampler:
    """The sampler for trial ``number``: seeded by it, so that a driver that goes on does not draw
    what was drawn before."""
    space = sweep.space
    seed = (space.seed * 1_000_003 + number) % 2**32
    if (
        space.search == "tpe"
    ):  # constant_liar: trials under way count, or all would look at the same place
        lost = lambda trial: (sweep.too_much_lost(trial.user_attrs.get("metrics", sweep.baseline)),)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                seed=seed,
                multivariate=False,
                constant_liar=True,
                constraints_func=lost if sweep.constraint else None,
            )
    if space.search == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)
