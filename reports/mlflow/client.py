"""Access to an MLflow store: its address, a client that fails fast, names that MLflow accepts."""

from __future__ import annotations

import functools
import logging
import os
import re
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cliptex_common.errors import first_line
from cliptex_common.locks import lock_path, locked
from cliptex_common.secrets import hide_secrets, redact, remember_secrets
from reports.errors import TrackingError

DEFAULT_URI = "sqlite:///mlflow.db"
PARENT_TAG = "mlflow.parentRunId"
FAILURE_TAG = "failure"
PAGE = 1000  # results a request
PREFIX = "cliptex."  # of this package's tags in MLflow; the code names tags without it
BUSY_SECONDS = 60  # how long to wait while another program has a SQLite database locked
# MLflow's codes for a wrong call, a bug here; every other error is the store's: unreachable, full,
# damaged, forbidden.
WRONG_CALL = (
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
)
OWN_TAG = re.compile(rf"tags\.(`?)(?!mlflow\.|{re.escape(PREFIX)})([\w.-]+)\1")  # in a filter


def tracking_uri(explicit: str | None = None) -> str:
    """The store to use: ``explicit``, else ``MLFLOW_TRACKING_URI``, else MLflow's own default.

    Raises:
        TrackingError: a file store (``./mlruns`` or ``file:…``), which MLflow 3.13 dropped.
    """
    uri = explicit or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    remember_secrets(uri)
    if "://" not in uri or uri.startswith("file:"):
        raise TrackingError(
            f"{redact(uri)!r} is no MLflow database or server (file stores are refused"
            " since MLflow 3.13); use sqlite:///FILE.db, postgresql://… or http://…"
        )
    if uri.startswith("sqlite:///") and not uri.startswith(("sqlite:////", "sqlite:///:memory:")):
        # absolute, so that the address in ``run --json`` works from every folder
        return f"sqlite:///{Path.cwd() / uri.removeprefix('sqlite:///')}"
    return uri


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite database, else None."""
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    return Path(path) if uri.startswith("sqlite:////") else None


@contextmanager
def using(explicit: str | None = None) -> Iterator[str]:
    """Select a store for this process and its child processes while the block runs; yields its URI.

    It is passed in the environment: the URI may hold a password, and command lines are public.
    """
    uri, previous = tracking_uri(explicit), os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        yield uri
    finally:
        if previous is None:
            del os.environ["MLFLOW_TRACKING_URI"]
        else:
            os.environ["MLFLOW_TRACKING_URI"] = previous


class Client:
    """An ``MlflowClient`` with all its methods, and three additions.

    Errors of the store become a ``TrackingError``, secrets are removed from all arguments, and the
    package's own tags get ``PREFIX`` on their way in and lose it on their way out.
    """

    def __init__(self, uri: str) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        self._shown = redact(uri)

    def __getattr__(self, name: str) -> Any:
        from mlflow.exceptions import MlflowException

        method = getattr(self._client, name)

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(
                    *map(_public, args), **{name: _public(value) for name, value in kwargs.items()}
                )
            except (MlflowException, OSError) as error:  # of an artifact: no space left …
                if getattr(error, "error_code", "") in WRONG_CALL:
                    raise
                raise TrackingError(
                    f"the MLflow store at {self._shown} failed ({_reason(error)});"
                    " repair it and run the command again (finished tasks are kept)"
                ) from error

        return call

    def search_runs(
        self, experiment_ids: Sequence[str], filter_string: str = "", **options: Any
    ) -> Any:
        """Search as MLflow does."""
        prefixed = OWN_TAG.sub(rf"tags.`{PREFIX}\2`", filter_string)
        page = self.__getattr__("search_runs")(experiment_ids, prefixed, **options)
        for run in page:
            _remove_prefix(run.data.tags)
        return page

    def get_run(self, run_id: str) -> Any:
        """Get a run as MLflow does."""
        run = self.__getattr__("get_run")(run_id)
        _remove_prefix(run.data.tags)
        return run

    def create_run(
        self, experiment_id: str, *, tags: Mapping[str, str] | None = None, **options: Any
    ) -> Any:
        """Create a run as MLflow does."""
        prefixed = {tag_key(name): value for name, value in (tags or {}).items()}
        return self.__getattr__("create_run")(experiment_id, tags=prefixed, **options)

    def set_tags(self, run_id: str, tags: Mapping[str, Any]) -> None:
        """Set tags in one request for every 100; MLflow cuts long values."""
        from mlflow.entities import RunTag

        entities = [RunTag(tag_key(name), str(value)) for name, value in tags.items()]
        for start in range(0, len(entities), 100):
            self.log_batch(run_id, tags=entities[start : start + 100])


def all_pages(search: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
    """All results of a paged MLflow search."""
    token = None
    while True:
        page = search(*arguments, max_results=PAGE, page_token=token, **options)
        yield from page
        token = page.token
        if not token:
            return


def _reason(error: Exception) -> str:
    """The line with the database's own error, else the first one."""
    match = re.search(r"^\([\w.]+\) .*", str(error), re.M)
    return redact(match[0][:200] if match else first_line(error))


