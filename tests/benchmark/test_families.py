"""Tasks that share their data are run together from the command line: the same numbers, honest endings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from benchmark.__main__ import main
from tests.probes.datasets.make import make_camvid

RUN = ["run", "--suite", "own", "--data-root", ".", "--backbone", "random", "--workers", "0", "--device", "cpu"]
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
    client = MlflowClient(
        f"sqlite:///{Path.cwd()}/mlflow.db"
    )  # a relative one is remembered with the folder of the first
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return [run for run in runs if "task" in run.data.tags]


@pytest.mark.slow
def test_terminated_in_the_middle_and_run_again_gives_what_each_gives_alone(here):
    whole = [*RUN, "--set", "max_iters=40"]
    for task in TASKS:
        assert main([*whole, "--task", task, "--experiment", "alone", "--json", f"{task[7:]}.json"]) == 0
    command = [*whole, "--task", ",".join(TASKS), "--experiment", "joint"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmark", *command],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 300
    while len(list((here / "home/work").glob("*/training-state.pth"))) < 2:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=60)[0]
    assert process.returncode == 130, told
    assert [run.info.status for run in children("joint")] == ["KILLED", "KILLED"]
    assert main([*command, "--json", "joint.json"]) == 0
    assert results("joint.json") == {task: results(f"{task[7:]}.json")[task] for task in TASKS}
    runs = children("joint")
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 2 + ["KILLED"] * 2
    costs = [run.data.metrics for run in runs if run.info.status == "FINISHED"]
    assert all(0 < cost["cost/train_seconds"] < cost["cost/seconds"] for cost in costs)


def test_one_that_breaks_is_a_hole_and_the_other_is_as_alone(here, capsys):
    from benchmark.suites.registry import SUITES, Suite, register_suite

    if "broken-pair" not in SUITES:
        register_suite(
            Suite("broken-pair", "for tests", {"camvid/linear": {"lr": 1e30}, "camvid/pspnet": {}}, ("random",))
        )
    command = [*RUN, "--set", "max_iters=4"]
    command[command.index("own")] = "broken-pair"
    assert main([*command, "--task", "camvid/pspnet", "--experiment", "alone", "--json", "alone.json"]) == 0
    assert main([*command, "--experiment", "pair", "--json", "pair.json"]) == 1
    assert results("pair.json")["camvid/pspnet"] == results("alone.json")["camvid/pspnet"]
    (hole,) = json.loads(Path("pair.json").read_text())["holes"]
    assert hole["task"] == "camvid/linear"
    assert "not finite" in hole["reason"]
    assert {run.data.tags["task"]: run.info.status for run in children("pair")} == {
        "camvid/linear": "FAILED",
        "camvid/pspnet": "FINISHED",
    }
