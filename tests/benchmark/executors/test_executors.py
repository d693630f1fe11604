"""One suite for all executors: in process, processes, SLURM (two nodes), Ray, Ray (three nodes)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, as_completed
from functools import partial
from pathlib import Path

import pytest

from benchmark import executor as base
from benchmark.executor import EXECUTORS
from benchmark.unit import WorkerLost
from cliptex_common import registry
from cliptex_common.errors import UserError, user_error_message
from tests.benchmark.executors import units
from tests.benchmark.executors.helpers import RecordingBar, peak_cores
from tests.executors import executor_of
from tests.kit.waiting import have_ended, is_soon, wait_for

CORES = {"in process": 1, "local": 2, "slurm": 4, "ray": 2, "ray cluster": 5}
REMOTE = [name for name in CORES if name != "in process"]
ON_THIS_MACHINE = ("in process", "local")

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def make(request):
    """Makes executors of one kind."""
    kind = request.param
    settings = {
        "in process": ("local", {}),
        "local": ("local", {"cpus": "2"}),
        "slurm": ("slurm", {}),
        "ray": ("ray", {"num_cpus": "2", "num_gpus": "8"}),
    }
    with pytest.MonkeyPatch.context() as patch:
        if kind == "slurm":
            patch.setenv("SLURM_CONF", request.getfixturevalue("slurm_config"))
            from benchmark import slurm

            patch.setattr(slurm, "QUERY_SECONDS", 0.5)
            patch.setattr(slurm, "RESULT_SECONDS", 0.5)  # the disk is local
        elif kind.startswith("ray"):
            pytest.importorskip("ray", reason="no Ray: pip install 'ray[default]'")
        if kind == "ray cluster":
            address = request.getfixturevalue("ray_cluster").address
            settings[kind] = ("ray", {"address": address})
        patch.setattr(base, "threads_per_unit", lambda cpus, jobs=0: 1)
        patch.setattr(base, "POLL", 0.1)
        options = {} if kind == "slurm" else {"device": "cpu", "jobs": int(kind == "in process")}
        yield lambda: executor_of(*settings[kind], RecordingBar(), **options)


@pytest.fixture(scope="module")
def executor(make):
    """Shared by the tests: some take seconds to start."""
    with make() as executor:
        yield executor


def everywhere(names=tuple(CORES)):
    params = [
        pytest.param(name, marks=() if name in ON_THIS_MACHINE else pytest.mark.cluster)
        for name in names
    ]
    return pytest.mark.parametrize("make", params, indirect=True, scope="module")


PLUGIN = """
from dataclasses import dataclass
from benchmark.executor import EXECUTORS, Executor

@dataclass
class Payload:
    number: int

class Mine(Executor):
    about, payload = "of a plugin", Payload(7)

