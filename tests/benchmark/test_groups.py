"""Tasks that share their data are run together from the command line: the same numbers, honest
endings."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmark.probing.submit import Probing
from benchmark.suites.registry import Suite, find_suite, register_suite
from benchmark.tasks import plan_tasks
from probes.datasets.base import PreparedDataset, Sample
from tests.benchmark.commands import read_json, run_command, runs_of
from tests.benchmark.other_package import registries
from tests.forks import Fork, command
from tests.probes.datasets.make import make_camvid

pytestmark = pytest.mark.integration

RUN = "run --data-root . --backbone random --num-workers 0 --device cpu --jobs 1"
RUN += " --set batch_size=2 --set size=32 --set channels=8"
TASKS = ["camvid/linear", "camvid/pspnet"]


@pytest.fixture(autouse=True)
def camvid(workdir):
    make_camvid(workdir / "camvid", n_train=4, n_val=3)


def results(name: str) -> dict:
    return read_json(name)["backbones"]["random"]


def cells(experiment: str) -> dict:
    return {run.data.tags["task"]: run for run in runs_of(experiment) if "task" in run.data.tags}


@pytest.mark.slow
def test_terminated_in_the_middle_and_run_again_gives_what_each_gives_alone(workdir):
    base = f"{RUN} --suite own --set max_iters=40"
    for task in TASKS:
        options = f"--task {task} --experiment alone --json {task[7:]}.json"
        assert run_command(f"{base} {options}") == 0
    words = f"{base} --task {','.join(TASKS)} --experiment joint"
    victim = Fork(command, *words.split(), output=workdir / "output")
    victim.wait_for(workdir / "home/work", "*/training-state.pth")
    while len(list((workdir / "home/work").glob("*/training-state.pth"))) < 2:
        assert victim.process.is_alive(), victim.text()
    victim.signal(signal.SIGTERM)
    assert victim.end() == 143, victim.text()
    assert [run.info.status for run in cells("joint").values()] == ["KILLED", "KILLED"]
    assert run_command(f"{words} --json joint.json") == 0
    assert results("joint.json") == {task: results(f"{task[7:]}.json")[task] for task in TASKS}
    assert len(runs_of("joint")) == 3, "each is resumed in its own run"
    for run in cells("joint").values():
        metrics = run.data.metrics
        assert run.info.status == "FINISHED"
        assert 0 < metrics["cost/train_seconds"] < metrics["cost/seconds"]


def test_a_failing_head_is_missing_and_the_other_is_as_alone():
    command = f"{RUN} --suite broken-pair --set max_iters=4"
    tasks = {"camvid/linear": {"lr": 1e30}, "camvid/pspnet": {}}
    with registries():
        register_suite(Suite("broken-pair", "for tests", tasks, ("random",)))
        options = "--task camvid/pspnet --experiment alone --json alone.json"
        assert run_command(f"{command} {options}") == 0
        assert run_command(f"{command} --experiment pair --json pair.json") == 1
    assert results("pair.json")["camvid/pspnet"] == results("alone.json")["camvid/pspnet"]
    (entry,) = read_json("pair.json")["holes"]
    assert entry["task"] == "camvid/linear" and "not finite" in entry["reason"]
    statuses = {task: run.info.status for task, run in cells("pair").items()}
    assert statuses == {"camvid/linear": "FAILED", "camvid/pspnet": "FINISHED"}


def test_images_are_listed_once_for_all_backbones_and_seeds():
    class Samples(list):
        listings = 0

        def __iter__(self):
            Samples.listings += 1
            return super().__iter__()

    tasks = plan_tasks(find_suite("own"), TASKS, {})
    samples = {"train": Samples(), "val": Samples([Sample("a.png"), Sample("b.png")])}
    dataset = PreparedDataset(tasks[0].spec, Path(), samples)
    executor = SimpleNamespace(is_remote=False)
    probing = Probing(executor, "own", "own", tasks, {task.name: dataset for task in tasks})
    assert [probing.units for _ in range(5)] == [[tasks]] * 5
    assert Samples.listings == 1