def tag_key(name: str) -> str:
    """A tag's name in MLflow."""
    return name if name.startswith(("mlflow.", PREFIX)) else PREFIX + name


def _remove_prefix(tags: dict[str, str]) -> None:
    for name in [name for name in tags if name.startswith(PREFIX)]:
        tags[name.removeprefix(PREFIX)] = tags.pop(name)


def _public(value: Any) -> Any:
    """An argument without secrets: text, tags and params, and lists and mappings of them."""
    from mlflow.entities import Param, RunTag

    if isinstance(value, str):
        return hide_secrets(value)
    if isinstance(value, Param | RunTag):
        return type(value)(value.key, hide_secrets(value.value))
    if isinstance(value, dict):
        return {key: _public(each) for key, each in value.items()}
    return [_public(each) for each in value] if isinstance(value, list) else value


def connect(uri: str) -> Client:
    """Open the store at ``uri``; a new database is created, an old one migrated.

    Raises:
        TrackingError: the store cannot be reached, or a newer MLflow wrote it.
    """
    # No telemetry, no bar for each file, and a missing server is reported after seconds, not after
    # MLflow's minutes of retries.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault(
        "MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool" if uri.startswith("sqlite") else "QueuePool"
    )
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # it logs every error that it raises
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if uri.startswith("sqlite"):
        _wait_for_writers()
    try:
        # two processes that create the same database break each other's migration
        with locked(lock_path("mlflow", uri)):
            path = sqlite_file(uri)
            if path is not None and path.parent.is_dir() and not path.exists():
                create_database(path)
            if not uri.startswith(("http://", "https://", "databricks")):
                check_database(uri)
            client = Client(uri)
            client._client.search_experiments(max_results=1)
    except TrackingError:
        raise
    except Exception as error:
        remedy = "repair it" if uri.startswith("sqlite") else "start the server"
        raise TrackingError(
            f"cannot use the MLflow store at {redact(uri)}: {_reason(error)};"
            f" {remedy} or give another --tracking-uri"
        ) from error
    return client


@functools.cache
def _wait_for_writers() -> None:
    """Wait longer for a locked database than SQLite's five seconds."""
    import sqlalchemy

    @sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
    def wait(connection: Any, _record: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")


def create_database(path: Path) -> None:
    """Create a database file under another name and rename it.

    MLflow cannot continue a database whose creation was killed.
    """
    from mlflow.tracking import MlflowClient

    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")  # MLflow caches by name
    temporary.touch()  # MLflow tries a folder that cannot be written for minutes
    try:
        MlflowClient(f"sqlite:///{temporary}").search_experiments(max_results=1)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_database(uri: str) -> None:
    """Query a database once: MLflow itself tries an unreachable one ten times."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def metric_key(name: str) -> str:
    """A name of a metric or tag as MLflow accepts it: without ``@``, ``+``, ``=`` and ``%``.

    ``i2t_R@1`` → ``i2t_R_at_1``, ``lr_1e+06`` → ``lr_1e06``, ``voc/knn:layers=50%`` →
    ``voc/knn:layers-50pct``.
    """
    for character, text in {"@": "_at_", "+": "", "=": "-", "%": "pct"}.items():
        name = name.replace(character, text)
    return name


def metric_name(key: str, declared: Iterable[str] = ()) -> str:
    """The inverse of ``metric_key``, for ``declared`` names and recalls (``R@1``)."""
    for name in declared:
        if metric_key(name) == key:
            return name
    return re.sub(r"(?<=R)_at_(?=\d+$)", "@", key)