EXECUTORS.register("mine", Mine)
"""


@everywhere()
def test_units_have_the_plugins_of_the_command(executor, tmp_path):
    """Also where its file is not: names, and arguments of its classes."""
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    registry.load(path)
    path.unlink()
    payload, origin = EXECUTORS["mine"].payload, EXECUTORS.origin("mine")
    result = executor.submit(units.look_up_executor, "mine", payload).result(600)
    assert result == ("of a plugin", origin, 7) and origin


def cores_of(request) -> int:
    return CORES[request.node.callspec.params["make"]]


@everywhere()
def test_units_return_results_and_share_no_core(executor, request):
    total = cores_of(request)
    cpus = [1 + (n % 5 == 0 < total - 1) for n in range(10)]
    futures = {
        executor.submit(units.doubled, n, 0.15, cpus=cpus[n], kind="nap"): n for n in range(10)
    }
    results = {futures[future]: future.result() for future in as_completed(futures, timeout=600)}
    assert [results[n][0] for n in range(10)] == [2 * n for n in range(10)]
    assert {folder for *_, folder in results.values()} == {str(Path.cwd())}
    spans = [(cpus[n], start, end) for n, (_, start, end, _) in results.items()]
    assert peak_cores(spans) <= total
    executor.submit(units.raise_bug, kind="nap").exception(600)
    seconds = executor.overview.seconds["nap"]  # of which the time left follows
    assert len(seconds) == 10 and min(seconds) >= 0.15


@everywhere()
def test_progress_and_output_are_shown_once(executor, request, output):
    executor.bar.calls.clear()
    process = executor.submit(units.report_progress, 3).result(600)
    assert (process == os.getpid()) == (cores_of(request) == 1)
    assert output() == "printed by 3: [bold] :car:\n"
    assert executor.bar.calls == [("step", 3), 2]


@everywhere(REMOTE)
def test_output_is_shown_line_by_line_while_a_unit_runs(executor, tmp_path, output):
    future = executor.submit(units.print_slowly, tmp_path / "go")
    assert is_soon(lambda: output() == "first\n"), output()
    assert not future.done(), "half a line was printed with the first"
    (tmp_path / "go").touch()
    future.result(600)
    assert output() == "first\nhalf a line\n"


@everywhere()
@pytest.mark.parametrize(
    ("unit", "message"),
    [
        (units.raise_user_error, "no such dataset; choose another"),
        (units.raise_full_disk, "cannot write weights: No space left on device; free some space"),
    ],
)
def test_an_error_of_the_user_arrives_as_one_line(executor, unit, message):
    with pytest.raises((UserError, RuntimeError)) as raised:
        executor.submit(unit).result(600)
    assert user_error_message(raised.value).startswith(message)
    assert not getattr(raised.value, "__notes__", ()), "a traceback is of no use to the user"


@everywhere()
def test_a_bug_arrives_with_its_class_and_traceback(executor, request):
    with pytest.raises(ValueError, match="a unit broke") as raised:
        executor.submit(units.raise_bug).result(600)
    assert not isinstance(raised.value, UserError)
    if cores_of(request) == 1:
        assert raised.traceback[-1].name == "raise_bug"
    else:
        assert "in raise_bug" in raised.value.__notes__[0]


@everywhere()
def test_errors_and_results_that_cannot_be_pickled_are_reported(executor, request):
    in_process = cores_of(request) == 1
    expected = units.UnpicklableError if in_process else RuntimeError
    with pytest.raises(expected, match="it does not travel") as raised:
        executor.submit(units.raise_unpicklable).result(600)
    assert in_process or "in raise_unpicklable" in raised.value.__notes__[0]
    with pytest.raises(RuntimeError, match=r"sys\.exit\(3\)"):
        executor.submit(units.call_exit).result(600)
    if not in_process:
        with pytest.raises(Exception, match="return_lambda"):
            executor.submit(units.return_lambda).result(600)


@everywhere(REMOTE)
def test_a_unit_whose_worker_died_runs_again_twice(executor, tmp_path, output):
    once, always = tmp_path / "once", tmp_path / "always"
    futures = [executor.submit(units.kill_itself, *each) for each in ((once, 1), (always, 9))]
    assert executor.submit(units.doubled, 4).result(600)[0] == 8, "the others go on"
    assert futures[0].result(600) == "survived" and once.read_text() == "xx"
    with pytest.raises(WorkerLost, match="died 3 times"):
        futures[1].result(600)
    assert always.read_text() == "xxx"
    text = output()
    assert "running it again, 1 of 2" in text and "running it again, 2 of 2" in text
    assert text.count("attempt 3\n") == 1 and text.count("attempt 1\n") == 2, "shown once each"


@everywhere(REMOTE)
def test_interrupted_units_save_and_leave_nothing(make, tmp_path):
    markers = [tmp_path / name for name in ("one", "two")]
    with pytest.raises(KeyboardInterrupt), make() as executor:
        futures = [executor.submit(units.wait, marker) for marker in markers]
        futures += [executor.submit(units.wait, tmp_path / f"more{n}") for n in range(4)]
        for marker in markers:
            wait_for(marker)
        raise KeyboardInterrupt
    saved = [marker for marker in tmp_path.iterdir() if not marker.suffix]
    assert len(saved) >= 2 and all(marker.with_suffix(".saved").is_file() for marker in saved)
    if executor.options.executor != "ray":  # a Ray that others started keeps its workers
        assert have_ended(*saved)
    assert all(future.cancelled() for future in futures)
    with pytest.raises(CancelledError):
        executor.submit(units.doubled, 1).result(1)


@everywhere(["in process"])
def test_an_interruption_of_this_process_is_not_caught(make, tmp_path):
    marker = tmp_path / "one"

    def interrupt():
        # not earlier, and again: an exception raised in a finalizer is lost
        main = threading.main_thread().ident
        while not interrupted.is_set():
            if sys._current_frames()[main].f_code is units.sleep.__code__:
                os.kill(os.getpid(), signal.SIGINT)
                interrupted.wait(5)
            time.sleep(0.01)

    thread, interrupted = threading.Thread(target=interrupt), threading.Event()
    thread.start()
    with pytest.raises(KeyboardInterrupt), make() as executor:
        executor.submit(units.wait, marker)
    interrupted.set()
    thread.join()
    assert marker.with_suffix(".saved").is_file()


@everywhere()
def test_a_unit_computes_with_its_number_of_threads(executor, request):
    import torch

    before = torch.get_num_threads()
    cpus = [1, 2, 1, 2] if cores_of(request) == 2 else [1, 2]
    futures = [executor.submit(units.number_of_threads, cpus=each) for each in cpus]
    assert [future.result(100) for future in futures] == [(each, each) for each in cpus]
    assert torch.get_num_threads() == before


@everywhere()
def test_leaving_waits_for_units_except_cancelled_ones(make, request):
    with make() as executor:
        futures = [executor.submit(units.doubled, n, 0.2) for n in range(7)]
        can_cancel = cores_of(request) > 1 and executor.options.executor == "local"
        cancelled = can_cancel and futures[-1].cancel()
    assert all(future.done() for future in futures) and futures[-1].cancelled() == bool(cancelled)
    assert futures[0].result()[0] == 0


@everywhere(["ray cluster"])
def test_a_unit_survives_its_node(make, ray_cluster, tmp_path, output):
    marker = tmp_path / "attempts"
    with make() as executor:
        assert executor.is_remote
        future = executor.submit(units.wait_once, marker, cpus=2)  # not on the submitting node
        wait_for(marker.with_suffix(".waiting"))
        first = marker.read_text().split()[1]
        node = next(node for node in ray_cluster.worker_nodes if node.node_id == first)
        ray_cluster.remove_node(node, allow_graceful=False)
        try:
            attempts = future.result(90)
        finally:
            ray_cluster.add_node(num_cpus=2)
    assert len(attempts) == 2 and attempts[1].split()[1] != first
    assert "running it again, 1 of 2" in output()


@everywhere(["slurm"])
@pytest.mark.parametrize("signal_option", [["--signal=USR2"], []], ids=["time limit", "cancelled"])
def test_a_stopped_job_saves_and_runs_again(executor, signal_option, tmp_path):
    marker = tmp_path / "attempts"
    future = executor.submit(units.wait_once, marker)
    wait_for(marker.with_suffix(".waiting"))
    (first,) = (line.split()[0] for line in marker.read_text().splitlines())
    subprocess.run(["scancel", *signal_option, first], check=True)
    attempts = [line.split()[0] for line in future.result(600)]
    assert marker.with_suffix(".saved").is_file()
    assert len(attempts) == 2 and (attempts[1] == first) == bool(signal_option), "requeued, or new"


def test_a_unit_keeps_freed_memory_until_it_ends(monkeypatch):
    events = []
    for name in ("keep", "return"):
        patched = f"benchmark.unit.{name}_freed_memory"
        monkeypatch.setattr(patched, partial(events.append, name))
    with executor_of(jobs=1, device="cpu") as executor:
        executor.submit(events.append, "work").result()
    assert events == ["keep", "work", "return"]
