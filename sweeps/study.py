"""A sweep is an Optuna study: its storage, its one driver, its identity, its queue and figures.

A trial's weights and cells are cached by their identity, so asking for the same params again is
resuming.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import sqlalchemy
from filelock import Timeout
from optuna import visualization
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cliptex_common.errors import UserError, first_line, hide_secrets, redact, remember_secrets
from cliptex_common.files import expand_user, lock_path, locked
from sweeps.space import Space

PLOTS = (
    visualization.plot_optimization_history,
    visualization.plot_parallel_coordinate,
    visualization.plot_slice,
    visualization.plot_contour,
    visualization.plot_param_importances,
)
STORAGE_ERRORS = (
    optuna.exceptions.StorageInternalError,
    sqlalchemy.exc.SQLAlchemyError,
    ImportError,
)
optuna.logging.set_verbosity(optuna.logging.ERROR)


def storage_url(storage: str | None) -> str:
    """The address as Optuna takes it: of SQLite with an absolute path, of PostgreSQL with the
    installed driver."""
    url = storage or "sqlite:///sweeps.db"
    remember_secrets(url)
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite":
        return f"sqlite:///{expand_user(rest.removeprefix('/')).absolute()}"
    return f"postgresql+psycopg://{rest}" if scheme in ("postgres", "postgresql") else url


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Raise ``UserError`` where the storage cannot be used, or stops answering."""
    try:
        yield
    except STORAGE_ERRORS as error:
        reason = redact(first_line(error.__cause__ or error))
        raise UserError(
            f"cannot use the storage {hide_secrets(url)}: {reason}; name another --storage, or"
            " repair it and run the same command again"
        ) from error


def create_study(name: str, url: str) -> Study:
    """The study ``name``, created if missing. Raises ``UserError`` if it is not of a sweep."""
    storage = _open_storage(url)
    study = optuna.create_study(
        study_name=name, storage=storage, direction="maximize", load_if_exists=True
    )
    return _check_origin(study)


def load_study(name: str | None, url: str) -> Study | None:
    """The study ``name``, without a name the only one there is; None if there is none. Raises
    ``UserError`` if there are several, or if it is not of a sweep."""
    path = url.removeprefix("sqlite:///")
    if path != url and not Path(path).exists():  # Optuna would create it
        return None
    storage = _open_storage(url)
    names = optuna.get_all_study_names(storage)
    if name is None and len(names) > 1:
        raise UserError(f"there are {', '.join(names)}; select one with --study")
    name = name or next(iter(names), None)
    if name not in names:
        return None
    return _check_origin(optuna.load_study(study_name=name, storage=storage))


def _check_origin(study: Study) -> Study:
    """The study; raises ``UserError`` if a program other than ``sweep launch`` made it."""
    has_recipe = "recipe" in study.user_attrs or not study.trials  # set before the first trial
    if study.directions != [StudyDirection.MAXIMIZE] or not has_recipe:
        raise UserError(
            f"study {study.study_name!r} is not one of `sweep launch`; name another with --study"
        )
    return study


def _open_storage(url: str) -> optuna.storages.RDBStorage:
    # two processes that create the same tables break each other
    with locked(lock_path("sweeps", hide_secrets(url))):
        return optuna.storages.RDBStorage(url, {"pool_pre_ping": True})


@contextmanager
def sole_driver(name: str, url: str) -> Iterator[None]:
    """Let only this process drive the study during the block; raises ``UserError`` if another one
    does."""
    try:
        with locked(lock_path("sweep", [hide_secrets(url), name]), wait=False):
            yield
    except Timeout:
        raise UserError(f"study {name!r} is driven by another process; wait for it") from None


def check_identity(study: Study, identity: Mapping[str, Any]) -> dict[str, str]:
    """Compare what the values of trials depend on with what is stored, and return both.

    Raises:
        UserError: they differ; the message says in what.
    """
    # nested settings as ``recipe.lr``, so that the message names the one that differs
    leaves = pd.json_normalize(dict(identity)).to_dict("records")
    new = {key: json.dumps(value, default=list) for each in leaves for key, value in each.items()}
    old = study.user_attrs.get("identity", {})
    changes = [
        f"{key}: {old[key]} → {new[key]}" for key in new if old.get(key, new[key]) != new[key]
    ]
    if changes:
        raise UserError(
            f"study {study.study_name!r} was started with something else: {'; '.join(changes[:6])};"
            " give the same options, or start another with --study NAME"
        )
    return {**old, **new}


def fix_identity(study: Study, identity: Mapping[str, Any]) -> None:
    """Store what the values of trials depend on. Raises as ``check_identity``."""
    study.set_user_attr("identity", check_identity(study, identity))


def finished_trials(study: Study) -> list[FrozenTrial]:
    """The finished trials."""
    return study.get_trials(states=(TrialState.COMPLETE,))


def queue_trials(study: Study, space: Space) -> None:
    """Queue the trials of the search that are neither finished nor queued; of tpe, those that an
    earlier driver left RUNNING."""
    interrupted = study.get_trials(states=(TrialState.RUNNING,))
    # a trial is known by its params as text: a queued one has no params yet, but that text
    names = {
        trial.user_attrs.get("setting") or space.name(trial.params)
        for trial in study.get_trials(states=(TrialState.WAITING, TrialState.COMPLETE))
    }
    # a driver may die while it takes a trial from the queue, before the trial has its params
    begun = [trial.system_attrs.get("fixed_params", trial.params) for trial in interrupted]
    sampled = [params for params in begun if params.keys() == space.base.keys()]
    for params in space.combinations() or sampled:
        if space.name(params) not in names:
            study.enqueue_trial(params, user_attrs={"setting": space.name(params)})
    for trial in interrupted:
        study.tell(trial.number, state=TrialState.FAIL)


def next_trial(study: Study, space: Space) -> optuna.Trial:
    """The next trial, from the queue or sampled by tpe. The sampler's seed follows from the number
    of settings that the study has, so that a resumed study samples as it would have."""
    every = space.base.keys()  # a driver may die between two of a trial's params
    chosen = {space.name(t.params) for t in study.trials if t.params.keys() == every}
    seed = (space.seed * 1_000_003 + len(chosen)) % 2**32
    # constant_liar counts running trials: without it all would sample the same region
    study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return study.ask(dict(space.distributions))


def best_recipe(study: Study) -> dict[str, Any]:
    """The best trial's settings as a recipe file, for ``train --recipe FILE``."""
    recipe = {**study.user_attrs["recipe"], **study.best_params}
    return {"recipe": recipe.pop("name"), **recipe}


def figures(study: Study) -> list[dict[str, Any]]:
    """Title and Plotly JSON (``spec``) of Optuna's plots; one that the finished trials do not allow
    (importances of one trial) is left out."""
    specs = []
    for plot in PLOTS:
        with suppress(ValueError, RuntimeError, ZeroDivisionError):
            figure = plot(study, target_name="interquartile mean gain over clip-ft (%)")
            title = figure.layout.title.text
            figure.update_layout(template=None, title=None)  # the report has its own
            if figure.data:
                specs.append({"title": title, "spec": json.loads(figure.to_json())})
    return specs
