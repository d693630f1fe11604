"""One suite for all executors: this process, two processes, a real SLURM of two nodes, a Ray, a Ray
of three nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from concurrent.futures import CancelledError, as_completed
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmark.execution import ExecutorSpec, WorkerLost, base, make_executor
from common.errors import UserError
from tests.benchmark.execution import tasks
from tests.benchmark.execution.watching import Watched, busiest, gone, until_true

ROOM = {"here": 1, "local": 2, "slurm": 4, "ray": 2, "ray cluster": 5}  # cores
REMOTE = [name for name in ROOM if name != "here"]


@pytest.fixture(scope="module")
def make(request):
    """Makes executors of one kind."""
    kind = request.param
    specs = {
        "here": ExecutorSpec(jobs=1, device="cpu"),
        "local": ExecutorSpec(settings={"cpus": "2"}, device="cpu"),
        "slurm": ExecutorSpec("slurm"),
        "ray": ExecutorSpec("ray", {"num_cpus": "2", "num_gpus": "8"}, device="cpu"),
    }
    with pytest.MonkeyPatch.context() as patch:
        if kind == "slurm":
            patch.setenv("SLURM_CONF", request.getfixturevalue("slurm_config"))
            from benchmark.execution import slurm

            patch.setattr(slurm, "ASK", 0.5)  # seconds; a controller with one user
            patch.setattr(slurm, "GRACE", 0.5)  # a disk of this machine
        elif kind.startswith("ray"):
            pytest.importorskip("ray", reason="no Ray: pip install 'ray[default]'")
        if kind == "ray cluster":
            address = request.getfixturevalue("ray_cluster").address
            specs[kind] = ExecutorSpec("ray", {"address": address}, device="cpu")
        patch.setattr(base, "threads_of_a_task", lambda: 1)
        patch.setattr(base, "POLL", 0.1)
        yield lambda bar=None: make_executor(specs[kind], bar or Watched())


@pytest.fixture(scope="module")
def executor(make):
    """One that the tests share: some take seconds to start."""
    with make() as executor:
        yield executor


def everywhere(names=tuple(ROOM)):
    return pytest.mark.parametrize("make", names, indirect=True, scope="module")


def room_of(make_or_id) -> int:
    return ROOM[make_or_id.node.callspec.params["make"]]


@contextmanager
def interrupted():
    """Ctrl-C while the block runs: what a test lets happen here is not pytest's own end."""
    with pytest.raises(KeyboardInterrupt):
        yield


@everywhere()
def test_results_come_and_no_core_is_given_twice(executor, request):
    room = room_of(request)
    futures = {
        executor.submit(tasks.doubled, n, 0.15, cpus=1 + (n % 5 == 0 < room - 1)): n
        for n in range(10)
    }
    found = {futures[future]: future.result() for future in as_completed(futures, timeout=60)}
    assert [found[n][0] for n in range(10)] == [2 * n for n in range(10)]
    assert {where for *_, where in found.values()} == {str(Path.cwd())}
    spans = [
        (1 + (n % 5 == 0 < room - 1), began, ended) for n, (_, began, ended, _) in found.items()
    ]
    assert busiest(spans) <= room


@everywhere()
def test_progress_and_words_are_seen_once(executor, request, said):
    executor.bar.seen.clear()
    process = executor.submit(tasks.told, 3).result(60)
    assert (process == os.getpid()) == (room_of(request) == 1)
    assert said() == "said by 3: [bold] :car:\n"
    assert executor.bar.seen == [("telling", 3), 2]


@everywhere(REMOTE)
def test_words_are_shown_in_whole_lines_while_a_task_runs(executor, tmp_path, said):
    future = executor.submit(tasks.chatty, tmp_path / "go")
    assert until_true(lambda: said() == "first\n"), said()
    time.sleep(0.3)
    assert said() == "first\n" and not future.done()
    (tmp_path / "go").touch()
    future.result(60)
    assert said() == "first\nhalf a line\n"


@everywhere()
@pytest.mark.parametrize("task", [tasks.mistake, tasks.stubborn_mistake])
def test_the_users_error_is_one_line(executor, task):
    with pytest.raises(UserError) as raised:
        executor.submit(task).result(60)
    assert str(raised.value) == "no such thing; take another" and raised.value.exit_code == 2
    assert not getattr(raised.value, "__notes__", ()), "where it was raised is nothing to the user"


@everywhere()
def test_a_bug_arrives_with_its_class_cause_and_place(executor, request):
    with pytest.raises(ValueError, match="a task broke") as raised:
        executor.submit(tasks.wrapped).result(60)
    assert not hasattr(raised.value, "exit_code") and isinstance(raised.value.__cause__, KeyError)
    if room_of(request) == 1:
        assert raised.traceback[-1].name == "wrapped"
    else:
        assert "in wrapped" in raised.value.__notes__[0]


