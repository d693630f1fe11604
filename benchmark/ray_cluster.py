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
from typing import Any

from benchmark.executor import ExecutionOptions, Executor
from benchmark.progress import Bar, console
from benchmark.unit import Outcome, Unit, WorkerLost, execute, threads_per_unit
from cliptex_common.errors import UserError, first_line
from cliptex_common.process import cores

# prefixes of environment variables that units on a cluster need
FORWARDED = (
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
    """A Ray task for each unit; Ray assigns GPUs and nodes; lost tasks are submitted again.

    Settings: ``address`` of a cluster (``auto``, ``HOST:PORT``, ``ray://…``; default: a Ray on this
    machine for this command), and ``num_cpus`` and ``num_gpus`` of a Ray on this machine.
    """

    setting_names = ("address", "num_cpus", "num_gpus")

    def __init__(self, options: ExecutionOptions, bar: Bar) -> None:
        super().__init__(options, bar)
        sizes = {"num_cpus": options.executor_integer("num_cpus", cores())}
        if not options.uses_gpus or "num_gpus" in options.executor_arg:
            sizes["num_gpus"] = options.executor_integer("num_gpus", 0, minimum=0)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # ``execute`` hides GPUs from units without one
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray = self._ray = options.executor_library("ray")
        self._owned = not ray.is_initialized()
        if self._owned:
            _connect(ray, options, sizes)
        nodes = [node for node in ray.nodes() if node["Alive"]]
        if not nodes:
            raise UserError("no node of this Ray is alive; start one with `ray start --head`")
        self._node_cpus, self._node_gpus = (
            int(max(node["Resources"].get(kind, 0) for node in nodes)) for kind in ("CPU", "GPU")
        )
        hosts = {node["NodeManagerHostname"] for node in nodes}
        self.is_remote = len(nodes) > 1 or hosts != {socket.gethostname()}
        total = ray.cluster_resources()
        # A unit computes on one node: with ``--jobs``, however many, on all of its cores at most (1
        # here), without on its usual share (0).
        most_threads = threads_per_unit(self._node_cpus, min(options.jobs, 1))
        gpus = int(total.get("GPU", 0)) if options.uses_gpus else 0
        self._set_capacity(int(total.get("CPU", 1)), gpus, most_threads)
        self._cpu_task = ray.remote(max_retries=0)(in_worker)
        # a process that has used one GPU cannot see another: it ends with its unit
        self._gpu_task = ray.remote(max_retries=0, max_calls=1, num_gpus=1)(in_worker)
        self._refs: set[Any] = set()
        # Ray logs its ``runtime_env`` in clear text, so variables travel with the unit; the
        # workers of a local Ray inherit them
        self._variables: dict[str, str] = {}
        if "address" in options.executor_arg or not self._owned:
            self._variables = {k: v for k, v in os.environ.items() if k.startswith(FORWARDED)}

    def _start(self, unit: Unit) -> Future[Outcome] | None:
        if unit.gpus > self._node_gpus:  # Ray would wait for such a node for ever
            raise UserError(
                f"{unit.name} needs {unit.gpus} GPUs, no node of this Ray has more than"
                f" {self._node_gpus}"
            )
        cpus = float(self._node_cpus)
        if unit.gpus:  # a share of the node's cores, so that no GPU waits for cores
            cpus *= unit.gpus / self._node_gpus
        remote = self._gpu_task if unit.gpus else self._cpu_task
        remote = remote.options(num_cpus=min(unit.cpus, cpus), num_gpus=unit.gpus, name=unit.name)
        ref = remote.remote(pickle.dumps(unit), self._variables)
        self._refs.add(ref)
        future = ref.future()
        future.add_done_callback(lambda _: self._refs.discard(ref))
        return future

    def _result(self, future: Future[Outcome]) -> Any:
        errors = self._ray.exceptions
        try:
            return super()._result(future)
        except errors.TaskCancelledError:
            raise KeyboardInterrupt from None
        except errors.RayTaskError:  # raised by ``in_worker``
            raise
        except errors.RayError as error:
            raise WorkerLost(first_line(error)) from error

    def _stop(self) -> None:
        self._cancel(force=False)

    def release(self) -> None:
        self._cancel(force=True)
        if self._owned:
            self._ray.shutdown()

    def _cancel(self, force: bool) -> None:
        for ref in list(self._refs):
            with suppress(Exception):
                self._ray.cancel(ref, force=force)


def in_worker(content: bytes, variables: Mapping[str, str]) -> Outcome:
    """``execute`` in a process of Ray.

    Args:
        content: the pickled unit; its modules are imported after ``variables`` are set.
        variables: environment variables of the submitting process.
    """
    os.environ.update(variables)
    return execute(pickle.loads(content))


def _connect(ray: Any, options: ExecutionOptions, sizes: Mapping[str, int]) -> None:
    """Join a cluster, or start a Ray on this machine."""
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address := options.executor_arg.get("address", ""):
        path = os.environ.get("PYTHONPATH")  # where this module is
        variables = {"PYTHONPATH": path} if path else {}
        settings |= {"address": address, "runtime_env": {"env_vars": variables}}
    else:
        # "local": never join a cluster that happens to run here
        settings |= {"address": "local", "include_dashboard": False, **sizes}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            console.print(f"waiting for Ray at {address}", style="dim")
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(**settings)
    except Exception as error:
        line = first_line(error).rstrip(".")
        if address:
            raise UserError(
                f"no Ray at {address}: {line}; start one with `ray start --head`"
            ) from error
        raise UserError(
            f"Ray cannot start on this machine: {line}; where the machine is busy, start it with"
            " `ray start --head`, and join it with --executor-arg address=auto"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's own would exit
