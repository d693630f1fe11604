"""Reaching an MLflow store: its address, a client that fails fast, and names as MLflow can hold
them."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import shutil
import sqlite3
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock

from common.secrets import hide_secrets, redact, remember_secrets
from reports.errors import TrackingError
from reports.mlflow import heartbeat

DEFAULT_URI = "sqlite:///mlflow.db"
PREFIX = "cliptex."  # of our own tags as MLflow has them; everywhere else they are named without it
BUSY_SECONDS = 60  # that a SQLite database may be locked by another program
# What MLflow answers to a wrong call; everything else is the store's own trouble: unreachable,
# full, forbidden.
CALLERS_FAULT = (
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
)


def tracking_uri(given: str | None = None) -> str:
    """The store to use: what was given, else ``MLFLOW_TRACKING_URI``, else MLflow's own default in
    the working directory.

    Raises:
        TrackingError: a file store (``./mlruns`` or ``file:…``), which MLflow 3.13 and later refuse
            to write.
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    remember_secrets(uri)
    if "://" not in uri or uri.startswith("file:"):
        raise TrackingError(
            f"{redact(uri)!r} is no MLflow database or server (file stores are refused since"
            " MLflow 3.13); use sqlite:///FILE.db, postgresql://… or http://…"
        )
    if uri.startswith("sqlite:///") and not uri.startswith(("sqlite:////", "sqlite:///:memory:")):
        # absolute, so that what is told (``run --json``) holds from every folder; MLflow keeps
        # stores by their URI
        return f"sqlite:///{_absolute(uri.removeprefix('sqlite:///'))}"
    return uri


def _absolute(path: str) -> Path:
    """In this folder, whose name must be one that the address of a database can hold."""
    try:
        here = Path.cwd()
    except FileNotFoundError as error:
        raise TrackingError("the working folder was removed; go to another one") from error
    if found := re.findall(r"[?#%]", str(here)):
        raise TrackingError(
            f"the address of a database cannot hold the {found[0]!r} of the folder {here}; go to"
            " another one, or give --tracking-uri"
        )
    return here / path


@contextmanager
def using(given: str | None = None) -> Iterator[str]:
    """The store of this process and of every process that it starts, while the block runs: by the
    environment, so that no address (which may hold a password) is on a command line; yields it."""
    uri, before = tracking_uri(given), os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        yield uri
    finally:
        if before is None:
            del os.environ["MLFLOW_TRACKING_URI"]
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before


class Client:
    """An ``MlflowClient`` (all its methods) whose errors are a ``TrackingError`` when it is the
    store that fails, and which writes, finds and returns runs with our own tags, ``PREFIX`` being
    between it and the store. Tags without it, as older versions of this suite wrote them, are read
    alike."""

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
            except MlflowException as error:
                if error.error_code in CALLERS_FAULT:
                    raise
                raise TrackingError(
                    f"the MLflow store at {self._shown} failed ({_first_line(error)}); "
                    "mend it and run the command again (finished tasks are kept)"
                ) from error

        return call

    def search_runs(
        self,
        experiment_ids: Sequence[str],
        filter_string: str = "",
        *,
        older: bool = False,
        **options: Any,
    ) -> Any:
        """As MLflow's; where a filter on our own tags finds nothing, what an older version wrote is
        looked for (``older``: that alone)."""
        search = self.__getattr__("search_runs")
        prefixed = filter_string if older else OWN_TAG.sub(rf"tags.`{PREFIX}\2`", filter_string)
        page = search(experiment_ids, prefixed, **options)
        if not page and prefixed != filter_string and not options.get("page_token"):
            page = search(experiment_ids, filter_string, **options)
        for run in page:
            _without_prefix(run.data.tags)
        return page

    def get_run(self, run_id: str) -> Any:
        """As MLflow's."""
        run = self.__getattr__("get_run")(run_id)
        _without_prefix(run.data.tags)
        return run

    def create_run(
        self, experiment_id: str, *, tags: Mapping[str, str] | None = None, **options: Any
    ) -> Any:
        """As MLflow's."""
        named = {tag_key(name): value for name, value in (tags or {}).items()}
        return self.__getattr__("create_run")(experiment_id, tags=named, **options)

    def set_tags(self, run_id: str, tags: Mapping[str, Any]) -> None:
        """All in one request; values are cut at 5,000 characters."""
        from mlflow.entities import RunTag

        found = [RunTag(tag_key(name), str(value)[:5000]) for name, value in tags.items()]
        for start in range(0, len(found), 100):
            self.log_batch(run_id, tags=found[start : start + 100])


OWN_TAG = re.compile(rf"tags\.(`?)(?!mlflow\.|{re.escape(PREFIX)})([\w.-]+)\1")  # in a filter


def tag_key(name: str) -> str:
    """A tag's name in MLflow."""
    return name if name.startswith(("mlflow.", PREFIX)) else PREFIX + name


