"""What is particular to an executor: GPUs, priorities, the end of the command, settings,
plug-ins."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
import torch

from benchmark import executor as base
from benchmark import slurm as slurm_executor
from benchmark import unit
from benchmark.executor import ExecutionOptions, Executor
from benchmark.local import LocalExecutor
from benchmark.progress import Bar
from benchmark.unit import WorkerLost
from cliptex_common.errors import UserError
from cliptex_common.files import home
from tests.benchmark.executors import units
from tests.benchmark.executors.helpers import peak_cores
from tests.executors import executor_of
from tests.kit.waiting import have_ended, is_running, is_soon, wait_for

RAY = pytest.param("ray", marks=pytest.mark.cluster)


def need(name, request):
    """Skip a test of an engine that is not installed."""
    if name == "slurm":
        request.getfixturevalue("slurm")
    elif name == "ray":
        pytest.importorskip("ray", reason="no Ray: pip install 'ray[default]'")


def see_gpus(count, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))
    monkeypatch.setattr("cliptex_common.device.current_device", lambda: torch.device("cuda"))
    monkeypatch.setattr("cliptex_common.device.device_count", lambda: count)
    monkeypatch.setattr("cliptex_common.device.is_available", lambda name: True)


@pytest.mark.integration
def test_a_device_number_selects_one_gpu(monkeypatch):
    see_gpus(4, monkeypatch)
    with executor_of(device="cuda:3") as executor:
        assert (executor.slots, executor.has_gpus, executor.device) == (1, True, "cuda")
        assert executor.submit(units.visible_gpus, gpus=1).result(600)[0] == "3"
    # in this process, which keeps its own view of the GPUs
    assert executor_of(jobs=1, device="cuda:3").device == "cuda:3"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    with pytest.raises(UserError, match="cuda:4: this machine has 4 GPUs"):
        executor_of(device="cuda:4")


@pytest.mark.parametrize("name", [pytest.param("local", marks=pytest.mark.integration), RAY])
def test_eight_units_get_eight_gpus(name, tmp_path, request, monkeypatch):
    need(name, request)
    if name == "local":
        see_gpus(8, monkeypatch)
    settings = {"local": {"cpus": "2"}, "ray": {"num_gpus": "8", "num_cpus": "2"}}
    with executor_of(name, settings[name]) as executor:
        assert executor.has_gpus and executor.slots == 8
        futures = [executor.submit(units.visible_gpus, tmp_path, 8, gpus=1) for _ in range(8)]
        futures += [executor.submit(units.visible_gpus, gpus=gpus) for gpus in (1, 0)]
        results = [future.result(100) for future in futures]
        if name == "ray":
            with pytest.raises(UserError, match="needs 9 GPUs"):
                executor.submit(units.visible_gpus, gpus=9).result(10)
    assert sorted(gpu for gpu, *_ in results[:8]) == [str(n) for n in range(8)]
    assert results[8][0].isdigit() and results[9][0] == ""
    for number in range(8):
        spans = [(1, *span) for gpu, *span in results if gpu == str(number)]
        assert peak_cores(spans) == 1, f"GPU {number} was used by two units at once"


@pytest.mark.cluster
def test_a_process_of_ray_sees_one_set_of_gpus(request):
    need("ray", request)
    with executor_of("ray", {"num_gpus": "2", "num_cpus": "2"}) as executor:
        futures = [executor.submit(units.process_and_gpus, gpus=n) for n in (1, 1, 2, 1, 1, 2)]
        results = [future.result(100) for future in futures]
    assert len({process for process, _ in results}) == len(set(results)), results


@pytest.mark.cluster
@pytest.mark.parametrize("where", ["this machine", "cluster"])
def test_secrets_reach_units_but_not_the_logs_of_ray(where, request, monkeypatch):
    need("ray", request)
    settings = {"num_cpus": "2"}
    if where == "cluster":
        settings = {"address": request.getfixturevalue("ray_cluster").address}
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with executor_of("ray", settings, device="cpu") as executor:
        import ray

        logs = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
        assert executor.submit(units.variable, "HF_TOKEN").result(100) == ("hf_secret", False)
    files = [path for path in logs.rglob("*") if path.is_file()]
    assert not [path.name for path in files if b"hf_secret" in path.read_bytes()]


@pytest.mark.cluster
def test_slurm_gives_jobs_their_own_gpus(slurm, tmp_path):
    with executor_of("slurm") as executor:
        assert executor.has_gpus and executor.is_remote
        counts = (1, 2, 1, 1)
        futures = [executor.submit(units.gpus_on_node, tmp_path, 4, gpus=n) for n in counts]
        without = executor.submit(units.visible_gpus)
        results = [future.result(600) for future in futures]
        assert without.result(600)[0] == ""
    assert tuple(map(len, results)) == counts
    used = [gpu for gpus in results for gpu in gpus]
    assert len(set(used)) == 5 and {gpu.split()[0] for gpu in used} == {"n0", "n1"}


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
    """Commands of a SLURM whose jobs end at once, and which forgets their states once told."""
    pytest.importorskip("submitit", reason="no submitit: pip install submitit")
    scripts = {
        "sbatch": "echo Submitted batch job $$",
        "srun": "exit 0",
        "squeue": f"for last; do :; done; [ -e {tmp_path}/$last ] && exit 0; touch {tmp_path}/$last"
        "; echo $last OUT_OF_MEMORY",
        "sinfo": "printf 'cpu* (null)\ngpu (null)\ngpu gpu:a100:8(S:0-1)\n' | grep ^$5",
        "scancel": "exit 0",
    }
    for name, script in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(slurm_executor, "QUERY_SECONDS", 0.3)
    monkeypatch.setattr(slurm_executor, "RESULT_SECONDS", 0.5)
    monkeypatch.setattr(base, "POLL", 0.05)


@pytest.mark.parametrize(("partition", "has_gpus"), [("", False), ("cpu", False), ("gpu", True)])
def test_gpus_are_those_of_the_partition(partition, has_gpus, fake_slurm):
    assert executor_of("slurm", {"partition": partition}).has_gpus == has_gpus


def test_gpus_of_a_partition_without_are_refused(fake_slurm):
    with pytest.raises(UserError, match=r"gpus=1: units get no GPU \(the partition has none\)"):
        executor_of("slurm", {"partition": "cpu", "gpus": "1"})


def test_the_reason_of_a_dead_job_survives_until_slurm_forgets_it(fake_slurm):
    """The controller says OUT_OF_MEMORY once; the polls after that do not ask it."""
    with (
        executor_of("slurm") as executor,
        pytest.raises(WorkerLost, match="OUT_OF_MEMORY"),
    ):
        executor.submit(units.doubled, 1).result(600)


@pytest.mark.integration
def test_waiting_units_start_by_priority_then_order(tmp_path):
    steps = count()

    class Counting(LocalExecutor):
        step = 0

        def _poll(self):
            self.step = next(steps)

    options = ExecutionOptions(executor_arg={"cpus": "2"}, device="cpu")
    with Counting(options, Bar()) as executor:
        log, go = tmp_path / "log", tmp_path / "go"
        first = executor.submit(units.append_name, log, "first", go)
        wait_for(log)
        queue = [("low", 0, 2), ("high", 5, 2), ("middle", 3, 1), ("last", -1, 1)]
        for name, priority, cpus in queue:
            executor.submit(units.append_name, log, name, cpus=cpus, priority=priority)
        step = executor.step
        assert is_soon(lambda: executor.step > step + 1), "it has looked at the queue"
        assert log.read_text() == "first\n", "a small unit waits behind a large one"
        go.touch()
        first.result(600)
    assert log.read_text().split() == ["first", "high", "middle", "low", "last"]


@pytest.mark.integration
def test_a_bug_in_the_scheduler_ends_all_units_with_its_error(tmp_path):
    marker = tmp_path / "one"

    class Broken(LocalExecutor):
        def _poll(self):
            if marker.exists():
                raise ZeroDivisionError("a bug")

    options = ExecutionOptions(executor_arg={"cpus": "2"}, device="cpu")
    with Broken(options, Bar()) as executor:
        futures = [executor.submit(units.wait, tmp_path / name, cpus=2) for name in ("one", "two")]
        for future in futures:
            with pytest.raises(ZeroDivisionError):
                future.result(600)
        with pytest.raises(CancelledError):
            executor.submit(units.doubled, 1).result(600)
    assert marker.with_suffix(".saved").is_file()


@pytest.mark.integration
def test_processes_are_reused_and_an_idle_one_that_died_is_replaced(output):
    with executor_of(settings={"cpus": "2"}, device="cpu") as executor:
        first = executor.submit(units.report_progress, 1).result(600)
        assert executor.submit(units.report_progress, 1).result(600) == first
        os.kill(first, signal.SIGKILL)
        assert is_soon(lambda: not is_running(first))
        assert executor.submit(units.report_progress, 1).result(600) != first
    assert output().count("printed by 1: [bold] :car:\n") == 3


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "number", "to_group"),
    [
        ("local", signal.SIGKILL, False),
        ("local", signal.SIGINT, True),  # as a terminal sends it
        pytest.param("local", signal.SIGTERM, False, marks=pytest.mark.slow),
        # as `timeout` and batch systems send it
        pytest.param("local", signal.SIGTERM, True, marks=pytest.mark.slow),
        # as a lost terminal sends it
        pytest.param("local", signal.SIGHUP, True, marks=pytest.mark.slow),
        pytest.param("ray", signal.SIGKILL, False, marks=pytest.mark.cluster),
        pytest.param("ray", signal.SIGINT, True, marks=pytest.mark.cluster),
        pytest.param("ray", signal.SIGTERM, False, marks=pytest.mark.cluster),
    ],
)
def test_a_submitting_process_that_ends_leaves_no_worker(name, number, to_group, tmp_path, request):
    need(name, request)
    command = [sys.executable, "-m", "tests.benchmark.executors.units", name, str(tmp_path)]
    markers = [tmp_path / "one", tmp_path / "two"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        for marker in markers:
            wait_for(marker)
        if to_group:
            os.killpg(process.pid, number)
        if number != signal.SIGINT:  # twice, as some batch systems do
            process.send_signal(number)
        stderr = process.communicate(timeout=600)[1]
        assert have_ended(*markers)
        if number != signal.SIGKILL:
            assert (process.returncode, stderr) == (130, "")
            assert all(marker.with_suffix(".saved").is_file() for marker in markers)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        month = 30 * 86400
        for folder in (home() / "tasks").glob("[!.]*") if number == signal.SIGKILL else ():
            for path in (*folder.iterdir(), folder):
                os.utime(path, (0, time.time() - month - 60))
        unit.remove_abandoned(home() / "tasks")  # the fixture checks that none is left


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("slrum", {}, "no executor 'slrum'; did you mean slurm"),
        ("local", {"cpu": "1"}, "--executor-arg cpu: local has no such setting; did you mean cpus"),
        ("local", {"cpus": "0"}, "--executor-arg cpus=0: give an integer, 1 or more"),
        ("ray", {"address": "127.0.0.1:1"}, "no Ray at 127.0.0.1:1"),
        pytest.param(
            "slurm",
            {"nodes": "2"},
            "--executor-arg nodes=2: only `train` computes on several",
            marks=pytest.mark.cluster,
        ),
    ],
)
def test_a_wrong_setting_is_one_line(name, settings, message, request):
    need(name, request)
    with pytest.raises(UserError) as raised:
        executor_of(name, settings)
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("jobs", "cpus", "gpus", "num_workers", "expected"),
    [(0, 8, 2, None, 4), (2, 8, 0, None, 4), (1, 64, 0, None, 16), (1, 64, 0, 3, 3)],
)
def test_loading_processes_share_the_cores(jobs, cpus, gpus, num_workers, expected, monkeypatch):
    see_gpus(gpus, monkeypatch)
    executor = executor_of("local", {"cpus": str(cpus)}, jobs=jobs, num_workers=num_workers)
    assert executor.num_workers == expected


@pytest.mark.parametrize(
    ("jobs", "cpus", "threads", "slots"),
    [(1, 2, 2, 1), (2, 2, 1, 2), (0, 2, 1, 2), (0, 12, 3, 4), (0, 64, 8, 8), (3, 8, 2, 3)],
)
def test_units_share_the_cores(jobs, cpus, threads, slots, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    executor = executor_of("local", {"cpus": str(cpus)}, jobs=jobs, device="cpu")
    assert (executor.resources(), executor.slots) == ({"cpus": threads, "gpus": 0}, slots)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert executor_of("local", {"cpus": str(cpus)}, jobs=jobs, device="cpu").threads == 1


def test_a_job_of_slurm_computes_with_the_cores_it_is_given(fake_slurm, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(slurm_executor, "cores", lambda: 16)
    for settings, threads in (({"cpus": "12"}, 12), ({}, 4)):
        executor = executor_of("slurm", settings, jobs=2, device="cpu")
        assert executor.resources() == {"cpus": threads, "gpus": 0}


@pytest.mark.cluster
def test_a_preview_is_what_sbatch_is_told(slurm):
    settings = {"gpus": "2", "cpus": "1", "time": "9", "comment": "mine"}
    with executor_of("slurm", settings) as executor:
        first, *lines = executor.preview(["one", "two"])
        unit = executor.submit(units.submission_script, name="one", **executor.resources())
        script = re.sub(r"tasks/\w+", "tasks/UNIT", unit.result(600))
    assert first == "2 jobs, each with 2 GPUs and" and "#SBATCH --gpus-per-node=2" in lines
    assert lines == [line for line in script.splitlines() if line.startswith("#SBATCH")]
    with pytest.raises(UserError, match=r"sbatch refuses one: .*[Ii]nvalid partition"):
        executor_of("slurm", {"partition": "nowhere"}).preview(["one"])


@pytest.mark.cluster
def test_a_refusal_of_sbatch_is_one_line(slurm):
    message = "sbatch refused doubled: .*[Ii]nvalid partition"
    with (
        executor_of("slurm", {"partition": "nowhere"}) as executor,
        pytest.raises(UserError, match=message) as raised,
    ):
        executor.submit(units.doubled, 1).result(10)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "module"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_library_is_one_line(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[scale\]'"):
        executor_of(name)


class Echo(Executor):
    def _start(self, task):
        future = Future()
        future.set_result(unit.execute(task))
        return future


def test_an_executor_needs_only_to_start_units(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with Echo(ExecutionOptions(executor="echo"), Bar()) as executor:
        assert executor.submit(units.doubled, 4).result(10)[0] == 8
