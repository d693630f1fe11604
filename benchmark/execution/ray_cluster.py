"""Ray: a remote task for each unit, on this machine or on a cluster."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, ClassVar

from benchmark.execution.base import Executor, ExecutorSpec, WorkerLost, positive
from benchmark.execution.progress import Bar, console
from benchmark.execution.task import Outcome, Task, cores, execute
from common.errors import UserError, first_line

PASSED_ON = (
    "CLIPTEX_",
    "MLFLOW_",
    "HF_",
    "AWS_",
    "NO_PROXY",
    "no_proxy",
    "TORCH_HOME",
    "OMP_WAIT_POLICY",
)


class RayExecutor(Executor):
    """A Ray task for each unit. Ray sees to GPUs and nodes; a worker or node that dies is replaced
    by the driver."""

    options: ClassVar[Mapping[str, str]] = {
        "address": (
            "of a cluster: auto, HOST:PORT, ray://… (default: a Ray of this machine, for this"
            " command)"
        ),
        "num_cpus": "cores of a Ray of this machine",
        "num_gpus": "GPUs of a Ray of this machine",
    }

    def __init__(self, spec: ExecutorSpec, bar: Bar) -> None:
        super().__init__(spec, bar)
        least = {"num_cpus": 1, "num_gpus": 0}
        sizes = {
            key: positive(key, spec.settings[key], least[key])
            for key in least
            if key in spec.settings
        }
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault(
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
        )  # ``execute`` hides GPUs from tasks without
        try:
            import ray
        except ImportError:
            raise UserError(
                "--executor ray needs Ray: pip install 'cliptex-benchmark[scale]'"
            ) from None
        self._ray: Any = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            _connect(ray, spec, sizes)
        nodes = [node for node in ray.nodes() if node["Alive"]]
        if not nodes:
            raise UserError("no node of this Ray is alive; start one with `ray start --head`")
        self._most_cpus, self._most_gpus = (
            int(max(node["Resources"].get(kind, 0) for node in nodes)) for kind in ("CPU", "GPU")
        )
        there = ray.cluster_resources()
        self.several_nodes = {node["NodeManagerHostname"] for node in nodes} != {
            socket.gethostname()
        } or len(nodes) > 1
        self._has_room(int(there.get("CPU", 1)), int(there.get("GPU", 0)) if spec.on_gpus else 0)
        self._on_cpus = ray.remote(max_retries=0)(in_worker)
        # a process that has computed on one GPU cannot see another: it ends with its task
        self._on_gpus = ray.remote(max_retries=0, max_calls=1, num_gpus=1)(in_worker)
        self._refs: set[Any] = set()
        # not by Ray's ``runtime_env``, which stands in clear in its logs; workers of a Ray of ours
        # inherit them
        inherited = self._ours and "address" not in spec.settings
        self._passed = (
            {} if inherited else {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}
        )

    def _start(self, task: Task) -> Future[Outcome] | None:
        if task.gpus > self._most_gpus:  # Ray would wait for such a node for ever
            raise UserError(
                f"{task.name} needs {task.gpus} GPUs, no node of this Ray has more than"
                f" {self._most_gpus}"
            )
        future: Future[Outcome] = Future()
        content = pickle.dumps(task)
        # cores never keep a GPU idle: a task on GPUs asks for at most their share of its node's
        most = self._most_cpus * task.gpus / self._most_gpus if task.gpus else self._most_cpus
        needs = {"num_cpus": min(task.cpus, most), "num_gpus": task.gpus, "name": task.name}
        ref = (
            (self._on_gpus if task.gpus else self._on_cpus)
            .options(**needs)
            .remote(content, self._passed)
        )
        self._refs.add(ref)
        ref.future().add_done_callback(lambda done: self._done(done, ref, future))
        return future

    def _done(self, done: Future[Any], ref: Any, future: Future[Outcome]) -> None:
        from ray import exceptions

        self._refs.discard(ref)
        try:
            outcome = done.result()
        except exceptions.TaskCancelledError:
            outcome = Outcome("interrupted")
        except Exception as error:
            lost = isinstance(error, exceptions.RayError) and not isinstance(
                error, exceptions.RayTaskError
            )
            told = first_line(error) if lost else f"the task could not run: {error}"
            outcome = Outcome.failed(WorkerLost(told) if lost else RuntimeError(told))
        future.set_result(outcome)

    def _stop(self) -> None:
        self._cancel(force=False)

    def release(self) -> None:
        self._cancel(force=True)
        if self._ours:
            self._ray.shutdown()

    def _cancel(self, force: bool) -> None:
        for ref in list(self._refs):
            with suppress(Exception):
                self._ray.cancel(ref, force=force)


def in_worker(content: bytes, variables: Mapping[str, str]) -> Outcome:
    """``execute``, and a thread that watches for the driver's wish to stop: Ray's own is only heard
    between two steps of Python, and not by a task that waits for its loading workers.

    Args:
        content: the pickled task, whose modules are imported when the environment has
            ``variables``.
    """
    os.environ.update(variables)
    task: Task = pickle.loads(content)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            if task.stop.exists():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    watcher = threading.Thread(target=watch, name="stop", daemon=True)
    watcher.start()
    try:
        return execute(task)
    finally:
        over.set()
        watcher.join()


def _connect(ray: Any, spec: ExecutorSpec, sizes: dict[str, int]) -> None:
    """Join a cluster, or start a Ray of this machine."""
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address := spec.settings.get("address", ""):
        found = (
            {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}
        )  # where this module is
        settings |= {"address": address, "runtime_env": {"env_vars": found}}
    else:
        no_gpus = {"num_gpus": 0} if not spec.on_gpus else {}
        # "local": a cluster that happens to run here is joined only when it is asked for
        settings |= {
            "address": "local",
            "num_cpus": cores(),
            "include_dashboard": False,
            **no_gpus,
            **sizes,
        }
    before = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            console.print(f"waiting for Ray at {address}", style="dim")
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if port.isdigit() and "/" not in host:  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(**settings)
    except Exception as error:
        where = f"no Ray at {address}" if address else "Ray cannot start on this machine"
        raise UserError(
            f"{where}: {first_line(error)}; start one with `ray start --head`"
        ) from error
    finally:
        if (
            threading.current_thread() is threading.main_thread()
        ):  # Ray has put its own in its place, which exits
            signal.signal(signal.SIGTERM, before)
