"""A SQLite store of MLflow without MLflow, whose import takes longer than all else of a small run:
the requests of records and runs, answered from its tables and written to them as MLflow does.
"""

from __future__ import annotations

import posixpath
import re
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from cliptex_common.files import package_file

BUSY_SECONDS = 60  # how long to wait while another program has a SQLite database locked
TERM = re.compile(r"(?:attributes\.(\w+)|tags\.`([^`]+)`|(name)) (=|!=) '([^']*)'")
NAME_TAG = "mlflow.runName"
EXPERIMENTS = (
    "select cast(experiment_id as text) as experiment_id, experiment_id as id, name,"
    " lifecycle_stage from experiments"
)
RUN = (
    "run_uuid as run_id, name as run_name, status, artifact_uri, start_time, end_time,"
    " cast(experiment_id as text) as experiment_id"
)
NEWEST_FIRST = ["attributes.start_time DESC"]  # MLflow's own order, too


KEY = re.compile(r"[\w.\- :]([/\w.\- :]{0,249})")  # of a tag, param or metric
PARAM_LENGTH, TAG_LENGTH = 6000, 8000  # characters of a value that MLflow does not cut


class Unsupported(Exception):
    """MLflow has to be asked."""


class Point(NamedTuple):
    """A finite value of a metric at a time in milliseconds, and the model and data it is of."""

    key: str
    value: float
    timestamp: int
    step: int
    model_id: str | None = None
    dataset_name: str | None = None
    dataset_digest: str | None = None


class Page(list[Any]):
    """Results, each with the columns of its row, and the ``token`` of the next ones."""

    token: str | None = None


def _as_namespace(cursor: sqlite3.Cursor, row: Sequence[Any]) -> SimpleNamespace:
    return SimpleNamespace(**dict(zip((name for name, *_ in cursor.description), row, strict=True)))


