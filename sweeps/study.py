"""A sweep is an ordinary Optuna study that knows what it was started with, and refuses to go on with anything else."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from sweeps.errors import NoSweep, SweepError
from sweeps.objective import Objective
from sweeps.space import Space
from sweeps.storage import exclusive, hide, open_storage, storage_url

VERSION = 1
GRACE = 120  # seconds without a sign of life after which another machine's trial counts as lost
OPEN: dict[str, Any] = {"heartbeat": 20, "grace": GRACE}


@dataclass(frozen=True)
class Plan:
    """What a sweep is started with.

    Attributes:
        space: what is tried.
        objectives: what is maximised (or minimised).
        identity: everything else that a trial's value depends on, as JSON: suite, tasks and their settings, fixed recipe
            settings, pairs, labels, initial weights.
        request: how another process builds the same evaluation; not part of the identity.
        prune: metric of the training to prune on by successive halving, '' for none.
        grace: seconds without a sign of life after which a trial counts as lost.
    """

    space: Space
    objectives: tuple[Objective, ...]
    identity: Mapping[str, Any] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    prune: str = ""
    grace: int = GRACE

    def whole_identity(self) -> dict[str, Any]:
        """All that must be the same when a study goes on, as JSON would give it back."""
        value = {
            "version": VERSION,
            "space": self.space.identity(),
            "objectives": [objective.name for objective in self.objectives],
            "prune": self.prune,
            **self.identity,
        }
        return json.loads(json.dumps(value, default=list))


@dataclass
class Sweep:
    """An open study with its declaration.

    Attributes:
        storage, study: Optuna's.
        space, objectives, prune: as planned.
    """

    storage: RDBStorage
    study: optuna.Study
    space: Space
    objectives: tuple[Objective, ...]
    prune: str
    grace: int

    @property
    def name(self) -> str:
        return self.study.study_name

    @property
    def facts(self) -> dict[str, Any]:
        """What is stored with the study: ``identity``, ``request``, ``baseline``, ``mlflow`` …"""
        return self.study.user_attrs

    def note(self, key: str, value: Any) -> None:
        """Store a fact with the study (anything JSON holds)."""
        self.study.set_user_attr(key, value)

    def trials(self) -> list[FrozenTrial]:
        """All trials, fresh from the storage."""
        return self.study.get_trials(deepcopy=False)

    @property
    def directions(self) -> list[str]:
        return [objective.direction for objective in self.objectives]


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """``a.b: 1 → 2`` for every leaf that differs between two JSON values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in [*old, *(key for key in new if key not in old)]:
            inner = f"{where}.{key}" if where else str(key)
            if key not in old:
                found.append(f"{inner}: (absent) → {_shown(new[key])}")
            elif key not in new:
                found.append(f"{inner}: {_shown(old[key])} → (absent)")
            else:
                found += differences(old[key], new[key], inner)
        return found
    return [] if old == new else [f"{where}: {_shown(old)} → {_shown(new)}"]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}…"


def must_agree(name: str, stored: Mapping[str, Any], wanted: Mapping[str, Any], only: Sequence[str] = ()) -> None:
    """Raises ``SweepError`` naming what differs; ``only`` limits the comparison to these top-level keys."""
    if only:
        stored = {key: value for key, value in stored.items() if key in only}
        wanted = {key: value for key, value in wanted.items() if key in only}
    found = differences(stored, wanted)
    if found:
        more = f"; and {len(found) - 6} more" if len(found) > 6 else ""
        raise SweepError(
            f"study {name!r} was started with something else: {'; '.join(found[:6])}{more}. "
            "Give the same options, or start another with --study NAME"
        )


