"""A sweep is an Optuna study with a stored identity that one process drives at a time.

The identity holds everything that the study was started with; options that differ are refused.
"""

from __future__ import annotations

import json
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
from reports.mlflow import heartbeat
from sweeps.errors import NoSweep
from sweeps.objective import Metrics, Objective, ObjectiveTask, make_objectives
from sweeps.space import Space
from sweeps.storage import open_storage, storage_url

BEAT = 60.0  # seconds between the driver's signs of life


@dataclass(frozen=True)
class Plan:
    """The declaration of a sweep at its start.

    Attributes:
        inputs: everything else that a trial's value depends on, as JSON: suite, tasks and their
            settings, fixed recipe settings, pairs, labels, initial weights.
        prune: metric of the training to prune on by successive halving, '' for none.
    """

    space: Space
    objectives: tuple[Objective, ...]
    tasks: Mapping[str, ObjectiveTask]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    prune: str = ""

    def identity(self) -> dict[str, Any]:
        """All that must be the same when a study is continued, as JSON returns it."""
        identity = {
            "space": self.space.identity(),
            "objectives": [objective.name for objective in self.objectives],
            "prune": self.prune,
            **self.inputs,
        }
        return json.loads(json.dumps(identity, default=list))


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
        """Values stored with the study: ``identity``, ``baseline``, ``mlflow`` …"""
        return self.study.user_attrs

    @property
    def baseline(self) -> Metrics:
        """Metrics of clip-ft, empty until they are measured."""
        return self.metadata.get("baseline", {})

    def zero_shot_excess(self, metrics: Metrics) -> float:
        """By how many percent zero-shot lost more than allowed; 0 or less for an allowed trial.

        Raises:
            ValueError: a metric is missing.
        """
        if self.constraint is None:
            return 0.0
        loss = -self.constraint.value(metrics, self.baseline)
        return loss - self.metadata["identity"]["zero_shot_loss"]

    def store(self, key: str, value: Any) -> None:
        """Store a value with the study (anything that JSON holds)."""
        self.study.set_user_attr(key, value)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """All trials, or those in these states, from the storage."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def attempts(self) -> dict[str, list[FrozenTrial]]:
        """Cell → its trials."""
        attempts: dict[str, list[FrozenTrial]] = {}
        for trial in self.trials():
            attempts.setdefault(trial.user_attrs.get("cell", ""), []).append(trial)
        return attempts

    def queue(self, only: str = "") -> None:
        """Queue every cell (or this one) that is not finished, queued or running."""
        attempts = self.attempts()
        for cell, params in self.space.cells().items():
            previous = attempts.get(cell, [])
            if only in ("", cell) and all(trial.state == TrialState.FAIL for trial in previous):
                self.study.enqueue_trial(params, {"cell": cell})

    def describe(self, values: Sequence[float]) -> str:
        """A trial's values for people."""
        pairs = zip(self.objectives, values, strict=True)
        return ", ".join(f"{objective.label} {value:+.3g}" for objective, value in pairs)

    @property
    def driver(self) -> str:
        """The machine of the process that drives it, '' for none."""
        tags = self.metadata.get("driver")
        if not tags or not heartbeat.alive(tags):
            return ""
        return tags[heartbeat.MACHINE_TAG].partition("/")[0]


@contextmanager
def sole_driver(sweep: Sweep) -> Iterator[None]:
    """Let only this process drive the study while the block runs.

    A lock excludes others on this machine, a sign of life in the study those on other machines.

    Raises:
        UserError: another process drives it.
    """
    sign_of_life = lambda: sweep.store("driver", heartbeat.tags())
    with ExitStack() as stack:
        try:
            path = lock_path("sweep", [hide_secrets(sweep.url), sweep.name])
            stack.enter_context(locked(path, wait=False))
        except Timeout:
            raise _driven(sweep) from None
        must_be_free(sweep)
        sign_of_life()
        try:
            # from a thread, since a task may block the event loop
            with heartbeat.repeating(sign_of_life, BEAT):
                yield
        finally:
            with suppress(Exception):
                sweep.store("driver", None)


def must_be_free(sweep: Sweep) -> None:
    """Raise ``UserError`` if another process drives the study."""
    if sweep.driver:
        raise _driven(sweep)


