"""Reading an MLflow store: ``Client`` sends requests, ``Store`` reads records and artifacts;
``tracking.Tracker`` writes an experiment, ``tracking.Run`` one run.
"""

from __future__ import annotations

import base64
import functools
import json
import logging
import os
import re
import shutil
import sqlite3
import tempfile
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np

from cliptex_common.errors import (
    UserError,
    first_line,
    hide_secrets,
    redact,
    remember_secrets,
    suggest,
)
from cliptex_common.files import atomic_write, home, lock_path, locked
from reports.database import BUSY_SECONDS, Database, Unsupported, newest_schemas
from reports.records import (
    DAMAGED,
    TAGS,
    ParentRun,
    Record,
    TrackingError,
    damaged,
    metric_key,
    metric_name,
    read_arrays,
    read_record,
)

DEFAULT_URI = "sqlite:///mlflow.db"
PARENT_TAG = "mlflow.parentRunId"
PAGE = 1000  # results a request
SERVED = "mlflow-artifacts"  # scheme of the address of artifacts that a server keeps
START_SERVER = "start the server and give its address as --tracking-uri"
PREFIX = "cliptex."  # of this package's tags in MLflow; records name them without it
FAILURE_TAG = f"{PREFIX}failure"
# MLflow's codes for a wrong call, a bug here; every other error is the store's: unreachable, full,
# damaged, forbidden.
WRONG_CALL = (
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
)


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


def artifact_folder(uri: str, experiment: str) -> str | None:
    """Where a new experiment keeps its artifacts: beside a SQLite database; None leaves it to the
    server. MLflow's own choice is the folder in which the first command happened to run."""
    database = sqlite_file(uri)
    folder = re.sub(r"[^\w.-]", "_", experiment, flags=re.ASCII)[:80]
    if database is None:
        return None
    parent = str(database.parent).replace("#", "%23")  # where the path of a URI would end
    return f"{parent}/mlruns/{folder}"


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
    """An ``MlflowClient`` with all its methods and those of ``Requests``, whose errors are
    ``TrackingError``, and which removes secrets from all arguments. What ``Database`` can do with a
    SQLite file does not import MLflow."""

    def __init__(self, uri: str) -> None:
        self._uri, self._shown = uri, redact(uri)
        path = sqlite_file(uri) if "%" not in uri else None  # which MLflow reads as an escape
        with suppress(OSError, sqlite3.Error):  # MLflow says what is wrong
            if path and path.parent.is_dir() and not path.exists() and has_own_schema():
                with locked(lock_path("mlflow", uri)):
                    create_database(path)
        database = Database(path) if path else None
        self._database = database if database and database.is_readable() else None
        if self._database is None:
            _ = self._client  # raises if it cannot be used

    @functools.cached_property
    def _client(self) -> Any:
        with importing:
            return open_mlflow(self._uri)

    def __getattr__(self, name: str) -> Any:
        """MLflow's method ``name``, with errors and secrets as above; the methods below, which hide
        those of their names, call it by this, too."""
        direct = getattr(self._database, name, None)

        def call(*args: Any, **kwargs: Any) -> Any:
            public = [_public(value) for value in args]
            named = {name: _public(value) for name, value in kwargs.items()}
            if direct is not None:
                try:
                    return direct(*public, **named)
                except (sqlite3.Error, Unsupported, UnicodeError, OverflowError) as error:
                    if "locked" in str(error):  # MLflow would wait as long again
                        raise self._failure(error) from error
                    # else MLflow does it, or says what is wrong
            method = getattr(self._client, name)
            try:
                return method(*public, **named)
            except (mlflow_error(), OSError) as error:  # of an artifact: no space left …
                if getattr(error, "error_code", "") in WRONG_CALL:
                    raise
                raise self._failure(error) from error

        return call

    def _failure(self, error: Exception) -> TrackingError:
        if SERVED in str(error) and not self._uri.startswith("http"):
            return TrackingError(f"{served_artifacts(self._uri)}; {START_SERVER}")
        return TrackingError(
            f"the MLflow store at {self._shown} failed ({_reason(error)});"
            " repair it and run the command again (finished tasks are kept)"
        )

    def log_files(self, run_id: str, files: Mapping[str, bytes | Path]) -> None:
        """Store artifacts: name, which may contain slashes, → content or file. In a folder on this
        disk they are written without MLflow."""
        uri = self.get_run(run_id).info.artifact_uri if self._database else ""
        folder = local_folder(uri) if uri else None
        with tempfile.TemporaryDirectory() as scratch:
            for name, content in files.items():
                path = Path(folder or scratch, name)
                try:
                    with atomic_write(path) as temporary:
                        if isinstance(content, bytes):
                            temporary.write_bytes(content)
                        else:
                            shutil.copyfile(content, temporary)
                except (OSError, UserError) as error:
                    raise self._failure(error) from error
            if folder is None:
                self.log_artifacts(run_id, scratch)

    def set_tags(self, run_id: str, tags: Mapping[str, Any]) -> None:
        """Set tags, named as in records; MLflow cuts long values."""
        named = {tag_key(name): str(value) for name, value in tags.items()}
        self.__getattr__("set_tags")(run_id, named)