def start_sweep(name: str, storage: str | None, plan: Plan) -> Sweep:
    """The study ``name``, made when it is not there; a sampler's number of trials may grow.

    Raises:
        SweepError: it was started with another space, suite or data (says what differs), or the storage cannot be used.
    """
    opened = open_storage(storage_url(storage), heartbeat=max(1, plan.grace // 6), grace=plan.grace, create=True)
    with exclusive(opened, name):  # of two that start it at once, one finds it made
        return _sweep(opened, _made_or_found(opened, name, plan))


def _made_or_found(opened: RDBStorage, name: str, plan: Plan) -> optuna.Study:
    directions = [objective.direction for objective in plan.objectives]
    try:
        study = optuna.create_study(storage=opened, study_name=name, directions=directions)
        fresh = True
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(storage=opened, study_name=name)
        fresh = "identity" not in study.user_attrs and not study.get_trials(deepcopy=False)
    identity = plan.whole_identity()
    if fresh:
        names = [objective.label for objective in plan.objectives]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(names)
        study.set_user_attr("objectives", [objective.as_json() for objective in plan.objectives])
        study.set_user_attr("request", dict(plan.request))
        study.set_user_attr("grace", plan.grace)
        study.set_user_attr("trials", plan.space.trials)
        study.set_user_attr("identity", identity)  # last: a study that has it is whole
    elif "identity" not in study.user_attrs:
        raise SweepError(f"study {name!r} was not made by `sweep launch`; choose another --study NAME")
    else:
        must_agree(name, study.user_attrs["identity"], identity)
        if plan.space.trials > int(study.user_attrs["trials"]):
            study.set_user_attr("trials", plan.space.trials)
    return study


def load_sweep(name: str | None, storage: str | None) -> Sweep:
    """An existing study; without a name the only one there is.

    Raises:
        SweepError: no such study (names those there are), or one that `sweep launch` did not make.
    """
    url = storage_url(storage)
    opened = open_storage(url, **OPEN, create=False)
    known = sorted(found.study_name for found in opened.get_all_studies())
    if name is None:
        if len(known) != 1:
            raise SweepError(
                f"{hide(url)} holds {', '.join(known) or 'no study'}; "
                + ("say which with --study" if known else "start one")
            )
        name = known[0]
    elif name not in known:
        raise NoSweep(f"no study {name!r} at {hide(url)}; there: {', '.join(known) or 'none'}")
    study = optuna.load_study(storage=opened, study_name=name)
    if "identity" not in study.user_attrs:
        raise SweepError(f"study {name!r} was not made by `sweep launch`, so it does not say what to run")
    return _sweep(opened, study)


def stored_identity(name: str, storage: str | None) -> Mapping[str, Any] | None:
    """What a study was started with, or None when there is no such study (or storage) yet.

    Raises:
        SweepError: the storage cannot be used, or the study is not one of ours.
    """
    try:
        return load_sweep(name, storage).facts["identity"]
    except NoSweep:
        return None


def _sweep(storage: RDBStorage, study: optuna.Study) -> Sweep:
    facts = study.user_attrs
    identity = facts["identity"]
    if identity["version"] != VERSION:
        raise SweepError(
            f"study {study.study_name!r} is of format {identity['version']}, this is {VERSION}; use the version that made it"
        )
    grace = int(facts["grace"])
    storage.grace_period, storage.heartbeat_interval = grace, max(1, grace // 6)  # one truth for all workers
    space = Space.from_identity(identity["space"], int(facts["trials"]))
    objectives = tuple(Objective(**facts) for facts in facts["objectives"])
    return Sweep(storage, study, space, objectives, identity["prune"], grace)


def sampler_for(space: Space, number: int) -> optuna.samplers.BaseSampler:
    """The sampler for trial ``number``: seeded by it, so that workers that share a study never draw alike."""
    seed = (space.seed * 1_000_003 + number) % 2**32
    if space.search == "tpe":
        # constant_liar: trials under way on other workers count, or all would look at the same place
        return optuna.samplers.TPESampler(seed=seed, multivariate=False, constant_liar=True)
    if space.search == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def pruner_for(prune: str) -> optuna.pruners.BasePruner:
    """Asynchronous successive halving: the better half goes on after 1, 2, 4 … epochs; nothing when pruning is off."""
    if not prune:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2, bootstrap_count=0)