class Database:
    """A file whose methods are those of ``MlflowClient`` and ``Requests``, as far as records and
    runs need them. They raise ``sqlite3.Error`` and ``Unsupported``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_readable(self) -> bool:
        """Whether it is a store as the installed MLflow writes it, with the default workspace
        alone; nothing of MLflow is imported."""
        query = (
            "select version_num from alembic_version where not exists"
            " (select 1 from experiments where workspace != 'default')"
        )
        try:
            (rows,) = self._read((query, []))
        except sqlite3.Error:
            return False
        return [row.version_num for row in rows] == newest_schemas()

    def _read(self, *queries: tuple[str, Sequence[Any]]) -> list[Page]:
        """The rows of each query (SQL and its values), all of one state of the file."""
        uri = f"{self.path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, BUSY_SECONDS, uri=True)) as connection:
            connection.row_factory = _as_namespace
            connection.execute("begin")
            try:
                return [Page(connection.execute(*query)) for query in queries]
            except UnicodeError as error:
                raise sqlite3.DatabaseError("the file is damaged") from error

    def search_experiments(self, max_results: int, page_token: str | None = None) -> Page:
        """The active ones."""
        query = f"{EXPERIMENTS} where lifecycle_stage = 'active' order by creation_time desc, id"
        return self._read((query, []))[0]

    def get_experiment_by_name(self, name: str) -> Any:
        """None if there is none; deleted ones count."""
        (experiments,) = self._read((f"{EXPERIMENTS} where name = ?", [name]))
        return experiments[0] if experiments else None

    def search_runs(
        self,
        experiment_ids: Sequence[str],
        filter_string: str = "",
        max_results: int = 1000,
        page_token: str | None = None,
        order_by: Sequence[str] = (),
    ) -> Page:
        """Active runs, newest first, without their inputs."""
        if list(order_by or NEWEST_FIRST) != NEWEST_FIRST:
            raise Unsupported
        offset = int(page_token or 0)
        where, terms = _where("runs", "run_uuid", ("tags", "key", "value"), filter_string)
        values = [*map(int, experiment_ids), *terms, max_results, offset]
        chosen = (
            f"from runs where experiment_id in ({_marks(experiment_ids)})"
            f" and lifecycle_stage = 'active'{where} order by start_time desc, run_uuid limit ?"
            " offset ?"
        )
        runs = self._runs(chosen, values)
        runs.token = str(offset + len(runs)) if len(runs) == max_results else None
        return runs

    def get_run(self, run_id: str) -> Any:
        """A run by its id, also a deleted one, without its inputs."""
        for run in self._runs("from runs where run_uuid = ?", [run_id]):
            return run
        raise Unsupported

    def _runs(self, chosen: str, values: Sequence[Any]) -> Page:
        """The runs of a query without its columns."""
        queries = [f"select {RUN} {chosen}"] + [
            f"select run_uuid, key, {value} from {table} where run_uuid in"
            f" (select run_uuid {chosen})"
            for table, value in DATA.values()
        ]
        infos, *data = self._read(*((query, values) for query in queries))
        by_id: dict[str, dict[str, Any]]
        by_id = {info.run_id: {field: {} for field in DATA} for info in infos}
        for field, rows in zip(DATA, data, strict=True):
            for row in rows:
                by_id[row.run_uuid][field][row.key] = _value(row)
        for info in infos:
            info.run_name = info.run_name or by_id[info.run_id]["tags"].get(NAME_TAG)
        return Page(
            SimpleNamespace(info=info, data=SimpleNamespace(**by_id[info.run_id])) for info in infos
        )

    def search_logged_models(
        self, experiment_ids: Sequence[str], filter_string: str, max_results: int
    ) -> Page:
        """Active models, newest first."""
        tags = ("logged_model_tags", "tag_key", "tag_value")
        where, values = _where("logged_models", "model_id", tags, filter_string)
        query = (
            f"select model_id from logged_models where experiment_id in ({_marks(experiment_ids)})"
            f" and lifecycle_stage = 'active'{where}"
            " order by creation_timestamp_ms desc, model_id limit ?"
        )
        return self._read((query, [*map(int, experiment_ids), *values, max_results]))[0]

    def get_metric_history(self, run_id: str, key: str) -> Page:
        """All points of a curve."""
        query = (
            "select step, timestamp, value, is_nan from metrics where run_uuid = ? and key = ?"
            " order by timestamp, step, value"
        )
        (points,) = self._read((query, [run_id, key]))
        for point in points:
            point.value = _value(point)
        return points

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Changes that are written together or, where one fails, not at all."""
        uri = f"{self.path.absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, BUSY_SECONDS, uri=True)) as connection, connection:
            connection.execute("pragma foreign_keys = on")
            connection.execute("begin immediate")
            yield connection

    @contextmanager
    def _change(self, run_id: str) -> Iterator[tuple[sqlite3.Connection, int]]:
        """A transaction for a run that is not deleted, and the id of its experiment."""
        query = "select experiment_id from runs where run_uuid = ? and lifecycle_stage = 'active'"
        with self._transaction() as connection:
            for (experiment,) in connection.execute(query, [run_id]):
                yield connection, experiment
                return
            raise Unsupported

    def create_experiment(self, name: str, folder: str, tags: Mapping[str, str]) -> None:
        """A new experiment whose artifacts are in ``folder``, unless there is one of that name."""
        if not 0 < len(name) <= 500:
            raise Unsupported
        now = _milliseconds()
        row = {"name": name, "artifact_location": folder, "lifecycle_stage": "active"}
        times = {"creation_time": now, "last_update_time": now}
        with self._transaction() as connection:
            if experiment := _insert(connection, "experiments", [{**row, **times}], "or ignore"):
                _insert(connection, "experiment_tags", _pairs(tags, experiment_id=experiment))

    def set_experiment_tag(self, experiment_id: str, key: str, value: str) -> None:
        """Set or replace a tag."""
        rows = _pairs({key: value}, 20_000, experiment_id=int(experiment_id))
        self._folder(experiment_id)
        with self._transaction() as connection:
            _insert(connection, "experiment_tags", rows, "or replace")

    def create_run(self, experiment_id: str, run_name: str, tags: Mapping[str, str]) -> Any:
        """A new run, which is RUNNING, with its id alone."""
        if not run_name:
            raise Unsupported
        run_id = uuid.uuid4().hex
        values: dict[str, Any]
        values = {"name": run_name, "source_type": "UNKNOWN", "source_name": ""}
        values |= {"entry_point_name": "", "status": "RUNNING"}
        values["user_id"] = tags.get("mlflow.user", "unknown")
        values |= {"start_time": _milliseconds(), "source_version": "", "lifecycle_stage": "active"}
        values["artifact_uri"] = self._folder(experiment_id, run_id)
        values |= {"run_uuid": run_id, "experiment_id": int(experiment_id)}
        with self._transaction() as connection:
            _insert(connection, "runs", [values])
            named = {**tags, NAME_TAG: run_name}
            _insert(connection, "tags", _pairs(named, run_uuid=run_id))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def _folder(self, experiment_id: str, *names: str) -> str:
        """A folder on this disk for artifacts of an experiment that is not deleted."""
        query = "select artifact_location from experiments where experiment_id = ?"
        (rows,) = self._read((f"{query} and lifecycle_stage = 'active'", [int(experiment_id)]))
        if not rows or not str(rows[0].artifact_location).startswith("/"):
            raise Unsupported
        return posixpath.join(rows[0].artifact_location, *names, "artifacts")

    def update_run(self, run_id: str, status: str | None = None, name: str | None = None) -> None:
        """Set a run's status and name."""
        if status is None or not name:
            raise Unsupported
        with self._change(run_id) as (connection, _):
            query = "update runs set status = ?, name = ? where run_uuid = ?"
            connection.execute(query, [status, name, run_id])
            _insert(connection, "tags", _pairs({NAME_TAG: name}, run_uuid=run_id), "or replace")

    def set_terminated(self, run_id: str, status: str) -> None:
        """End a run."""
        with self._change(run_id) as (connection, _):
            query = "update runs set status = ?, end_time = ? where run_uuid = ?"
            connection.execute(query, [status, _milliseconds(), run_id])

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set or replace tags."""
        rows = _pairs(tags, TAG_LENGTH, run_uuid=run_id)
        with self._change(run_id) as (connection, _):
            _insert(connection, "tags", rows, "or replace")

    def delete_tag(self, run_id: str, key: str) -> None:
        """Remove a tag that a run may have."""
        with self._change(run_id) as (connection, _):
            connection.execute("delete from tags where run_uuid = ? and key = ?", [run_id, key])

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Record params, which never change."""
        rows = _pairs(params, PARAM_LENGTH, run_uuid=run_id)
        query = "select value from params where run_uuid = ? and key = ?"
        with self._change(run_id) as (connection, _):
            for row in rows:
                stored = connection.execute(query, [run_id, row["key"]]).fetchall()
                if stored not in ([], [(row["value"],)]):
                    raise Unsupported
            _insert(connection, "params", rows, "or ignore")

    def log_points(self, run_id: str, points: Sequence[Point]) -> None:
        """Record points of curves, each once; a metric's own value is that of its last step."""
        _check_keys(point.key for point in points)
        columns = ("key", "value", "timestamp", "step")
        rows = [
            {**dict(zip(columns, point, strict=False)), "is_nan": 0, "run_uuid": run_id}
            for point in points
        ]
        later = (
            "on conflict (key, run_uuid) do update set value = excluded.value,"
            " step = excluded.step, timestamp = excluded.timestamp, is_nan = excluded.is_nan"
            " where (excluded.step, excluded.timestamp, excluded.value) > (step, timestamp, value)"
        )
        with self._change(run_id) as (connection, experiment):
            _insert(connection, "metrics", rows, "or ignore")
            _insert(connection, "latest_metrics", rows, after=later)
            of_models = [
                {
                    "model_id": point.model_id,
                    "metric_name": point.key,
                    "metric_timestamp_ms": point.timestamp,
                    "metric_step": point.step,
                    "metric_value": point.value,
                    "experiment_id": experiment,
                    "run_id": run_id,
                    "dataset_name": point.dataset_name,
                    "dataset_digest": point.dataset_digest,
                }
                for point in points
                if point.model_id is not None
            ]
            _insert(connection, "logged_model_metrics", of_models, "or ignore")

    def log_dataset(self, run_id: str, dataset: Mapping[str, str], context: str) -> None:
        """Link a dataset (name, digest, source, profile); the first of a digest is kept."""
        if len(dataset["name"]) > 500 or len(dataset["source"]) > 65_535:
            raise Unsupported
        with self._change(run_id) as (connection, experiment):
            row = {"experiment_id": experiment, "name": dataset["name"]}
            row |= {"digest": dataset["digest"], "dataset_uuid": uuid.uuid4().hex}
            row |= {"dataset_source_type": "local", "dataset_source": dataset["source"]}
            row["dataset_profile"] = dataset["profile"]
            _insert(connection, "datasets", [row], "or ignore")
            query = "select dataset_uuid from datasets where experiment_id = ? and name = ?"
            values = [experiment, dataset["name"], dataset["digest"]]
            ((stored,),) = connection.execute(f"{query} and digest = ?", values)
            link = _link("DATASET", stored, "RUN", run_id)
            if _insert(connection, "inputs", [link], "or ignore"):
                tag = {"name": "mlflow.data.context", "value": context}
                _insert(connection, "input_tags", [{"input_uuid": link["input_uuid"], **tag}])

    def link_models(self, run_id: str, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Link models, by id, that a run uses or has created."""
        links = [_link("RUN_INPUT", run_id, "MODEL_INPUT", model) for model in inputs]
        links += [_link("RUN_OUTPUT", run_id, "MODEL_OUTPUT", model) for model in outputs]
        with self._change(run_id) as (connection, _):
            _insert(connection, "inputs", links, "or replace")

    def create_model(
        self,
        experiment_id: str,
        name: str,
        run_id: str | None,
        tags: dict[str, str],
        params: dict[str, str],
    ) -> Any:
        """A new LoggedModel of a backbone, which is READY."""
        if not name:
            raise Unsupported
        _check_keys([*tags, *params])
        model_id, now = f"m-{uuid.uuid4().hex}", _milliseconds()
        identity = {"model_id": model_id, "experiment_id": int(experiment_id)}
        values = {**identity, "name": name, "status": 2, "lifecycle_stage": "active"}
        values |= {"creation_timestamp_ms": now, "last_updated_timestamp_ms": now}
        values["artifact_location"] = self._folder(experiment_id, "models", model_id)
        values |= {"model_type": "backbone", "source_run_id": run_id}
        with self._transaction() as connection:
            _insert(connection, "logged_models", [values])
            for table, pairs in {"param": params, "tag": tags}.items():
                columns = (f"{table}_key", f"{table}_value")
                rows = [
                    {**identity, **dict(zip(columns, pair, strict=True))} for pair in pairs.items()
                ]
                _insert(connection, f"logged_model_{table}s", rows)
        return SimpleNamespace(**values)


def _milliseconds() -> int:
    return int(time.time() * 1000)


def _insert(
    connection: sqlite3.Connection,
    table: str,
    rows: Sequence[Mapping[str, Any]],
    conflict: str = "",
    after: str = "",
) -> int:
    """Insert rows of equal columns; returns the last one's number, 0 where it was ignored."""
    last = 0
    for row in rows:
        names = ", ".join(row)
        query = f"insert {conflict} into {table} ({names}) values ({_marks(row)}) {after}"
        cursor = connection.execute(query, list(row.values()))
        last = cursor.lastrowid or 0 if cursor.rowcount > 0 else 0
    return last


def _check_keys(keys: Iterable[str]) -> None:
    for key in keys:
        is_path = posixpath.normpath(key) == key != "." and not key.startswith("..")
        if not KEY.fullmatch(key) or not is_path:
            raise Unsupported


def _pairs(
    pairs: Mapping[str, str], length: int | None = None, **identity: Any
) -> list[dict[str, Any]]:
    """Rows of tags or params.

    Raises:
        Unsupported: for a key, or a value longer than ``length``.
    """
    _check_keys(pairs)
    rows = [{"key": key, "value": str(value), **identity} for key, value in pairs.items()]
    if length is not None and any(len(row["value"]) > length for row in rows):
        raise Unsupported
    return rows


def _link(source_type: str, source: str, destination_type: str, destination: str) -> dict[str, str]:
    """A row of ``inputs``."""
    link = {"source_type": source_type, "source_id": source, "destination_id": destination}
    return {**link, "destination_type": destination_type, "input_uuid": uuid.uuid4().hex}


# field of a run's data → its table, and the expressions of a value and of whether it is NaN
DATA = {
    "tags": ("tags", "value, 0 as is_nan"),
    "params": ("params", "value, 0 as is_nan"),
    "metrics": ("latest_metrics", "value, is_nan"),
}


@cache
def newest_schemas() -> list[str]:
    """The schemas of the installed MLflow that none follows: one."""
    scripts = package_file("mlflow", "store", "db_migrations", "versions")
    texts = {path.name.partition("_")[0]: path.read_text() for path in scripts.glob("[!_]*.py")}
    followed = " ".join(re.findall(r"^down_revision.*", "\n".join(texts.values()), re.M))
    return [revision for revision in texts if revision not in followed]


def _value(row: Any) -> Any:
    return float("nan") if row.is_nan else row.value


def _marks(values: Iterable[Any]) -> str:
    return ", ".join("?" for _ in values)


def _where(
    table: str, identity: str, tags: tuple[str, str, str], filter_string: str
) -> tuple[str, list[str]]:
    """An MLflow filter as SQL that begins with ``and``, and its values."""
    terms = list(TERM.finditer(filter_string))
    if " and ".join(term[0] for term in terms) != filter_string:
        raise Unsupported
    where, values = "", list[str]()
    of_tags, key_column, value_column = tags
    for attribute, tag, name, operator, value in (term.groups() for term in terms):
        if tag:
            where += (
                f" and exists (select 1 from {of_tags} where {of_tags}.{identity} ="
                f" {table}.{identity} and {key_column} = ? and {value_column} {operator} ?)"
            )
            values += [tag, value]
            continue
        column = {"run_id": "run_uuid", "status": "status"}.get(attribute, name)
        if column is None:
            raise Unsupported
        where += f" and {column} {operator} ?"
        values.append(value)
    return where, values
