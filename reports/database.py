"""Reading a SQLite store of MLflow without MLflow, whose import takes longer than all else of a
command that finds its tasks finished: MLflow's requests that read, answered from its tables.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

BUSY_SECONDS = 60  # how long to wait while another program has a SQLite database locked
TERM = re.compile(r"(?:attributes\.(\w+)|tags\.`([^`]+)`|(name)) (=|!=) '([^']*)'")
NEWEST_FIRST = ["attributes.start_time DESC"]  # MLflow's own order, too


class Unsupported(Exception):
    """MLflow has to be asked."""


class Page(list[Any]):
    """Results, and the ``token`` of the next ones."""

    token: str | None = None


class Database:
    """A file whose methods take and return what those of ``MlflowClient`` do, as far as records
    need it. They raise ``sqlite3.Error`` and ``Unsupported``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_readable(self) -> bool:
        """Whether it is a store that the installed MLflow knows; nothing of it is imported."""
        try:
            versions = self._rows("select version_num from alembic_version")
        except sqlite3.Error:
            return False
        package = find_spec("mlflow")
        assert package is not None and package.origin is not None
        scripts = Path(package.origin).parent / "store" / "db_migrations" / "versions"
        return len(versions) == 1 and any(scripts.glob(f"{versions[0][0]}_*.py"))

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        uri = f"{self.path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, BUSY_SECONDS, uri=True)) as connection:
            return connection.execute(query, values).fetchall()

    def search_experiments(self, max_results: int, page_token: str | None = None) -> Page:
        """The active ones."""
        rows = self._rows(
            "select experiment_id, name from experiments where lifecycle_stage = 'active'"
            " order by creation_time desc, experiment_id"
        )
        return Page(SimpleNamespace(experiment_id=str(each), name=name) for each, name in rows)

    def get_experiment_by_name(self, name: str) -> Any:
        """None if there is none; deleted ones count."""
        query = "select experiment_id, lifecycle_stage from experiments where name = ?"
        rows = self._rows(query, [name])
        if len(rows) > 1:  # of several workspaces
            raise Unsupported
        for identity, stage in rows:
            return SimpleNamespace(experiment_id=str(identity), name=name, lifecycle_stage=stage)
        return None

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
        where, values = _where("runs", "run_uuid", ("tags", "key", "value"), filter_string)
        chosen = (
            f"from runs where experiment_id in ({_marks(experiment_ids)})"
            f" and lifecycle_stage = 'active'{where} order by start_time desc, run_uuid limit ?"
            " offset ?"
        )
        values = [*map(int, experiment_ids), *values, max_results, offset]
        columns = "run_uuid, name, status, experiment_id, artifact_uri, start_time, end_time"
        rows = self._rows(f"select {columns} {chosen}", values)
        runs = Page(_run(*row) for row in rows)
        by_id = {run.info.run_id: run.data for run in runs}
        for field, (table, value) in DATA.items():
            query = f"select run_uuid, key, {value} from {table} where run_uuid in"
            for run_id, key, each in self._rows(f"{query} (select run_uuid {chosen})", values):
                if run_id in by_id:  # not one that was started meanwhile
                    vars(by_id[run_id])[field][key] = float("nan") if each is None else each
        runs.token = str(offset + len(runs)) if len(runs) == max_results else None
        return runs

    def search_logged_models(
        self, experiment_ids: Sequence[str], filter_string: str, max_results: int
    ) -> Page:
        """Active models, newest first."""
        tags = ("logged_model_tags", "tag_key", "tag_value")
        where, values = _where("logged_models", "model_id", tags, filter_string)
        rows = self._rows(
            f"select model_id from logged_models where experiment_id in ({_marks(experiment_ids)})"
            f" and lifecycle_stage = 'active'{where}"
            " order by creation_timestamp_ms desc, model_id limit ?",
            [*map(int, experiment_ids), *values, max_results],
        )
        return Page(SimpleNamespace(model_id=model_id) for (model_id,) in rows)

    def get_metric_history(self, run_id: str, key: str) -> Page:
        """All points of a curve."""
        rows = self._rows(
            "select step, timestamp, value, is_nan from metrics where run_uuid = ? and key = ?"
            " order by timestamp, step, value",
            [run_id, key],
        )
        return Page(
            SimpleNamespace(step=step, timestamp=at, value=float("nan") if is_nan else value)
            for step, at, value, is_nan in rows
        )


# field of a run's data → its table, and the expression of a value; NaN is NULL
DATA = {
    "tags": ("tags", "value"),
    "params": ("params", "value"),
    "metrics": ("latest_metrics", "case when is_nan then null else value end"),
}


def _run(
    run_id: str, name: str, status: str, experiment: int, uri: str, start: int, end: int
) -> Any:
    info = SimpleNamespace(
        run_id=run_id,
        run_name=name,
        status=status,
        experiment_id=str(experiment),
        artifact_uri=uri,
        start_time=start,
        end_time=end,
    )
    return SimpleNamespace(info=info, data=SimpleNamespace(tags={}, params={}, metrics={}))


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