def _driven(sweep: Sweep) -> UserError:
    machine = f" on {sweep.driver}" if sweep.driver else ""
    return UserError(
        f"study {sweep.name!r} is driven by another process{machine}; wait for it or stop it (it"
        f" counts as dead after {heartbeat.LIMIT:.0f} s of silence)"
    )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``a.b: 1 → 2`` for every leaf that differs between two JSON values."""
    leaves = [pd.json_normalize(dict(value)).to_dict("records")[0] for value in (old, new)]
    lines = []
    for key in sorted(map(str, {**leaves[0], **leaves[1]})):
        was, now = (
            json.dumps(side[key], ensure_ascii=False) if key in side else "(absent)"
            for side in leaves
        )
        if was != now:
            lines.append(f"{key}: {was:.80} → {now:.80}")
    return lines


def must_agree(name: str, stored: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raise ``UserError`` with the differences in the top-level keys of ``identity``."""
    common = {key: value for key, value in stored.items() if key in identity}
    if lines := differences(common, identity):
        more = [f"and {len(lines) - 6} more"] if len(lines) > 6 else []
        raise UserError(
            f"study {name!r} was started with something else: {'; '.join(lines[:6] + more)}. "
            "Give the same options, or start another with --study NAME"
        )


def start_sweep(name: str, storage: str | None, plan: Plan) -> Sweep:
    """The study ``name``, created if missing; a sampler's number of trials may grow.

    Raises:
        UserError: it was started with another space, suite or data (the message has the
            differences), or the storage cannot be used.
    """
    url = storage_url(storage)
    opened = open_storage(url, create=True)
    # of two processes that start it at once, the second finds it complete
    with locked(lock_path("study", [hide_secrets(url), name])):
        directions = [each.direction for each in plan.objectives]
        study = optuna.create_study(
            storage=opened, study_name=name, directions=directions, load_if_exists=True
        )
        stored, identity = study.user_attrs, plan.identity()
        if "identity" in stored:
            must_agree(name, stored["identity"], identity)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names([objective.label for objective in plan.objectives])
            study.set_user_attr("tasks", {name: asdict(task) for name, task in plan.tasks.items()})
        study.set_user_attr("trials", max(plan.space.trials, int(stored.get("trials", 0))))
        study.set_user_attr("identity", identity)  # last: it marks a complete study
        return _sweep(url, study)


def load_sweep(name: str | None, storage: str | None) -> Sweep:
    """An existing study; without a name the only one in the storage.

    Raises:
        UserError: no such study, or one that `sweep launch` did not create.
    """
    url = storage_url(storage)
    opened, shown = open_storage(url, create=False), hide_secrets(url)
    names = sorted(study.study_name for study in opened.get_all_studies())
    if name is None:
        if len(names) != 1:
            hint = "select one with --study" if names else "start one with `sweep launch`"
            raise UserError(f"{shown} holds {', '.join(names) or 'no study'}; {hint}")
        name = names[0]
    elif name not in names:
        raise NoSweep(f"no study {name!r} at {shown}; there: {', '.join(names) or 'none'}")
    study = optuna.load_study(storage=opened, study_name=name)
    if "identity" not in study.user_attrs:
        raise UserError(f"study {name!r} was not created by `sweep launch`; choose another --study")
    return _sweep(url, study)


def _sweep(url: str, study: optuna.Study) -> Sweep:
    stored = study.user_attrs
    identity = stored["identity"]
    space = Space.from_identity(identity["space"], int(stored["trials"]))
    tasks = {name: ObjectiveTask(**fields) for name, fields in stored["tasks"].items()}
    objectives = make_objectives(identity["objectives"], tasks)
    constraint = None
    if "zero_shot_loss" in identity and any(task.group == "zero-shot" for task in tasks.values()):
        (zero_shot,) = make_objectives(["zero-shot"], tasks)
        optimised = {task for objective in objectives for task in objective.tasks}
        constraint = None if optimised & set(zero_shot.tasks) else zero_shot
    return Sweep(url, study, space, objectives, tasks, identity["prune"], constraint)


def sampler_for(sweep: Sweep, number: int) -> optuna.samplers.BaseSampler:
    """The sampler for trial ``number``, which seeds it: a later driver draws other values."""
    space = sweep.space
    seed = (space.seed * 1_000_003 + number) % 2**32
    if space.search == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=seed)
    if space.search != "tpe":
        return optuna.samplers.RandomSampler(seed=seed)

    def excess(trial: FrozenTrial) -> tuple[float]:
        return (sweep.zero_shot_excess(trial.user_attrs.get("metrics", sweep.baseline)),)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # constant_liar counts running trials: without it all would sample the same region
        return optuna.samplers.TPESampler(
            seed=seed,
            multivariate=False,
            constant_liar=True,
            constraints_func=excess if sweep.constraint else None,
        )
