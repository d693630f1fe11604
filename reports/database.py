"""Reading a SQLite store of MLflow without MLflow, whose import takes longer than all else of a
command that finds its tasks finished: MLflow's requests that read, answered from its tables.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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


class Unsupported(Exception):
    """MLflow has to be asked."""


class Page(list[Any]):
    """Results, each with the columns of its row, and the ``token`` of the next ones."""

    token: str | None = None


def _as_namespace(cursor: sqlite3.Cursor, row: Sequence[Any]) -> SimpleNamespace:
    return SimpleNamespace(**dict(zip((name for name, *_ in cursor.description), row, strict=True)))


class Database:
    """A file whose methods take and return what those of ``MlflowClient`` do, as far as records
    need it. They raise ``sqlite3.Error`` and ``Unsupported``."""

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


# field of a run's data → its table, and the expressions of a value and of whether it is NaN
DATA = {
    "tags": ("tags", "value, 0 as is_nan"),
    "params": ("params", "value, 0 as is_nan"),
    "metrics": ("latest_metrics", "value, is_nan"),
}


def newest_schemas() -> list[str]:
    """The schemas of the installed MLflow that none follows: one."""
    scripts = package_file("mlflow", "store", "db_migrations", "versions")
    texts = {path.name.partition("_")[0]: path.read_text() for path in scripts.glob("[!_]*.py")}
    followed = " ".join(re.findall(r"^down_revision.*", "\n".join(texts.values()), re.M))
    return [revision for revision in texts if revision not in followed]


def _value(row: Any) -> Any:
    return float("nan") if row.is_nan else row.value


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


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
