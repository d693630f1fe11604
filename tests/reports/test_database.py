"""A SQLite store read directly says what MLflow's client says."""

from __future__ import annotations

import math
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Metric, Param, RunTag

from reports.database import Database
from reports.store import connect, open_mlflow

pytestmark = pytest.mark.integration

VALUES = [0.0, -1.5, 1 / 3, 1e300, math.nan, math.inf, -math.inf]
TEXTS = ["", "a", "β · λ_seg=0.3", "it's", "a\nb", "x" * 7000, "100%", "=", "NULL"]
STATUSES = ["FINISHED", "FAILED", "KILLED", "RUNNING"]


@pytest.fixture(scope="module", params=[0, 1])
def uri(request, tmp_path_factory) -> str:
    """A store of random runs, some of them deleted, in experiments of which one is deleted."""
    rng = random.Random(request.param)
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    client = open_mlflow(uri)
    locations = [None, "relative/folder", "file:///tmp/with%20space", "s3://bucket/key"]
    experiments = [
        client.create_experiment(f"e{number} '{location}'", location)
        for number, location in enumerate(locations)
    ]
    parents: list[str] = []
    for number in range(40):
        tags = {f"cliptex.t{rng.randrange(4)}": rng.choice(TEXTS) for _ in range(4)}
        if parents and rng.random() < 0.5:
            tags["mlflow.parentRunId"] = rng.choice(parents)
        run = client.create_run(
            rng.choice(experiments), start_time=1000 + number // 3, run_name=f"r{number}", tags=tags
        )
        run_id = run.info.run_id
        parents.append(run_id)
        metrics = [
            Metric(f"m/{rng.randrange(3)}", rng.choice(VALUES), rng.randrange(9), rng.randrange(5))
            for _ in range(rng.randrange(12))
        ]
        params = [Param(f"p{each}", rng.choice(TEXTS[1:5])) for each in range(rng.randrange(3))]
        client.log_batch(run_id, metrics, params, [RunTag("changed", rng.choice(TEXTS))])
        if (status := rng.choice(STATUSES)) != "RUNNING":
            client.set_terminated(run_id, status)
        if rng.random() < 0.2:
            client.delete_run(run_id)
    for number in range(12):
        model = client.create_logged_model(
            rng.choice(experiments[:2]), f"n{number % 3}", tags={"t": rng.choice("ab")}
        )
        if rng.random() < 0.2:
            client.delete_logged_model(model.model_id)
    client.delete_experiment(experiments[2])
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        connection.execute("update runs set name = '' where name in ('r1', 'r2')")
        connection.execute("update tags set value = null where key = 'changed' and value = ''")
        connection.commit()
    return uri


def plain(result: Any) -> Any:
    """What both have of experiments, runs, models and points; NaN as text, which equals itself."""
    if result is None or isinstance(result, str | int | float):
        return "nan" if result != result else result
    if isinstance(result, dict):
        return {key: plain(value) for key, value in result.items()}
    if hasattr(result, "data"):
        info = "run_id run_name status experiment_id artifact_uri start_time end_time"
        fields = {name: getattr(result.info, name) for name in info.split()}
        data = {name: getattr(result.data, name) for name in ("tags", "params", "metrics")}
        return plain(fields | data)
    names = ["experiment_id", "lifecycle_stage", "step", "timestamp", "value", "model_id"]
    return {name: plain(getattr(result, name)) for name in names if hasattr(result, name)}


def plain_all(results: Any) -> list[Any]:
    return [plain(each) for each in results]


def pages(search: Any, *arguments: Any, size: int, **options: Any) -> list[list[Any]]:
    """What the pages of a search have, in their order."""
    token, results = None, []
    while True:
        page = search(*arguments, max_results=size, page_token=token, **options)
        results.append(plain_all(page))
        token = page.token
        if not token:
            return results


def test_it_answers_as_mlflow_does(uri):
    database, client = Database(Path(uri.removeprefix("sqlite:///"))), open_mlflow(uri)
    assert database.is_readable()
    experiments = client.search_experiments(view_type=3)
    for experiment in experiments:
        theirs = client.get_experiment_by_name(experiment.name)
        assert plain(database.get_experiment_by_name(experiment.name)) == plain(theirs)
    assert database.get_experiment_by_name("none") is client.get_experiment_by_name("none") is None
    active = [(each.experiment_id, each.name) for each in client.search_experiments()]
    ours = database.search_experiments(1000)
    assert active == [(each.experiment_id, each.name) for each in ours]

    ids = [each.experiment_id for each in experiments]
    run_ids = [run.info.run_id for run in client.search_runs(ids, run_view_type=3)]
    filters = ["", "attributes.status = 'FINISHED'", f"attributes.run_id = '{run_ids[3]}'"]
    filters += [f"tags.`cliptex.t1` = '{text}'" for text in TEXTS if "'" not in text]
    filters += ["attributes.status = 'FINISHED' and tags.`cliptex.t0` != ''", "tags.`x` != ''"]
    for query in filters:
        for chosen in (ids, ids[:1]):
            for size in (7, 1000):
                ours = pages(database.search_runs, chosen, query, size=size)
                theirs = pages(client.search_runs, chosen, query, size=size)
                assert [each for each in ours if each] == [each for each in theirs if each], query
    for run_id in run_ids:
        assert plain(database.get_run(run_id)) == plain(client.get_run(run_id))
        for metric in ("m/0", "m/1", "m/2"):
            ours = database.get_metric_history(run_id, metric)
            points = [Metric(metric, each.value, each.timestamp, each.step) for each in ours]
            assert plain_all(points) == plain_all(client.get_metric_history(run_id, metric))
    for query in ("name = 'n1'", "name = 'n2' and tags.`t` = 'a'"):
        ours = [each.model_id for each in database.search_logged_models(ids, query, max_results=50)]
        assert ours == [
            each.model_id for each in client.search_logged_models(ids, query, max_results=50)
        ]


@pytest.mark.parametrize(
    "change",
    [
        "update alembic_version set version_num = 'ffffffffffff'",
        "update alembic_version set version_num = '1c2bc8da61ec'",
        "update experiments set workspace = 'mine' where experiment_id = 1",
        "drop table alembic_version",
    ],
    ids=["newer", "older", "workspaces", "none"],
)
def test_what_it_does_not_know_is_left_to_mlflow(uri, tmp_path, change):
    path = tmp_path / "copy.db"
    path.write_bytes(Path(uri.removeprefix("sqlite:///")).read_bytes())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(change)
        connection.commit()
    assert not Database(path).is_readable()


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_store_that_is_being_written_is_read_as_it_was(uri, tmp_path, mode):
    path = tmp_path / "copy.db"
    path.write_bytes(Path(uri.removeprefix("sqlite:///")).read_bytes())
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute(f"pragma journal_mode = {mode}")
        before = pages(Database(path).search_runs, ["1"], size=1000)
        writer.execute("begin immediate")
        writer.execute("delete from tags")
        assert pages(connect(f"sqlite:///{path}").search_runs, ["1"], size=1000) == before
        writer.execute("commit")
        (runs,) = pages(Database(path).search_runs, ["1"], size=1000)
        assert all(not run["tags"] for run in runs)
