"""A SQLite store read directly says what MLflow's client says; what is written to it directly is
what MLflow's client writes."""

from __future__ import annotations

import math
import random
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Metric, Param, RunTag

from reports.database import Database, Point, Unsupported
from reports.store import connect, create_database, open_mlflow
from reports.tracking import Tracker

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


def write_much(client: Any, rng: random.Random) -> None:
    """All requests that write, with values drawn at random, some of them repeated."""
    client.create_experiment("β's", "/tmp/a folder/runs", tags={"mlflow.x": "y"})
    experiment = client.get_experiment_by_name("β's").experiment_id
    for value in ("1", "2"):
        client.set_experiment_tag(experiment, "view", value)
    models = [
        client.create_model(experiment, f"n{number}", None, {"t": "x" * 5000}, {"p": "1"}).model_id
        for number in range(2)
    ]
    for number in range(8):
        tags = {"mlflow.user": "me", "a": "b"} if number % 2 else {}
        run = client.create_run(experiment, run_name=f"r{number}", tags=tags)
        run_id = run.info.run_id
        params = {f"p{each}": rng.choice(TEXTS[1:5]) for each in range(3)}
        for _ in range(2):
            client.log_params(run_id, params)
        for _ in range(3):
            client.set_tags(run_id, {f"t/{rng.randrange(3)}": rng.choice(TEXTS) for _ in range(3)})
            names = ("digest", "name", "source", "profile")
            dataset = {name: f"{name}{rng.randrange(2)}" for name in names}
            client.log_dataset(run_id, dataset, rng.choice("xy"))
            steps = [rng.randrange(3) for _ in range(5)]
            points = [Point(f"m{rng.randrange(2)}", rng.random(), 7, step) for step in steps]
            points.append(Point("top1", number, 7, 0, models[0], "voc", "d"))
            for _ in range(2):
                client.log_points(run_id, points)
        client.link_models(run_id, models[:1], [] if number % 2 else models[1:])
        client.delete_tag(run_id, rng.choice(sorted(client.get_run(run_id).data.tags)))
        if status := rng.choice(STATUSES):
            client.set_terminated(run_id, status)
        if number % 3 == 0:
            client.update_run(run_id, status="RUNNING", name=f"again {number}")


def content(path: Path) -> dict[str, list[str]]:
    """The sorted rows of every table: ids by the order of their creation, those of links by what
    they link, times only by being there."""
    with closing(sqlite3.connect(path)) as connection:
        names: dict[str, str] = {}
        ids = {"runs": "run_uuid", "datasets": "dataset_uuid", "logged_models": "model_id"}
        for table, column in ids.items():
            for number, (each,) in enumerate(
                connection.execute(f"select {column} from {table} order by rowid")
            ):
                names[each.removeprefix("m-")] = f"{table} {number}"
        links = "select input_uuid, source_type, source_id, destination_id from inputs"
        for each, kind, *ends in connection.execute(links):
            ends = [names[end.removeprefix("m-")] for end in ends]
            names[each] = f"link of {kind} {ends}"
        contents = {}
        for (table,) in connection.execute("select name from sqlite_master where type = 'table'"):
            query = f"select name from pragma_table_info('{table}')"
            columns = [
                f"{name} > 1e12" if "time" in name and table != "metrics" else f'"{name}"'
                for (name,) in connection.execute(query)
            ]
            rows = map(str, connection.execute(f"select {', '.join(columns)} from {table}"))
            shown = [re.sub("[0-9a-f]{32}", lambda found: names[found[0]], row) for row in rows]
            contents[table] = sorted(shown)
    return contents


@pytest.mark.parametrize("seed", range(4))
def test_it_writes_as_mlflow_does(seed, tmp_path):
    ours, theirs = tmp_path / "ours.db", tmp_path / "theirs.db"
    create_database(ours)
    shutil.copy(ours, theirs)
    write_much(Database(ours), random.Random(seed))
    write_much(open_mlflow(f"sqlite:///{theirs}"), random.Random(seed))
    assert sum(map(len, content(ours).values())) > 150
    assert content(ours) == content(theirs)


def test_what_mlflow_refuses_is_left_to_it_and_changes_nothing(tmp_path):
    path = tmp_path / "mlflow.db"
    create_database(path)
    database = Database(path)
    database.create_experiment("own", str(tmp_path), {})
    run_id = database.create_run("1", "r", {}).info.run_id
    database.log_params(run_id, {"a": "1"})
    database.create_experiment("own", "/elsewhere", {"a": "b"})  # another process was faster
    before = content(path)
    point = Point("m", 1.0, 2, 3)
    wrong = [
        lambda: database.create_experiment("", "/tmp", {}),
        lambda: database.create_run("7", "r", {}),
        lambda: database.create_run("1", "r", {"a/../b": "1"}),
        lambda: database.create_run("1", "", {}),
        lambda: database.set_experiment_tag("1", "a", "x" * 20_001),
        lambda: database.create_model("1", "", None, {}, {}),
        lambda: database.log_params(run_id, {"b": "1", "a": "2"}),
        lambda: database.set_tags("none", {"a": "1"}),
        lambda: database.set_tags(run_id, {"ok": "1", "$": "1"}),
        lambda: database.set_tags(run_id, {"ok": "1", "long": "x" * 8001}),
        lambda: database.log_params(run_id, {"ok": "1", ".": "1"}),
        lambda: database.log_points(run_id, [point, point._replace(key="x" * 251)]),
        lambda: database.log_points(run_id, [point, point._replace(value=None)]),
        lambda: database.log_points(run_id, [point, point._replace(model_id="m-none")]),
    ]
    for call in wrong:
        with pytest.raises((Unsupported, sqlite3.Error)):
            call()
        assert content(path) == before
    open_mlflow(f"sqlite:///{path}").delete_run(run_id)
    with pytest.raises(Unsupported):
        database.set_terminated(run_id, "FINISHED")


@pytest.mark.parametrize("name", ["a b#c", "é"])
def test_folders_of_every_name_keep_the_files_of_each_run(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    uri = f"sqlite:///{folder}/mlflow.db"
    tracker = Tracker("own", uri)
    ids = []
    for text in ("one", "two"):
        with tracker.run(text, tags={"seed": 3}) as run:
            run.log_text(text, "a.txt")
        ids.append(run.id)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    for run_id, text in zip(ids, ("one", "two"), strict=True):
        assert Path(open_mlflow(uri).download_artifacts(run_id, "a.txt")).read_text() == text
