"""Two commands at once write to one MLflow server, on PostgreSQL."""

from __future__ import annotations

import signal
from collections import Counter

import pytest

from reports.store import open_mlflow
from tests.benchmark.run_command import read_json, run_command, runs_of
from tests.forks import Fork, command
from tests.kit.waiting import is_soon

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("camvid", "imagefolder")]

RUN = "run --suite own --backbone random --data-root . --device cpu --num-workers 0 --jobs 1"
RUN += " --seeds 2 --set max_iters=2 --set batch_size=2 --set size=32"
TASKS = {
    "one": ["camvid/linear", "imagefolder/linear"],
    "two": ["camvid/linear", "imagefolder/knn"],
}


def test_two_commands_at_once_write_each_number_once(workdir, mlflow_server, monkeypatch):
    tasks = {*TASKS["one"], *TASKS["two"]}
    assert run_command(f"{RUN} --task {','.join(tasks)} --json alone.json") == 0
    alone = read_json("alone.json")["by_seed"]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("CLIPTEX_HOME", str(workdir / "other"))
    client = open_mlflow(mlflow_server)
    forks: list[Fork] = []

    def running(tag: str) -> int:
        """How many runs with this tag are under way."""
        assert all(fork.process.is_alive() for fork in forks), forks[-1].text()
        runs = [run for run in runs_of("own", client) if run.info.status == "RUNNING"]
        return sum(tag in run.data.tags for run in runs)

    try:
        for name in TASKS:
            words = f"{RUN} --task {','.join(TASKS[name])} --json {name}.json"
            forks.append(Fork(command, *words.split(), output=workdir / name))
            if name == "one":
                assert is_soon(lambda: running("task")), forks[0].text()
                forks[0].signal(signal.SIGSTOP)  # in the middle, until the other has begun
                own = running("run.key")
        assert is_soon(lambda: running("run.key") > own), forks[1].text()
    finally:
        forks[0].signal(signal.SIGCONT)
    assert [fork.end() for fork in forks] == [0, 0], "\n".join(fork.text() for fork in forks)

    runs = [run for run in runs_of("own", client) if "task" in run.data.tags]
    assert {run.info.status for run in runs} == {"FINISHED"}
    stored = Counter((run.data.tags["task"], run.data.tags["seed"]) for run in runs)
    assert stored == Counter((task, seed) for task in tasks for seed in "01")
    for run in runs:
        expected = alone[run.data.tags["seed"]]["random"][run.data.tags["task"]]
        assert {name: run.data.metrics[name] for name in expected} == pytest.approx(expected)
    for name in TASKS:
        numbers = read_json(f"{name}.json")["by_seed"]
        for seed in "01":
            expected = {task: alone[seed]["random"][task] for task in TASKS[name]}
            assert numbers[seed] == {"random": expected}
