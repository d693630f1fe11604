"""Tasks that share their data are run together from the command line: the same numbers, honest
endings."""

from __future__ import annotations

import shlex
import signal

import pytest

from benchmark.parser import main
from tests.benchmark.run_command import read_json, run_command, runs_of, store
from tests.forks import Fork, command

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("camvid")]

RUN = "run --data-root . --backbone random --num-workers 0 --device cpu --jobs 1"
RUN += " --set batch_size=2 --set size=32 --set channels=8"
TASKS = ["camvid/linear", "camvid/pspnet"]


def results(name: str) -> dict:
    return read_json(name)["backbones"]["random"]


def cells(experiment: str) -> dict:
    return {run.data.tags["task"]: run for run in runs_of(experiment) if "task" in run.data.tags}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_stopped_in_the_middle_the_printed_command_gives_what_each_gives_alone(name, workdir):
    base = f"{RUN} --suite own --set max_iters=40"
    for task in TASKS:
        options = f"--task {task} --experiment alone --json {task[7:]}.json"
        assert run_command(f"{base} {options}") == 0
    words = f"{base} --task {','.join(TASKS)} --experiment joint --json joint.json"
    victim = Fork(command, *words.split(), output=workdir / "output")
    victim.wait_for(workdir / "home/work", "*/training-state.pth")
    while len(list((workdir / "home/work").glob("*/training-state.pth"))) < 2:
        assert victim.process.is_alive(), victim.text()
    victim.signal(getattr(signal, name))
    assert victim.end() == {"SIGTERM": 143, "SIGINT": 130, "SIGHUP": 129}[name], victim.text()
    printed = victim.text().partition("Go on with: python -m benchmark ")[2]
    assert [run.info.status for run in cells("joint").values()] == ["KILLED", "KILLED"]
    assert main(shlex.split(printed)) == 0
    assert results("joint.json") == {task: results(f"{task[7:]}.json")[task] for task in TASKS}
    assert len(runs_of("joint")) == 3, "each is resumed in its own run"
    for run in cells("joint").values():
        metrics = run.data.metrics
        assert run.info.status == "FINISHED"
        assert metrics["cost/train_seconds"] > 0 and metrics["cost/seconds"] > 0
        history = store().get_metric_history(run.info.run_id, "train/loss")
        assert {point.step for point in history} == set(range(1, 41)), "a complete curve"