# held while a thread imports MLflow: a process that is forked then could never import its modules
importing = threading.RLock()
os.register_at_fork(
    before=importing.acquire,
    after_in_parent=importing.release,
    after_in_child=importing.release,
)


def mlflow_error() -> type[Exception]:
    """The class of MLflow's errors, for an ``except`` alone: the call imports MLflow."""
    configure_mlflow()
    from mlflow.exceptions import MlflowException

    return MlflowException


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
    """The name in MLflow of a tag of a record."""
    return name if name.startswith(("mlflow.", PREFIX)) else PREFIX + name


def _public(value: Any) -> Any:
    """An argument without secrets: text, and lists and mappings of texts."""
    if isinstance(value, str):
        return hide_secrets(value)
    if isinstance(value, dict):
        return {key: _public(each) for key, each in value.items()}
    return [_public(each) for each in value] if isinstance(value, list) else value


def connect(uri: str) -> Client:
    """Open the store at ``uri``; a new database is created, an old one migrated when it is written.

    Raises:
        TrackingError: the store cannot be reached, or a newer MLflow wrote it.
    """
    return Client(uri)


def open_mlflow(uri: str) -> Any:
    """The ``MlflowClient`` of a store. Raises as ``connect``."""
    configure_mlflow()
    os.environ.setdefault(
        "MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool" if uri.startswith("sqlite") else "QueuePool"
    )
    if uri.startswith("sqlite"):
        _wait_for_writers()
    from reports.requests import Requests

    try:
        # two processes that create the same database break each other's migration
        with locked(lock_path("mlflow", uri)):
            path = sqlite_file(uri)
            if path is not None and path.parent.is_dir() and not path.exists():
                create_database(path)
            if not uri.startswith(("http://", "https://", "databricks")):
                check_database(uri)
            client = Requests(tracking_uri=uri)
            client.search_experiments(max_results=1)
    except TrackingError:
        raise
    except Exception as error:
        remedy = "repair it" if uri.startswith("sqlite") else "start the server"
        raise TrackingError(
            f"cannot use the MLflow store at {redact(uri)}: {_reason(error)};"
            f" {remedy} or give another --tracking-uri"
        ) from error
    return client


