"""Two commands at once: a cell is run by one of them, the other waits and finds it; equal commands
have one parent."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

import backbones
import benchmark.catalog  # noqa: F401
from benchmark.cell import cell_locks, probe_unit
from benchmark.finished import finished_cells
from benchmark.options import DataOptions
from benchmark.plan import find_folders, prepare_data
from benchmark.run import log_backbone
from benchmark.suites import SUITES
from benchmark.tasks import BackboneInfo, Job, describe_backbone, plan_tasks
from cliptex_common.files import home, write_json
from cliptex_common.settings import parse_pairs
from reports.tracking import Tracker
from tests.benchmark.run_command import read_json, runs_of
from tests.forks import Fork, command
from tests.kit.waiting import is_soon

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("camvid", "imagefolder")]

TASKS = ["camvid/linear", "imagefolder/linear"]
SETTINGS = ["max_iters=2", "batch_size=2", "size=32", "epochs=2"]
RUN = "run --suite own --backbone random --data-root . --device cpu --num-workers 0 --jobs 1"
RUN += "".join(f" --set {each}" for each in SETTINGS)


def cells() -> list[str]:
    """Keys of the cells that ``RUN`` runs."""
    tasks = plan_tasks(SUITES.find("own"), TASKS, parse_pairs(SETTINGS))
    options = DataOptions(data_root=Path())
    data = prepare_data(tasks, find_folders(tasks, options), options, num_workers=0)
    backbone = BackboneInfo.of(backbones.create("random", seed=0), {})
    conditions = {task.name: task.conditions(data[task.name]) for task in tasks}
    return [*backbone.cell_keys(tasks, conditions, 0).values()]


def running() -> list:
    """MLflow runs under way; none while others keep the database locked."""
    with suppress(MlflowException):
        return [run for run in runs_of("own") if run.info.status == "RUNNING"]
    return []


def wait_until(holds: Callable[[], object], forks: list[Fork]) -> None:
    def ended() -> bool:
        return not all(fork.process.is_alive() for fork in forks)

    over = is_soon(lambda: holds() or ended(), every=0.1)
    assert over and not ended(), forks[0].text()


@pytest.mark.parametrize("end", ["finishes", pytest.param("is killed", marks=pytest.mark.slow)])
def test_two_equal_commands_at_once_have_one_parent(workdir, end):
    """The second waits for the first, then finds its cell, or goes on where it was killed."""
    Tracker("own")
    forks = []
    with cell_locks(cells()):
        for name in ("one", "two"):
            words = f"{RUN} --task {TASKS[0]} --json {name}.json"
            forks.append(Fork(command, *words.split(), output=workdir / name))
        wait_until(running, forks)
        wait_until(lambda: any("waiting for it" in fork.text() for fork in forks), forks)
        forks.sort(key=lambda fork: "waiting for it" in fork.text())
        if end == "is killed":
            forks[0].signal(signal.SIGKILL)
            assert forks[0].end() == -signal.SIGKILL
    codes = [fork.end() for fork in forks]
    assert codes == [0 if end == "finishes" else -signal.SIGKILL, 0], forks[1].text()
    runs = {run.info.run_id: run for run in runs_of("own")}
    assert [run.info.status for run in runs.values()] == ["FINISHED"] * 2, "parent and cell"
    (parent,) = [key for key, run in runs.items() if "task" not in run.data.tags]
    for document in workdir.glob("*.json"):
        assert read_json(document)["mlflow"]["run_ids"]["random"] == parent


@pytest.mark.slow
def test_two_commands_at_once_run_each_cell_once(workdir):
    """Of different commands that share a cell; both begin while a third process holds all cells."""
    Tracker("own")
    with ExitStack() as stack:
        stack.enter_context(cell_locks(cells()))
        forks = []
        for name, tasks in {"one": TASKS, "two": TASKS[:1]}.items():
            words = f"{RUN} --task {','.join(tasks)} --json {name}.json"
            forks.append(Fork(command, *words.split(), output=workdir / name))
        wait_until(lambda: len(running()) == 2, forks)
        time.sleep(2)
        started = runs_of("own")
        assert len(started) == 2, "nobody runs a locked cell"
        assert not any("task" in run.data.tags for run in started)
    assert [fork.end() for fork in forks] == [0, 0], "\n".join(fork.text() for fork in forks)
    runs = {run.info.run_id: run for run in runs_of("own")}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    tasks = [run.data.tags["task"] for run in runs.values() if "task" in run.data.tags]
    assert sorted(tasks) == TASKS
    documents = [read_json(f"{name}.json") for name in ("one", "two")]
    first, second = (each["backbones"]["random"] for each in documents)
    assert set(first) == set(TASKS) and second == {TASKS[0]: first[TASKS[0]]}
    parents = [each["mlflow"]["run_ids"]["random"] for each in documents]
    assert parents[0] != parents[1]
    cached = [tag for each in parents for tag in runs[each].data.tags if tag.startswith("cached.")]
    assert cached == ["cached.camvid.linear"], "one command found the result of the other"


def test_a_forced_unit_whose_worker_was_lost_goes_on_with_what_it_had_finished():
    tracker = Tracker("forced")
    with tracker.run("parent") as parent, tracker.run("another") as another:
        (task,) = plan_tasks(SUITES.find("own"), ["imagefolder/linear"], {"epochs": "2"})
        options = DataOptions(data_root=Path())
        data = prepare_data([task], find_folders([task], options), options, 0)[task.name]
        backbone = describe_backbone({"name": "random", "seed": 0})
        unit = Job(
            tasks=(task,),
            data={task.name: data},
            conditions={task.name: task.conditions(data)},
            data_root=Path(),
            backbone=backbone,
            model_id=log_backbone(tracker, backbone),
            seed=0,
            suite="own",
            experiment="forced",
            parent_id=parent.id,
            device="cpu",
            num_workers=0,
            force=True,
        )
        (first,), (again,) = probe_unit(unit), probe_unit(unit)
        assert (first.status, again.status) == ("done", "cached")
        assert again.run_id == first.run_id and again.metrics == first.metrics
        leftover = home() / "work" / first.key  # killed after the cell was finished
        write_json(leftover / "cell.json", {"run": first.run_id})
        finished_cells(tracker, {task.name: first.key}, unit.backbone)
        assert not leftover.exists()
        (other,) = probe_unit(replace(unit, parent_id=another.id))
        assert other.status == "done" and other.run_id != first.run_id
