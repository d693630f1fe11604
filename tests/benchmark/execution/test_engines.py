"""What an executor has of its own: GPUs, priorities, the end of a driver, its words for wrong
settings, other packages'."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path

import pytest

from benchmark.execution import Bar, Executor, ExecutorSpec, base, make_executor, task
from benchmark.execution import slurm as slurm_executor
from benchmark.execution.local import LocalExecutor
from common.errors import UserError
from common.files import home
from tests.benchmark.execution import tasks
from tests.benchmark.execution.watching import busiest, gone, until_true


def test_here_is_for_debuggers(tmp_path):
    with make_executor(ExecutorSpec(jobs=1, device="cpu"), Bar()) as executor:
        assert executor.width == 1 and executor.where(1, 0) == "local, 1 core"
        assert executor.submit(tasks.told, 1).result() == os.getpid()
        with pytest.raises(UserError, match="needs 1 GPUs, there are 0"):
            executor.submit(tasks.visible, gpus=1).result()


def test_a_chosen_gpu_is_chosen_in_this_process_too(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with make_executor(ExecutorSpec(settings={"gpus": "3"}), Bar()) as executor:
        assert executor.width == 1 and executor.has_gpus
        assert executor.submit(tasks.visible, gpus=1).result()[0] == "3"


@pytest.mark.parametrize("name", ["local", "ray"])
def test_eight_gpus_are_given_to_eight_tasks(name, tmp_path):
    settings = {
        "local": {"gpus": "0,1,2,3,4,5,6,7", "cpus": "2"},
        "ray": {"num_gpus": "8", "num_cpus": "2"},
    }[name]
    if name == "ray":
        pytest.importorskip("ray", reason="no Ray: pip install 'ray[default]'")
    with make_executor(ExecutorSpec(name, settings), Bar()) as executor:
        assert executor.has_gpus and executor.width == 8
        futures = [executor.submit(tasks.visible, tmp_path, 8, gpus=1) for _ in range(8)]
        more = [2, 1, 1] if name == "local" else [2]  # each costs Ray a process
        futures += [executor.submit(tasks.visible, gpus=gpus) for gpus in more]
        futures += [executor.submit(tasks.visible)]
        found = [future.result(100) for future in futures]
        with pytest.raises(UserError, match="needs 9 GPUs"):
            executor.submit(tasks.visible, gpus=9).result(10)
    assert sorted(gpus for gpus, *_ in found[:8]) == [str(n) for n in range(8)]
    assert [len(gpus.split(",")) for gpus, *_ in found[8:-1]] == more and found[-1][0] == ""
    for number in range(8):
        spans = [(1, *span) for gpus, *span in found if str(number) in gpus.split(",")]
        assert busiest(spans) == 1, f"GPU {number} was given twice at once"


def test_gpus_are_given_again_when_their_process_has_ended(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with make_executor(ExecutorSpec(settings={"gpus": "0,1"}), Bar()) as executor:
        futures = [executor.submit(tasks.slow_to_end, 1.0, gpus=1) for _ in range(2)]
        pids = [future.result(60)[0] for future in futures]
        assert executor.submit(tasks.slow_to_end, 1.0, gpus=1).result(60)[0] in pids, (
            "a process is kept"
        )
        both, there = executor.submit(tasks.slow_to_end, 0.0, *pids, gpus=2).result(60)
        assert both not in pids and not there


def test_a_process_of_ray_sees_one_set_of_gpus():
    pytest.importorskip("ray", reason="no Ray: pip install 'ray[default]'")
    with make_executor(ExecutorSpec("ray", {"num_gpus": "2", "num_cpus": "2"}), Bar()) as executor:
        futures = [
            executor.submit(tasks.visible_in_process, gpus=gpus) for gpus in (1, 1, 2, 1, 1, 2)
        ]
        found = [future.result(100) for future in futures]
    assert len({process for process, _ in found}) == len(set(found)), found


@pytest.mark.parametrize("where", ["this machine", "cluster"])
def test_secrets_reach_tasks_and_not_the_logs_of_ray(where, request, monkeypatch):
    pytest.importorskip("ray", reason="no Ray: pip install 'ray[default]'")
    settings = {"num_cpus": "2"}
    if where == "cluster":
        settings = {"address": request.getfixturevalue("ray_cluster").address}
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with make_executor(ExecutorSpec("ray", settings, device="cpu"), Bar()) as executor:
        logs = Path(ray_logs())
        assert executor.submit(tasks.variable, "HF_TOKEN").result(100) == ("hf_secret", False)
    written = [
        path.name
        for path in logs.rglob("*")
        if path.is_file() and b"hf_secret" in path.read_bytes()
    ]
    assert not written


def ray_logs():
    import ray

    return ray._private.worker.global_worker.node.get_logs_dir_path()


def test_slurm_gives_jobs_their_own_gpus(slurm, tmp_path):
    with make_executor(ExecutorSpec("slurm"), Bar()) as executor:
        assert executor.has_gpus and executor.several_nodes
        futures = [
            executor.submit(tasks.visible_on_node, tmp_path, 4, gpus=gpus) for gpus in (1, 2, 1, 1)
        ]
        none = executor.submit(tasks.visible)
        found = [future.result(60) for future in futures]
        assert none.result(60)[0] == ""
    assert [len(gpus) for gpus in found] == [1, 2, 1, 1]
    taken = [gpu for gpus in found for gpu in gpus]
    assert len(set(taken)) == 5 and {gpu.split()[0] for gpu in taken} == {"n0", "n1"}


@pytest.mark.parametrize(
    ("partition", "has_gpus"),
    [("", False), ("cpu", False), ("gpu", True), ("cpu,gpu", True), ("gp", False)],
)
def test_gpus_are_those_of_the_partition_that_jobs_go_to(partition, has_gpus):
    assert (
        slurm_executor._with_gpus("cpu* (null)\ngpu (null)\ngpu gpu:a100:8(S:0-1)\n", partition)
        == has_gpus
    )


def test_who_waits_goes_by_priority_and_size(tmp_path):
    with make_executor(ExecutorSpec(settings={"cpus": "2"}, device="cpu"), Bar()) as executor:
        log, go = tmp_path / "log", tmp_path / "go"
        first = executor.submit(tasks.noted, log, "first", go)
        tasks.until(log)
        for name, priority, cpus in [
            ("low", 0, 2),
            ("high", 5, 2),
            ("middle", 3, 1),
            ("last", -1, 1),
        ]:
            executor.submit(tasks.noted, log, name, cpus=cpus, priority=priority)
        time.sleep(0.3)
        assert log.read_text() == "first\n", (
            "what is small waits behind what is bigger and came before it"
        )
        go.touch()
        first.result(60)
    assert log.read_text().split() == ["first", "high", "middle", "low", "last"]


def test_what_breaks_in_the_driver_ends_all_tasks_with_its_error(tmp_path):
    marker = tmp_path / "one"

    class Broken(LocalExecutor):
        def _look(self):
            if marker.exists():
                raise ZeroDivisionError("a mistake of ours")

    with Broken(ExecutorSpec(settings={"cpus": "2"}, device="cpu"), Bar()) as executor:
        futures = [executor.submit(tasks.wait, tmp_path / name, cpus=2) for name in ("one", "two")]
        for future in futures:
            with pytest.raises(ZeroDivisionError):
                future.result(60)
        with pytest.raises(CancelledError):
            executor.submit(tasks.doubled, 1).result(60)
    assert marker.with_suffix(".saved").is_file()


def test_the_folder_of_a_task_that_is_cancelled_before_it_begins_goes(tmp_path):
    with make_executor(ExecutorSpec(settings={"cpus": "2"}, device="cpu"), Bar()) as executor:
        executor.several_nodes = True  # the folder is made at once
        first, second = (executor.submit(tasks.doubled, n, 0.5, cpus=2) for n in range(2))
        assert second.cancel() and first.result(60)[0] == 0


def test_a_worker_that_died_of_boredom_is_replaced_in_silence(said):
    with make_executor(ExecutorSpec(settings={"cpus": "2"}, device="cpu"), Bar()) as executor:
        first = executor.submit(tasks.told, 1).result(60)
        assert executor.submit(tasks.told, 1).result(60) == first, "a process is kept"
        os.kill(first, signal.SIGKILL)
        until_true(lambda: not Path(f"/proc/{first}").exists())
        time.sleep(0.2)
        assert executor.submit(tasks.told, 1).result(60) != first
    assert said() == "said by 1: [bold] :car:\n" * 3


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("local", signal.SIGKILL),
        ("local", signal.SIGINT),
        ("local", signal.SIGTERM),
        ("ray", signal.SIGKILL),
        ("ray", signal.SIGINT),
    ],
)
def test_a_driver_that_ends_leaves_no_worker(name, how, tmp_path):
    if name == "ray":
        pytest.importorskip("ray", reason="no Ray: pip install 'ray[default]'")
    command = [sys.executable, "-m", "tests.benchmark.execution.tasks", name, str(tmp_path)]
    markers = [tmp_path / "one", tmp_path / "two"]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        for marker in markers:
            tasks.until(marker)
        if how == signal.SIGINT:  # as a terminal sends it
            os.killpg(driver.pid, how)
        else:
            driver.send_signal(how)
        told = driver.communicate(timeout=60)[1]
        assert gone(*markers)
        if how != signal.SIGKILL:
            assert (driver.returncode, told) == (130, "")
            assert all(marker.with_suffix(".saved").is_file() for marker in markers)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
        for folder in (home() / "tasks").glob("[!.]*") if how == signal.SIGKILL else ():
            _age(folder, task.ABANDONED + 60)
        task.sweep(home() / "tasks")


def test_folders_of_drivers_that_were_killed_go_one_day(tmp_path):
    for name, days in (("old", 60), ("new", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").touch()
        _age(tmp_path / name, days * 86400)
    task.sweep(tmp_path)
    assert [folder.name for folder in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("slrum", {}, "no executor 'slrum'; did you mean slurm"),
        ("local", {"gpu": "1"}, "--executor-arg gpu: local has no such setting; did you mean gpus"),
        ("local", {"gpus": "x"}, "--executor-arg gpus=x: give"),
        ("local", {"gpus": "1,1"}, "--executor-arg gpus=1,1: give"),
        ("local", {"gpus": "0,9"}, "--executor-arg gpus=0,9: there is no GPU 9 here, but 0, 1"),
        ("local", {"cpus": "0"}, "--executor-arg cpus=0: give a whole number, 1 or more"),
        (
            "ray",
            {"num_cpu": "1"},
            "--executor-arg num_cpu: ray has no such setting; did you mean num_cpus",
        ),
        ("ray", {"num_cpus": "abc"}, "--executor-arg num_cpus=abc: give a whole number"),
        ("ray", {"num_gpus": "-1"}, "--executor-arg num_gpus=-1: give a whole number, 0 or more"),
        ("ray", {"address": "127.0.0.1:1"}, "no Ray at 127.0.0.1:1"),
        ("ray", {"address": "ray://127.0.0.1:1"}, "no Ray at ray://127.0.0.1:1"),
        ("slurm", {"nodes": "two"}, "--executor-arg nodes=two: give a whole number"),
        ("slurm", {"gpus": "x"}, "--executor-arg gpus=x: give a whole number, 1 or more"),
        (
            "slurm",
            {"cpus-per-task": "2"},
            "--executor-arg cpus_per_task: the executor sets it itself",
        ),
    ],
)
def test_wrong_settings_are_one_line(name, settings, said, request, monkeypatch):
    if "there is no GPU" in said:  # a machine with two
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    if name == "slurm":
        request.getfixturevalue("slurm")
    elif name == "ray":
        pytest.importorskip("ray", reason="no Ray: pip install 'ray[default]'")
    with pytest.raises(UserError) as raised:
        make_executor(ExecutorSpec(name, settings), Bar())
    assert str(raised.value).startswith(said) and "\n" not in str(raised.value)


def test_a_device_and_gpus_are_one_line():
    with pytest.raises(UserError, match="gpus=0,1 with --device cuda:1: give one"):
        make_executor(ExecutorSpec(settings={"gpus": "0,1"}, device="cuda:1"), Bar())


def test_a_task_with_a_gpu_does_not_compute_on_the_cpu_in_silence(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with make_executor(ExecutorSpec(jobs=1, settings={"gpus": "0"}), Bar()) as executor:
        assert executor.submit(tasks.device).result() == "cpu"
        with pytest.raises(UserError, match="was given a GPU"):
            executor.submit(tasks.device, gpus=1).result()
        assert executor.needs("train") == {"cpus": executor.num_workers + 1, "gpus": 1}
    with make_executor(ExecutorSpec(jobs=1, device="mps"), Bar()) as executor:
        assert executor.needs("train")["gpus"] == 0


def test_loading_processes_are_the_cores_that_fall_to_a_task():
    def loaders(jobs, settings, **told):
        return make_executor(ExecutorSpec("local", settings, jobs, **told), Bar()).num_workers

    assert loaders(0, {"cpus": "8", "gpus": "0,1"}) == 4
    assert loaders(2, {"cpus": "8"}, device="cpu") == 4
    assert loaders(0, {"cpus": "1"}, device="cpu") == 1
    assert loaders(1, {"cpus": "64"}, device="cpu") == base.MOST_LOADERS
    assert loaders(1, {"cpus": "8"}, device="cpu", num_workers=0) == 0


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("partition", "nowhere", "[Ii]nvalid partition"),
        ("time", "abc", "Invalid --time specification"),
        ("partitoin", "gpu", "unrecognized option '--partitoin=gpu'"),
    ],
)
def test_what_sbatch_refuses_is_one_line(slurm, key, value, told):
    with (
        make_executor(ExecutorSpec("slurm", {key: value}), Bar()) as executor,
        pytest.raises(UserError, match=f"sbatch refused doubled: .*{told}") as raised,
    ):
        executor.submit(tasks.doubled, 1).result(10)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "module"), [("slurm", "submitit"), ("ray", "ray")])
def test_what_is_not_installed_is_one_line(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"pip install 'cliptex-benchmark\[scale\]'"):
        make_executor(ExecutorSpec(name), Bar())


def test_no_sbatch_is_one_line(monkeypatch, tmp_path):
    pytest.importorskip("submitit", reason="no submitit: pip install submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch here"):
        make_executor(ExecutorSpec("slurm"), Bar())


def test_other_packages_bring_executors(tmp_path, monkeypatch):
    info = tmp_path / "somebodys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[cliptex_benchmark.executors]\nsomebodys = somebodys:Echo\nbroken ="
        " somebodys:nothing\nother = somebodys:Path\n"
    )
    (tmp_path / "somebodys.py").write_text(
        "from pathlib import Path\nfrom concurrent.futures import Future\nfrom benchmark.execution"
        " import Executor\nfrom benchmark.execution.task import execute\n\n\nclass"
        " Echo(Executor):\n    def _start(self, task):\n        future = Future()\n       "
        " future.set_result(execute(task))\n        return future\n\n    def _stop(self):\n       "
        " pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(base.EXECUTORS, "_things", dict(base.EXECUTORS._things))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with make_executor(ExecutorSpec("somebodys"), Bar()) as executor:
        assert (
            isinstance(executor, Executor) and executor.submit(tasks.doubled, 4).result(10)[0] == 8
        )
    with pytest.raises(UserError, match="executor 'broken' cannot be loaded"):
        make_executor(ExecutorSpec("broken"), Bar())
    with pytest.raises(UserError, match="no subclass of"):
        make_executor(ExecutorSpec("other"), Bar())


def _age(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    for path in (*folder.iterdir(), folder):
        os.utime(path, (then, then))
