"""Units of two commands at once: a cell is run by one of them, the other waits and finds it."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

import backbones
import benchmark.catalog  # noqa: F401
from benchmark.cell import cell_locks, log_backbone
from benchmark.data import prepare_data
from benchmark.options import DataOptions
from benchmark.plan import plan_tasks
from benchmark.records import BackboneInfo, DatasetRecord
from benchmark.suites.registry import find_suite
from benchmark.unit import ProbeUnit, describe_backbone, probe_unit
from common.settings import parse_pairs
from reports.mlflow.client import Client
from reports.mlflow.run import Tracker
from tests.forks import Fork, command
from tests.probes.datasets.make import make_camvid, make_imagefolder

TASKS = ["camvid/linear", "imagefolder/linear"]
SETTINGS = ["max_iters=2", "batch_size=2", "size=32", "epochs=2"]
RUN = [
    "run",
    "--suite",
    "own",
    "--task",
    ",".join(TASKS),
    "--backbone",
    "random",
    "--data-root",
    ".",
    "--device",
    "cpu",
]
RUN += [
    "--num-workers",
    "0",
    "--jobs",
    "1",
    *[word for each in SETTINGS for word in ("--set", each)],
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    make_camvid(tmp_path / "camvid", n_train=4, n_val=3)
    make_imagefolder(tmp_path / "imagefolder", n_train=8, n_val=4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))
    return tmp_path


def cells() -> list[str]:
    """Keys of the cells that ``RUN`` runs."""
    tasks = plan_tasks(find_suite("own"), TASKS, parse_pairs(SETTINGS))
    data = prepare_data(tasks, DataOptions(data_root=Path()), num_workers=0)
    backbone = BackboneInfo.of(backbones.create("random", seed=0))
    return [backbone.cell_key(task.protocol(data[task.name]), 0) for task in tasks]


@pytest.mark.slow
def test_two_commands_at_once_run_each_cell_once(here):
    """Two that are not the same, of which one's cell is the other's too. Both have begun, and wait
    for cells that a third process works on, before either can run one."""
    client = Client(Tracker("own").uri)
    experiment = client.get_experiment_by_name("own").experiment_id
    with ExitStack() as stack:
        stack.enter_context(cell_locks(cells()))
        tasks_of = {"one": TASKS, "two": TASKS[:1]}
        both = [
            Fork(
                command,
                *RUN[:4],
                ",".join(tasks),
                *RUN[5:],
                "--json",
                f"{name}.json",
                output=here / name,
            )
            for name, tasks in tasks_of.items()
        ]
        deadline = time.monotonic() + 120
        while len(client.search_runs([experiment], "attributes.status = 'RUNNING'")) < 2:
            assert time.monotonic() < deadline and all(fork.process.is_alive() for fork in both), (
                both[0].text()
            )
            time.sleep(0.1)
        time.sleep(2)
        started = client.search_runs([experiment])
        assert len(started) == 2 and not any("task" in run.data.tags for run in started), (
            "nobody runs a locked cell"
        )
    assert [fork.end() for fork in both] == [0, 0], "\n".join(fork.text() for fork in both)
    runs = client.search_runs([experiment])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert sorted(run.data.tags["task"] for run in runs if "task" in run.data.tags) == TASKS
    documents = [json.loads(Path(f"{name}.json").read_text()) for name in ("one", "two")]
    first, second = (each["backbones"]["random"] for each in documents)
    assert set(first) == set(TASKS) and second == {TASKS[0]: first[TASKS[0]]}
    assert documents[0]["mlflow"]["run_ids"] != documents[1]["mlflow"]["run_ids"]
    by_id = {run.info.run_id: run for run in runs}
    parents = [by_id[each["mlflow"]["run_ids"]["random"]] for each in documents]
    cached = [tag for run in parents for tag in run.data.tags if tag.startswith("cached.")]
    assert cached == ["cached.camvid.linear"], "it was found by the other"


def test_a_forced_unit_whose_worker_was_lost_goes_on_with_what_it_had_finished(here):
    tracker = Tracker("forced")
    with tracker.run("parent") as parent, tracker.run("another") as another:
        (task,) = plan_tasks(find_suite("own"), ["imagefolder/linear"], {"epochs": "2"})
        data = prepare_data([task], DataOptions(data_root=Path()), 0)[task.name]
        config = {"name": "random", "seed": 0}
        backbone = describe_backbone(config)
        unit = ProbeUnit(
            tasks=(task,),
            data={task.name: DatasetRecord.of(data)},
            cell_keys={task.name: backbone.cell_key(task.protocol(data), 0)},
            data_root=Path(),
            backbone=backbone,
            config=config,
            model=log_backbone(tracker, backbone),
            seed=0,
            experiment="forced",
            parent=parent.id,
            device="cpu",
            num_workers=0,
            force=True,
        )
        (first,), (again,) = probe_unit(unit), probe_unit(unit)
        assert (first.status, again.status) == ("done", "cached")
        assert again.run_id == first.run_id and again.metrics == first.metrics
        (other,) = probe_unit(replace(unit, parent=another.id))
        assert other.status == "done" and other.run_id != first.run_id