def _without_prefix(tags: dict[str, str]) -> None:
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
    """A client on the store at ``uri``, which is made and migrated when it is a new database.

    Raises:
        TrackingError: the store cannot be reached, or a newer MLflow wrote it.
    """
    # Telemetry would reach for the network; a missing server must be said in seconds, not after
    # MLflow's minutes of retries.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one bar a file
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault(
        "MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool" if uri.startswith("sqlite") else "QueuePool"
    )
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # it logs each error that is raised, and said here
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if uri.startswith("sqlite"):
        _wait_for_writers()
    try:
        with _one_at_a_time(
            uri
        ):  # two processes that make the same new database break each other's migration
            _make_database(uri)
            _check_database(uri)
            client = Client(uri)
            client._client.search_experiments(max_results=1)
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(
            f"cannot use the MLflow store at {redact(uri)}: {_first_line(error)};"
            f" {'mend it' if uri.startswith('sqlite') else 'start the server'} or give another"
            " --tracking-uri"
        ) from error
    return client


@functools.cache
def _wait_for_writers() -> None:
    """SQLite's own five seconds are few where another program writes; MLflow asks for more in its
    sessions alone."""
    import sqlalchemy

    @sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
    def wait(connection: Any, _record: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")


def _one_at_a_time(uri: str) -> BaseFileLock:
    """A lock among this user's processes on this machine that open the same store."""
    name = hashlib.sha256(f"{Path.cwd()} {uri}".encode()).hexdigest()[:16]
    return FileLock(_own_folder() / f"mlflow-{name}.lock", fallback_to_soft=False)


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder. What processes of this machine leave that are killed goes with the next
    one."""
    here = hashlib.sha256(heartbeat.machine().encode()).hexdigest()[:8]
    for left in _own_folder().glob(f"scratch-{here}-*"):
        if not Path("/proc", left.name.split("-")[2]).exists():
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"scratch-{here}-{os.getpid()}-", dir=_own_folder())


def _own_folder() -> Path:
    folder = Path(
        tempfile.gettempdir(), f"cliptex-{os.getuid()}"
    )  # where everybody may write, so: is it really ours?
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise TrackingError(
            f"{folder} is no folder that only you can write; remove it, or set TMPDIR to a folder"
            " of your own"
        )
    return folder


def _make_database(uri: str) -> None:
    """A database file that is not there yet is made beside its place: MLflow cannot go on with one
    that was killed half made."""
    from mlflow.tracking import MlflowClient

    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:////") or "?" in uri or path.exists() or not path.parent.is_dir():
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")  # MLflow remembers each
    try:
        MlflowClient(f"sqlite:///{temporary}").search_experiments(max_results=1)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_database(uri: str) -> None:
    """Ask a database once, quickly: MLflow tries one that is unreachable ten times with growing
    pauses."""
    if uri.startswith(("http://", "https://", "databricks")):
        return
    if (schema := database_schema(uri)) and schema not in known_schemas():
        raise TrackingError(
            f"{redact(uri)} was written by a newer MLflow (schema {schema}); upgrade mlflow or"
            " use another store"
        )


def database_schema(uri: str) -> str:
    """The schema (Alembic's revision) of a database; '' where MLflow has made no tables yet. A
    missing SQLite file is made."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)
    try:
        with engine.connect() as connection:
            if "alembic_version" not in sqlalchemy.inspect(connection).get_table_names():
                return ""
            return (
                connection.execute(
                    sqlalchemy.text("select version_num from alembic_version")
                ).scalar()
                or ""
            )
    finally:
        engine.dispose()


def known_schemas() -> list[str]:
    """The schemas that the installed MLflow knows, the newest last: from its migrations' text, as
    importing it takes seconds."""
    package = find_spec("mlflow")
    assert package and package.submodule_search_locations
    after: dict[str, str] = {}  # schema → the one that follows it
    for path in Path(package.submodule_search_locations[0], "store/db_migrations/versions").glob(
        "[!_]*.py"
    ):
        found = dict(
            re.findall(
                r"^(revision|down_revision)\b.*?= *[\"']?(\w+)",
                path.read_text(encoding="utf-8"),
                re.M,
            )
        )
        after[found["down_revision"]] = found["revision"]
    schemas = ["None"]
    while schemas[-1] in after:
        schemas.append(after[schemas[-1]])
    return schemas[1:]


def metric_key(name: str) -> str:
    """A metric's name as MLflow admits it: ``i2t_R@1`` → ``i2t_R_at_1``, ``lr_1e+06`` → ``lr_1e06``
    (``@`` and ``+`` are not allowed there)."""
    return name.replace("@", "_at_").replace("+", "")


def metric_name(key: str, known: Iterable[str] = ()) -> str:
    """The inverse of ``metric_key``, for ``known`` names (those that a run declares) and recalls
    (``R@1``)."""
    return next(
        (name for name in known if metric_key(name) == key), re.sub(r"(?<=R)_at_(?=\d+$)", "@", key)
    )


def _first_line(error: BaseException) -> str:
    """The first line of an error, or the database's: ``(sqlite3.OperationalError) …``."""
    text = redact(str(error).strip()) or type(error).__name__
    database = re.search(r"^\([\w.]+\) .*", text, re.MULTILINE)
    return (database[0] if database else text.splitlines()[0])[:200]
