"""Tasks that share their data are run together from the command line: the same numbers, honest
endings."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmark.__main__ import main
from benchmark.plan import plan_tasks
from benchmark.probing import Probing
from benchmark.suites.registry import find_suite
from probes.datasets.base import PreparedDataset, Sample
from reports.mlflow.client import Client
from tests.forks import Fork, command
from tests.probes.datasets.make import make_camvid

RUN = ["run", "--suite", "own", "--data-root", ".", "--backbone", "random", "--num-workers", "0"]
RUN += ["--device", "cpu", "--jobs", "1"]
RUN += ["--set", "batch_size=2", "--set", "size=32", "--set", "channels=8"]
TASKS = ["camvid/linear", "camvid/pspnet"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    make_camvid(tmp_path / "camvid", n_train=4, n_val=3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))
    return tmp_path


def results(name: str) -> dict:
    return json.loads(Path(name).read_text())["backbones"]["random"]


def children(experiment: str) -> list:
    client = Client(
        f"sqlite:///{Path.cwd()}/mlflow.db"
    )  # a relative one is remembered with the folder of the first
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return [run for run in runs if "task" in run.data.tags]


@pytest.mark.slow
def test_terminated_in_the_middle_and_run_again_gives_what_each_gives_alone(here):
    base = [*RUN, "--set", "max_iters=40"]
    for task in TASKS:
        assert (
            main([*base, "--task", task, "--experiment", "alone", "--json", f"{task[7:]}.json"])
            == 0
        )
    words = [*base, "--task", ",".join(TASKS), "--experiment", "joint"]
    victim = Fork(command, *words, output=here / "said")
    victim.wait_for(here / "home/work", "*/training-state.pth")
    while len(list((here / "home/work").glob("*/training-state.pth"))) < 2:
        assert victim.process.is_alive(), victim.text()
    victim.signal(signal.SIGTERM)
    assert victim.end() == 143, victim.text()
    assert [run.info.status for run in children("joint")] == ["KILLED", "KILLED"]
    assert main([*words, "--json", "joint.json"]) == 0
    assert results("joint.json") == {task: results(f"{task[7:]}.json")[task] for task in TASKS}
    runs = children("joint")
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 2, (
        "each goes on in its own run"
    )
    costs = [run.data.metrics for run in runs if run.info.status == "FINISHED"]
    assert all(0 < cost["cost/train_seconds"] < cost["cost/seconds"] for cost in costs)


def test_one_that_breaks_is_missing_and_the_other_is_as_alone(here, request):
    from benchmark.suites.registry import SUITES, Suite, register_suite

    register_suite(
        Suite(
            "broken-pair",
            "for tests",
            {"camvid/linear": {"lr": 1e30}, "camvid/pspnet": {}},
            ("random",),
        )
    )
    request.addfinalizer(lambda: SUITES.unregister("broken-pair"))
    command = [*RUN, "--set", "max_iters=4"]
    command[command.index("own")] = "broken-pair"
    assert (
        main([*command, "--task", "camvid/pspnet", "--experiment", "alone", "--json", "alone.json"])
        == 0
    )
    assert main([*command, "--experiment", "pair", "--json", "pair.json"]) == 1
    assert results("pair.json")["camvid/pspnet"] == results("alone.json")["camvid/pspnet"]
    (entry,) = json.loads(Path("pair.json").read_text())["holes"]
    assert entry["task"] == "camvid/linear"
    assert "not finite" in entry["reason"]
    assert {run.data.tags["task"]: run.info.status for run in children("pair")} == {
        "camvid/linear": "FAILED",
        "camvid/pspnet": "FINISHED",
    }


def test_images_are_listed_once_for_all_backbones_and_seeds():
    class Samples(list):
        listings = 0

        def __iter__(self):
            Samples.listings += 1
            return super().__iter__()

    tasks = plan_tasks(find_suite("own"), TASKS, {})
    samples = {"train": Samples(), "val": Samples([Sample("a.png"), Sample("b.png")])}
    dataset = PreparedDataset(tasks[0].spec, Path(), samples)
    executor = SimpleNamespace(several_nodes=False)
    probing = Probing(executor, "own", tasks, {task.name: dataset for task in tasks})
    assert [probing.groups(tasks) for _ in range(5)] == [[tasks]] * 5
    assert Samples.listings == 1