def configure_mlflow() -> None:
    """To be called before an import of MLflow: no telemetry, no bar for each file, no log beside
    its errors, and a missing server is reported after seconds, not after minutes of retries."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    for name in ("mlflow", "mlflow.system_metrics", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # it logs every error that it raises
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


@functools.cache
def _wait_for_writers() -> None:
    """Wait longer for a locked database than SQLite's five seconds."""
    import sqlalchemy

    @sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
    def wait(connection: Any, _record: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")


# a database as MLflow 3.17 migrates it, before it creates an experiment: its statements in SQL
SCHEMA = Path(__file__).with_name("mlflow.sql")


def has_own_schema() -> bool:
    """Whether the installed MLflow has the schema of ``SCHEMA``."""
    schema = SCHEMA.read_text(encoding="utf-8")
    return newest_schemas() == re.findall(r'"alembic_version" VALUES\(.(\w+)', schema)


def create_database(path: Path) -> None:
    """Create a database file under another name and rename it, unless there is one by then.

    MLflow cannot continue a database whose creation was killed. Where the installed MLflow has the
    schema of ``SCHEMA``, its 69 migrations, which take longer than its import, are left out.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")  # MLflow caches by name
    temporary.touch()  # MLflow tries a folder that cannot be written for minutes
    try:
        if has_own_schema():
            with closing(sqlite3.connect(temporary)) as database:
                database.executescript(SCHEMA.read_text(encoding="utf-8"))
                # MLflow expects an experiment 0
                folder, now = artifact_folder(f"sqlite:///{path}", "0"), int(time.time() * 1000)
                values = [0, "Default", folder, "active", now, now, "default"]
                database.execute("insert into experiments values (?, ?, ?, ?, ?, ?, ?)", values)
                database.commit()
        else:
            from mlflow.tracking import MlflowClient

            MlflowClient(f"sqlite:///{temporary}").search_experiments(max_results=1)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass  # made by a process with another home, and so another lock
        except OSError:  # a file system without links
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


# of runs in MLflow → of records
STATUSES = {
    "FINISHED": "done",
    "FAILED": "failed",
    "KILLED": "interrupted",
    "RUNNING": "still running",
    "SCHEDULED": "not started",
}
UNREADABLE = "unreadable"


class Artifacts:
    """The files of records on this disk, read one by one when they are needed."""

    def artifact(self, run: Record, name: str) -> Path | None:
        """A file of a run on this disk, or None where the run has none."""
        folder = local_folder(run.artifacts)
        return folder / name if folder and (folder / name).is_file() else None

    def json(self, run: Record, name: str) -> Any:
        """A JSON artifact; {} where the run has none. Raises ``TrackingError`` if it exists but
        cannot be read."""
        return self._parsed(run, name, json.loads)

    def arrays(
        self, run: Record, name: str, fields: Container[str] | None = None
    ) -> dict[str, np.ndarray]:
        """The arrays of an npz artifact, of them those in ``fields``; {} where the run has none.
        Raises ``TrackingError`` if it exists but cannot be read."""
        return self._parsed(run, name, lambda content: read_arrays(content, fields))

    def _parsed(self, run: Record, name: str, parse: Callable[[bytes], Any]) -> Any:
        path = self.artifact(run, name)
        if path is None:
            return {}
        try:
            return parse(path.read_bytes())
        except DAMAGED as error:
            raise damaged(name, run.run_id, run.name, error) from error


class Store(Artifacts):
    """An MLflow store to read from: runs in bulk requests, artifacts one by one when needed.

    Args:
        uri: tracking URI; ``None`` as for writing.

    Raises:
        TrackingError: it cannot be reached, or a newer MLflow wrote it.
    """

    def __init__(self, uri: str | None = None) -> None:
        self.uri = tracking_uri(uri)
        database = sqlite_file(self.uri)
        if database is not None and not database.exists():
            raise TrackingError(
                f"there is no MLflow store at {self.uri}; run something first, or give"
                " --tracking-uri (`results page FILE` shows shared results without one)"
            )
        self.client = connect(self.uri)
        self._scratch = tempfile.TemporaryDirectory()
        self._listed: dict[tuple[str, str], set[str]] = {}

    def experiments(self) -> dict[str, str]:
        """Name → id of all active experiments."""
        experiments = all_pages(self.client.search_experiments)
        return {experiment.name: experiment.experiment_id for experiment in experiments}

    def experiment_ids(self, names: Sequence[str]) -> dict[str, str]:
        """Name → id of the named experiments.

        Raises:
            TrackingError: one does not exist; the message has the nearest name.
        """
        ids = self.experiments()
        for name in names:
            if name not in ids:
                raise TrackingError(
                    f"no experiment {name!r} in the MLflow store; {suggest(name, ids)}"
                )
        return {name: ids[name] for name in names}

    def runs(self, experiments: Sequence[str], filter_string: str = "") -> list[Record]:
        """Records of the runs of the named experiments that match an MLflow filter, oldest first.

        Raises:
            TrackingError: an experiment does not exist.
        """
        names = {identity: name for name, identity in self.experiment_ids(experiments).items()}
        search = all_pages(self.client.search_runs, list(names), filter_string)
        runs = [read_run(run, names[run.info.experiment_id]) for run in search]
        return sorted(runs, key=lambda run: (run.started, run.run_id))

    def history(self, run_id: str, metric: str, most: int = 160) -> tuple[list[int], list[float]]:
        """Steps and values of a training curve, thinned to about ``most`` points.

        The first and the last point are retained.
        """
        points = self.client.get_metric_history(run_id, metric_key(metric))
        points = sorted(points, key=lambda point: (point.step, point.timestamp))
        # a resumed training repeats some steps
        curve = list({point.step: point.value for point in points}.items())
        stride = max(1, -(-len(curve) // most))
        thinned = curve[::stride]
        if thinned and thinned[-1] != curve[-1]:
            thinned.append(curve[-1])
        return [step for step, _ in thinned], [value for _, value in thinned]

    def artifact(self, run: Record, name: str) -> Path | None:
        """A file of a run on this disk, or None where the run has none.

        Files fetched from elsewhere are cached for later reports if the run is finished, until it
        is resumed and ends again, as a parent run that gets another task.
        """
        if local_folder(run.artifacts) is not None:
            return super().artifact(run, name)
        cache = home() / "artifacts" if run.is_finished else Path(self._scratch.name)
        folder = cache / run.run_id / str(run.ended)
        path = folder / name
        if path.is_file():
            return path
        # artifact stores report a missing file in many ways: list before fetching
        within = name.rpartition("/")[0]
        if (run.run_id, within) not in self._listed:
            listed = self.client.list_artifacts(run.run_id, within or None)
            self._listed[run.run_id, within] = {file.path for file in listed}
        if name not in self._listed[run.run_id, within]:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            Path(self.client.download_artifacts(run.run_id, name, scratch)).replace(path)
        return path


def local_folder(uri: str) -> Path | None:
    """The folder of an artifact URI on this disk, else None."""
    if uri.startswith("/"):
        return Path(unquote(uri))
    parts = urlparse(uri)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None


def served_artifacts(uri: str) -> str:
    """What is wrong with a store at ``uri``, a database, that a server wrote."""
    return f"an MLflow server wrote the store at {redact(uri)} and keeps the files of its runs"


def missing_artifacts(uris: Sequence[str]) -> str:
    """Names those of the artifact folders of finished cells that are gone; '' if all exist."""
    folders = filter(None, map(local_folder, uris))
    missing = [folder for folder in folders if not folder.is_dir()]
    if not missing:
        return ""
    return (
        f"the artifacts of {len(missing)} of {len(uris)} results are gone: {missing[0]} does not"
        " exist; where a SQLite store was moved, `doctor --repair` finds them beside it"
    )


ARTIFACT_COLUMNS = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
}


def repair_artifacts(database: Path) -> int:
    """Point the entries of a SQLite store whose folder of artifacts is gone at the folder of the
    same name beside the store, as after a move of both; returns how many were changed."""
    changed = 0
    with closing(sqlite3.connect(database, BUSY_SECONDS)) as store, store:
        for table, column in ARTIFACT_COLUMNS.items():
            for (uri,) in store.execute(f"select distinct {column} from {table}").fetchall():
                folder = local_folder(uri or "")
                if folder is None or folder.is_dir():
                    continue
                # the name of a run or model, with the folder above it
                for start in range(1, len(folder.parts) - 1):
                    beside = database.parent.joinpath(*folder.parts[start:])
                    if beside.is_dir():
                        change = f"update {table} set {column} = ? where {column} = ?"
                        changed += store.execute(change, (str(beside), uri)).rowcount
                        break
    return changed


def read_run(run: Any, experiment: str = "") -> Record:
    """``read_record`` of an MLflow run; ``experiment`` is the name of its experiment.

    One with a tag that cannot be read is a plain ``Record``, whose status is ``UNREADABLE``.
    """
    info, data = run.info, run.data
    tags = {name.removeprefix(PREFIX): value for name, value in data.tags.items()}
    fields: dict[str, Any] = {
        "run_id": info.run_id,
        "name": info.run_name or "",
        "parent": tags.get(PARENT_TAG, ""),
        "status": STATUSES.get(info.status, info.status.lower()),
        "reason": data.tags.get(FAILURE_TAG, ""),
        "experiment": experiment,
        "experiment_id": info.experiment_id,
        "artifacts": info.artifact_uri or "",
        "started": info.start_time or 0,
        "ended": info.end_time or 0,
    }
    try:
        declared = json.loads(tags.get(TAGS["declared"], "{}"))
        metrics = {
            metric_name(key, declared): value
            for key, value in data.metrics.items()
            if not key.startswith("system/")
        }
        return read_record(tags, data.params, metrics, **fields)
    except (ValueError, TypeError, AttributeError) as error:
        reason = f"a tag cannot be read: {' '.join(str(error).split())[:150]}"
        return Record(**fields | {"status": UNREADABLE, "reason": reason})


def set_naming_tags(client: Client, run: ParentRun, tags: Mapping[str, str]) -> None:
    """Set tags of ``ParentRun.naming_tags``; the runs that nest under it get its label, too."""
    client.set_tags(run.run_id, tags)
    nested = f"tags.`{PARENT_TAG}` = '{run.run_id}'"
    for child in all_pages(client.search_runs, [run.experiment_id], nested):
        client.set_tags(child.info.run_id, {"label": tags["label"]})


VIEW = "cliptex"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
MAIN_TAG = PREFIX + TAGS["main_metrics"]
TELLING_APART = ("label", "step", TAGS["weights"], "set")  # tags of parents in the view
MOST_COLUMNS = 100  # of the view; MLflow accepts 20,000 characters


def save_view(client: Client, experiment_id: str) -> None:
    """Write the view of an experiment, with the tasks of its newest parent runs: a row for each
    backbone and seed, a column and a bar for each task.

    MLflow (3.14 and later) lists such views, JSON in an experiment's tags, under "Views"; a link
    names one. The content is what the UI's own "Save view" writes.
    """
    runs = client.search_runs([experiment_id], f"tags.`{MAIN_TAG}` != ''", max_results=200)
    names = dict.fromkeys(
        metric_key(name)
        for run in runs
        for name in run.data.tags[MAIN_TAG].split(",")
        if "/" in name
    )
    shown = list(names)[:MOST_COLUMNS]
    charts = [
        {
            "type": "BAR",
            "uuid": f"main-{number}",
            "metricSectionId": "main",
            "metricKey": name,
            "displayName": name,
            "runsCountToCompare": 20,
            "deleted": False,
            "isGenerated": False,
        }
        for number, name in enumerate(shown)
    ]
    section = {"uuid": "main", "name": "Main metrics", "display": True, "isReordered": True}
    state = {
        "searchFilter": f"tags.`{PREFIX}{TAGS['run_key']}` != ''",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": [
            "attributes.`Dataset`",
            *(f"tags.`{PREFIX}{name}`" for name in TELLING_APART),
            *(f"metrics.`{name}`" for name in shown),
        ],
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": [section],
        "isAccordionReordered": True,
    }
    now = int(time.time() * 1000)
    packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    view = {"name": "Backbones by task", "createdAt": now, "updatedAt": now, "state": packed}
    client.set_experiment_tag(experiment_id, VIEW_TAG, json.dumps(view))


def view_link(ui: str, experiment_id: str) -> str:
    """The address of an experiment's saved view in the UI at ``ui``."""
    query = f"workflowType=machine_learning&viewStateShareKey={VIEW}"
    return f"{ui.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"