@everywhere()
def test_what_cannot_travel_is_said(executor, request):
    here = room_of(request) == 1
    with pytest.raises(
        tasks.Stubborn if here else RuntimeError, match="it does not travel"
    ) as raised:
        executor.submit(tasks.stubborn).result(60)
    assert here or ("Stubborn" in str(raised.value) and "in stubborn" in raised.value.__notes__[0])
    with pytest.raises(RuntimeError, match=r"sys\.exit\(3\)"):
        executor.submit(tasks.leave).result(60)
    if not here:
        with pytest.raises(Exception, match="ickle") as raised:
            executor.submit(tasks.unportable).result(60)
        assert "unportable" in str(raised.value)


@everywhere(REMOTE)
def test_a_killed_worker_is_replaced_twice(executor, tmp_path, said):
    once, always = tmp_path / "once", tmp_path / "always"
    futures = [executor.submit(tasks.vanish, once, 1), executor.submit(tasks.vanish, always, 9)]
    other = executor.submit(tasks.doubled, 4)
    assert other.result(60)[0] == 8, "the others go on"
    assert futures[0].result(60) == "there" and once.read_text() == "xx"
    with pytest.raises(WorkerLost, match="vanished 3 times"):
        futures[1].result(60)
    assert always.read_text() == "xxx"
    words = said()
    assert "run again, 1 of 2" in words and "run again, 2 of 2" in words
    assert words.count("attempt 3\n") == 1 and words.count("attempt 1\n") == 2, (
        "nothing is shown twice"
    )


@everywhere(REMOTE)
def test_interrupted_tasks_save_and_nothing_is_left(make, tmp_path):
    markers = [tmp_path / name for name in ("one", "two")]
    with interrupted(), make() as executor:
        waiting = [executor.submit(tasks.wait, marker) for marker in markers]
        futures = [executor.submit(tasks.wait, tmp_path / f"more{n}") for n in range(4)]
        for marker in markers:
            tasks.until(marker)
        raise KeyboardInterrupt
    saved = [marker for marker in tmp_path.iterdir() if not marker.suffix]
    assert len(saved) >= 2 and all(marker.with_suffix(".saved").is_file() for marker in saved)
    assert gone(*saved) or executor.spec.name == "ray", "a Ray that is not ours keeps its workers"
    assert all(future.cancelled() for future in [*waiting, *futures])
    with pytest.raises(CancelledError):
        executor.submit(tasks.doubled, 1).result(1)


@everywhere(["here"])
def test_an_interruption_of_this_process_goes_straight_through(make, tmp_path):
    marker = tmp_path / "one"

    def interrupt():
        tasks.until(marker)
        os.kill(os.getpid(), signal.SIGINT)

    helper = threading.Thread(target=interrupt)
    helper.start()
    with interrupted(), make() as executor:
        executor.submit(tasks.wait, marker)
    helper.join()
    assert marker.with_suffix(".saved").is_file()


@everywhere()
def test_threads_of_a_task_are_its_own(executor, request):
    import torch

    before = torch.get_num_threads()
    asked = [1, 2, 1, 2] if room_of(request) == 2 else [1, 2]
    futures = [executor.submit(tasks.number_of_threads, cpus=cpus) for cpus in asked]
    assert [future.result(100) for future in futures] == [(cpus, cpus) for cpus in asked]
    assert torch.get_num_threads() == before


@everywhere()
def test_leaving_waits_for_tasks_and_forgets_the_cancelled(make, request):
    with make() as executor:
        futures = [executor.submit(tasks.doubled, n, 0.2) for n in range(7)]
        dropped = room_of(request) > 1 and executor.spec.name == "local" and futures[-1].cancel()
    assert all(future.done() for future in futures) and futures[-1].cancelled() == bool(dropped)
    assert futures[0].result()[0] == 0


@everywhere(["ray cluster"])
def test_a_task_survives_its_node(make, ray_cluster, tmp_path, said):
    marker = tmp_path / "attempts"
    with make() as executor:
        assert executor.several_nodes
        future = executor.submit(
            tasks.wait_once, marker, cpus=2
        )  # not on the first node, which the driver is connected to
        tasks.until(marker.with_suffix(".waiting"))
        first = marker.read_text().split()[1]
        node = next(node for node in ray_cluster.worker_nodes if node.node_id == first)
        ray_cluster.remove_node(node, allow_graceful=False)
        try:
            attempts = future.result(90)
        finally:
            ray_cluster.add_node(num_cpus=2)
    assert len(attempts) == 2 and attempts[1].split()[1] != first
    assert "it is run again, 1 of 2" in said()


@everywhere(["slurm"])
@pytest.mark.parametrize("how", ["requeued", "cancelled"])
def test_a_job_that_is_stopped_saves_and_is_run_again(executor, how, tmp_path):
    marker = tmp_path / "attempts"
    future = executor.submit(tasks.wait_once, marker)
    tasks.until(marker.with_suffix(".waiting"))
    (first,) = (line.split()[0] for line in marker.read_text().splitlines())
    subprocess.run(
        ["scancel", *(["--signal=USR2"] if how == "requeued" else []), first], check=True
    )
    attempts = [line.split()[0] for line in future.result(60)]
    assert marker.with_suffix(".saved").is_file()
    assert len(attempts) == 2 and (attempts[1] == first) == (how == "requeued")
