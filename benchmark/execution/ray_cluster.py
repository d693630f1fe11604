"""Ray: a remote task for each unit, on this machine or on a cluster."""

from __future__ import annotations

import os
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from backbones.errors import UserError
from benchmark.execution.base import EXECUTORS, Executor, ExecutorSpec, WorkerLost, cores, threads_of_a_task
from benchmark.execution.progress import Bar
from benchmark.execution.task import Outcome, Task, execute

PATIENCE = 60.0  # seconds that cancelled tasks have for saving what they have
PASSED_ON = ("CLIPTEX_", "MLFLOW_", "HF_", "TORCH_HOME", "OMP_WAIT_POLICY", "PYTHONPATH", "AWS_", "NO_PROXY", "no_proxy")


class RayExecutor(Executor):
    """A Ray task for each unit. Ray sees to GPUs and nodes; a worker or node that dies is replaced by the driver."""

    about = "a Ray task for each unit, on a Ray of its own or on a cluster (--executor-arg address=auto)"
    options = {
        "address": "of a cluster: auto, HOST:PORT, ray://… (default: a Ray of this machine, for this command)",
        "num_cpus": "cores of a Ray of this machine",
        "num_gpus": "GPUs of a Ray of this machine",
    }

    def __init__(self, spec: ExecutorSpec, bar: Bar) -> None:
        super().__init__(spec, bar)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError:
            raise UserError("--executor ray needs Ray: pip install 'cliptex-benchmark[scale]'") from None
        self._ray: Any = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            passed = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
            settings: dict[str, Any] = {"runtime_env": {"env_vars": passed}, "log_to_driver": False}
            if address := spec.settings.get("address"):
                settings["address"] = address
            else:
                settings |= {"num_cpus": int(spec.settings.get("num_cpus", cores())), "include_dashboard": False}
                if "num_gpus" in spec.settings or spec.device == "cpu":
                    settings["num_gpus"] = int(spec.settings.get("num_gpus", 0))
            try:
                ray.init(**settings, logging_level="error")
            except Exception as error:
                told = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise UserError(
                    f"no Ray at {spec.settings.get('address', 'this machine')}: {told}; start one with `ray start --head`"
                ) from error
        there = ray.cluster_resources()
        self.has_gpus = there.get("GPU", 0) > 0
        self.several_nodes = sum(node["Alive"] for node in ray.nodes()) > 1
        room = int(there["GPU"]) if self.has_gpus and spec.device != "cpu" else int(there["CPU"]) // threads_of_a_task()
        self.width = max(1, min(room, spec.jobs) if spec.jobs else room)
        self._most = spec.jobs or 2**30
        self._queue: list[tuple[int, int, Task, Future[Outcome]]] = []
        self._refs: dict[Any, Task] = {}
        self._execute = ray.remote(execute)

    def where(self, cpus: int, gpus: int) -> str:
        return f"a Ray task ({f'{gpus} GPU, ' if gpus else ''}{cpus} cores)"

    def _start(self, task: Task, priority: int) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        with self._lock:
            self._queue.append((-priority, next(self._numbers), task, future))
        self._dispatch()
        return future

    def _dispatch(self) -> None:
        with self._lock:
            self._queue.sort(key=lambda each: each[:2])
            while self._queue and len(self._refs) < self._most and not self.closing:
                *_, task, future = self._queue.pop(0)
                needs = {"num_cpus": task.cpus, "num_gpus": task.gpus, "max_retries": 0, "name": task.name}
                ref = self._execute.options(**needs).remote(task)
                self._refs[ref] = task
                ref.future().add_done_callback(
                    lambda done, ref=ref, future=future: self._ended(done, ref, future)  # type: ignore[misc]
                )

    def _ended(self, done: Future[Any], ref: Any, future: Future[Outcome]) -> None:
        from ray import exceptions

        with self._lock:
            self._refs.pop(ref, None)
        error = done.exception()
        if isinstance(error, exceptions.TaskCancelledError):
            future.set_result(Outcome("interrupted"))
        elif isinstance(error, exceptions.RayTaskError):
            future.set_exception(RuntimeError(f"the task could not run: {error}"))
        elif isinstance(error, exceptions.RayError):
            future.set_exception(WorkerLost((str(error).strip().splitlines() or [type(error).__name__])[0]))
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(done.result())
        self._dispatch()

    def _stop(self) -> None:
        with self._lock:
            for *_, future in self._queue:
                future.cancel()
            self._queue.clear()
            refs = list(self._refs)
        for ref in refs:
            with suppress(Exception):
                self._ray.cancel(ref, force=False)
        end = time.monotonic() + PATIENCE
        while self._refs and time.monotonic() < end:
            time.sleep(0.1)

    def _release(self) -> None:
        if self._ours:
            self._ray.shutdown()


EXECUTORS.register("ray", RayExecutor)
