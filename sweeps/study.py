"""A sweep is an Optuna study with a stored identity that one process drives at a time.

The identity holds everything that the study was started with; options that differ are refused.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import optuna
import pandas as pd
from filelock import Timeout
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cliptex_common.errors import UserError
from cliptex_common.locks import lock_path, locked
from cliptex_common.repeating import repeating
from cliptex_common.secrets import hide_secrets
from reports.mlflow import heartbeat
from sweeps.errors import NoSweep
from sweeps.objective import Metrics, Objective, ObjectiveTask, make_objectives
from sweeps.space import Space
from sweeps.storage import open_storage, storage_url

BEAT = 60.0  # seconds between the driver's signs of life


@dataclass(frozen=True)
class Plan:
    """The declaration of a sweep.

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
            "metrics": {name: asdict(task) for name, task in self.tasks.items()},
            "objectives": [objective.name for objective in self.objectives],
            "prune": self.prune,
            **self.inputs,
        }
        return json.loads(json.dumps(identity, default=list))

    @property
    def constraint(self) -> Objective | None:
        """The mean gain in zero-shot; None if no task is zero-shot or an objective includes it."""
        tasks = {name: task for name, task in self.tasks.items() if task.group == "zero-shot"}
        optimised = {name for objective in self.objectives for name in objective.tasks}
        return Objective("zero-shot", tasks) if tasks and not optimised & tasks.keys() else None


@dataclass(frozen=True, kw_only=True)
class Sweep(Plan):
    """An open study with its declaration."""

    url: str = field(repr=False)  # of its storage; it may hold a password
    study: optuna.Study

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
        return -self.constraint.value(metrics, self.baseline) - self.inputs["zero_shot_loss"]

    def store(self, key: str, value: Any) -> None:
        """Store a value with the study (anything that JSON holds)."""
        self.study.set_user_attr(key, value)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """All trials, or those in these states, from the storage."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def attempts(self) -> dict[str, list[FrozenTrial]]:
        """Cell → its trials."""
        attempts: dict[str, list[FrozenTrial]] = {cell: [] for cell in self.space.cells()}
        for trial in self.trials():
            attempts[trial.user_attrs["cell"]].append(trial)
        return attempts

    def queue(self, only: str = "") -> None:
        """Queue every cell (or this one) that is not finished, queued or running."""
        attempts = self.attempts()
        for cell, params in self.space.cells().items():
            if only in ("", cell) and all(
                trial.state == TrialState.FAIL for trial in attempts[cell]
            ):
                self.study.enqueue_trial(params, {"cell": cell})

    def describe(self, values: Iterable[float]) -> str:
        """A trial's values for people."""
        pairs = zip(self.objectives, values, strict=True)
        return ", ".join(f"{objective.label} {value:+.3g}" for objective, value in pairs)

    def must_agree(self, plan: Plan) -> None:
        """Raise ``UserError`` with the differences to a plan, whose inputs may lack some."""
        identity = plan.identity()
        stored = {key: value for key, value in self.metadata["identity"].items() if key in identity}
        if lines := differences(stored, identity):
            more = [f"and {len(lines) - 6} more"] if len(lines) > 6 else []
            raise UserError(
                f"study {self.name!r} was started with something else:"
                f" {'; '.join(lines[:6] + more)}. Give the same options, or start another with"
                " --study NAME"
            )

    @property
    def driver(self) -> str:
        """The machine of the process that drives it, '' for none."""
        tags = self.metadata.get("driver")
        if not tags or not heartbeat.is_alive(tags):
            return ""
        return tags[heartbeat.MACHINE_TAG].partition("/")[0]

    def must_be_free(self) -> None:
        """Raise ``UserError`` if another process drives it."""
        if machine := self.driver:
            raise UserError(
                f"study {self.name!r} is driven by another process on {machine}; wait for it or"
                f" stop it (it counts as dead after {heartbeat.LIMIT:.0f} s of silence)"
            )


@contextmanager
def sole_driver(sweep: Sweep) -> Iterator[None]:
    """Let only this process drive the study while the block runs.

    A sign of life in the study tells other processes; a lock decides between two that start at
    once on one machine.

    Raises:
        UserError: another process drives it.
    """
    sign_of_life = lambda: sweep.store("driver", heartbeat.process_tags())
    with ExitStack() as stack:
        sweep.must_be_free()
        try:
            path = lock_path("sweep", [hide_secrets(sweep.url), sweep.name])
            stack.enter_context(locked(path, wait=False))
        except Timeout:
            raise UserError(f"study {sweep.name!r} is driven by another process") from None
        sign_of_life()
        try:
            # from a thread, since a task may block the event loop
            with repeating(sign_of_life, BEAT):
                yield
        finally:
            with suppress(Exception):
                sweep.store("driver", None)


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
        directions = [
            StudyDirection.MAXIMIZE if each.sign > 0 else StudyDirection.MINIMIZE
            for each in plan.objectives
        ]
        study = optuna.create_study(
            storage=opened, study_name=name, directions=directions, load_if_exists=True
        )
        stored = study.user_attrs
        if "identity" in stored:
            _sweep(url, study).must_agree(plan)
        study.set_user_attr("trials", max(plan.space.trials, stored.get("trials", 0)))
        study.set_user_attr("identity", plan.identity())  # last: it marks a complete study
        return _sweep(url, study)


def load_sweep(name: str | None, storage: str | None) -> Sweep:
    """An existing study; without a name the only one in the storage.

    Raises:
        UserError: no such study, or one that `sweep launch` did not create.
    """
    url = storage_url(storage)
    opened, shown = open_storage(url, create=False), hide_secrets(url)
    names = sorted(study.study_name for study in opened.get_all_studies())
    if name is None and len(names) > 1:
        raise UserError(f"{shown} holds {', '.join(names)}; select one with --study")
    if not names or name not in (None, *names):
        raise NoSweep(
            f"no study {name or ''!r} at {shown}; there: {', '.join(names) or 'none'}; start one"
            " with `sweep launch`"
        )
    study = optuna.load_study(storage=opened, study_name=name or names[0])
    if "identity" not in study.user_attrs:
        raise UserError(
            f"study {study.study_name!r} was not created by `sweep launch`; choose another --study"
        )
    return _sweep(url, study)


def _sweep(url: str, study: optuna.Study) -> Sweep:
    stored = study.user_attrs
    inputs = dict(stored["identity"])
    metrics = inputs.pop("metrics")
    tasks = {name: ObjectiveTask(**fields) for name, fields in metrics.items()}
    return Sweep(
        Space.from_identity(inputs.pop("space"), stored["trials"]),
        make_objectives(inputs.pop("objectives"), tasks),
        tasks,
        prune=inputs.pop("prune"),
        inputs=inputs,
        url=url,
        study=study,
    )


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
