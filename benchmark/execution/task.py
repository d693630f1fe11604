"""One unit of work on its way to a worker, and what the worker does with it: the same for every
executor."""

from __future__ import annotations

import functools
import os
import pickle
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from benchmark.execution.interrupts import ASKED, interruptible, received
from benchmark.execution.progress import TaskProgress, console, reporting
from benchmark.execution.streams import Discreet, discreet
from common.errors import UserError, user_error_message
from common.files import keep_sockets_short
from reports.mlflow.environment import environment
from reports.mlflow.heartbeat import Heartbeat

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
GPUS = "CLIPTEX_TASK_GPUS"  # how many the task of this process, or of its parent, was given


@dataclass(frozen=True)
class Task:
    """A function of a module and its arguments: plain values, so that any process anywhere can run
    it.

    Attributes:
        folder: of its heartbeat (``status.json``, with progress) and of what it said (``log.txt``);
            every process sees it.
        cpus: threads that it computes with, whoever else runs.
        gpus: how many it needs; it sees no others.
        cwd: the caller's working folder.
        software: the caller's, where tasks run on several nodes: theirs must be the same, and they
            must see ``folder``.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    name: str
    folder: Path
    cpus: int = 1
    gpus: int = 0
    cwd: str = field(default_factory=os.getcwd)
    software: Mapping[str, str] | None = None

    def call(self) -> Any:
        """Run it here; ``sys.exit`` in it ends the task, and not whoever waits for it."""
        os.environ[GPUS] = str(self.gpus)
        try:
            return self.function(*self.args)
        except SystemExit as error:
            raise RuntimeError(
                f"{self.name} called sys.exit({error.code!r}) instead of returning a result"
            ) from error
        finally:
            os.environ.pop(GPUS, None)

    @property
    def status(self) -> Path:
        return self.folder / "status.json"

    @property
    def stop(self) -> Path:
        """A file that is there once its driver wishes it to stop: a signal may come before it is
        heard."""
        return self.folder / "stop"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"


@dataclass(frozen=True)
class Outcome:
    """How a task ended; ``content`` is the pickled result, or the pickled errors, the first one
    first."""

    kind: Literal["done", "failed", "interrupted"]
    content: bytes = b""
    signal: int = 0

    @classmethod
    def of(cls, call: Callable[[], Any]) -> Outcome:
        """How ``call()`` ends; what breaks after a signal came is the interruption."""
        try:
            return cls("done", pickle.dumps(call()))
        except Exception as error:
            return (
                cls("interrupted", signal=received())
                if received()
                else cls("failed", pickle.dumps(_portable(error)))
            )
        except KeyboardInterrupt:
            return cls("interrupted", signal=received())

    @classmethod
    def failed(cls, error: Exception) -> Outcome:
        """Of a task that could not run, or whose worker vanished."""
        return cls("failed", pickle.dumps([error]))

    def result(self) -> Any:
        """The result; raises the task's own error with its causes behind it."""
        if self.kind == "interrupted":
            raise KeyboardInterrupt
        found = pickle.loads(self.content)
        if self.kind == "done":
            return found
        for error, cause in pairwise(found):
            error.__cause__ = cause
        raise found[0]


def execute(task: Task, signals: Sequence[int] = ASKED) -> Outcome:
    """Run a task in a worker: with its threads, a heartbeat that shows its progress, and its words
    in ``log.txt``."""
    try:
        with ExitStack() as stack:
            stack.enter_context(interruptible(signals))  # first: what comes earlier is lost
            keep_sockets_short()
            if task.software is not None:
                _must_share(task.folder, task.software)
            task.folder.mkdir(parents=True, exist_ok=True)
            if not task.gpus:
                os.environ["CUDA_VISIBLE_DEVICES"] = ""
            with suppress(OSError):
                os.chdir(task.cwd)
            stack.enter_context(threads(task.cpus))
            beat = stack.enter_context(Heartbeat(task.status, name=task.name))
            stack.enter_context(reporting(TaskProgress(beat)))
            stack.callback(
                setattr, console, "file", console._file
            )  # what was set, not what standard output is now
            stack.enter_context(discreet())
            log = stack.enter_context(
                task.log.open("a", encoding="utf-8", errors="replace", buffering=1)
            )
            console.file = Discreet(log)  # type: ignore[assignment]
            _forget(task.function)
            return Outcome("interrupted") if task.stop.exists() else Outcome.of(task.call)
    except KeyboardInterrupt:  # before the task began, or after it ended
        return Outcome("interrupted", signal=received())
    except UserError as error:  # what nodes must share
        return Outcome.failed(error)


_last: Callable[..., Any] | None = None


def _forget(function: Callable[..., Any]) -> None:
    """What this process keeps for the next task of one kind (``forget`` of its function) goes
    before one of another kind."""
    global _last
    before, _last = _last, function
    if before is not None and before is not function and hasattr(before, "forget"):
        before.forget()


@functools.cache
def software() -> Mapping[str, str]:
    """The commit and the versions that a number depends on."""
    found = environment()
    commit = found["git.commit"].partition("+")[
        0
    ]  # one checkout, which is edited or not, is seen by all
    return {"git.commit": commit, "python": found["python"], **found["packages"]}


def _must_share(folder: Path, driver: Mapping[str, str]) -> None:
    """What nodes share with the driver. Raises ``UserError`` when this one does not see ``folder``,
    or has other software."""
    node, here = socket.gethostname(), software()
    if not folder.is_dir():
        raise UserError(
            f"node {node} does not see {folder.parent}; set CLIPTEX_HOME to a folder that all nodes"
            " share, under one path"
        )
    other = [
        f"{name} {here.get(name) or 'none'} (there {version or 'none'})"
        for name, version in driver.items()
        if here.get(name) != version
        and not (name == "git.commit" and "" in (version, here.get(name, "")))
    ]
    if other:
        raise UserError(
            f"node {node} has other software than the machine that submits: {', '.join(other)}; use"
            " one environment and checkout on all"
        )


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of_a_task() -> int:
    """Threads that a unit computes with on a CPU: a quarter of this machine's cores, 1 to 8, and at
    most ``OMP_NUM_THREADS``.

    It does not depend on how many tasks there are or run: the last bits of sums do depend on it,
    and a number must not depend on who else is at work.
    """
    share = max(1, min(8, cores() // 4))
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(asked)) if asked.isdigit() and int(asked) > 0 else share


@contextmanager
def threads(count: int) -> Iterator[None]:
    """``count`` threads for torch and the linear algebra while the block runs: sums depend on it in
    their last bits."""
    from threadpoolctl import threadpool_limits

    before = {name: os.environ[name] for name in THREADS if name in os.environ}
    os.environ.update(
        dict.fromkeys(THREADS, str(count))
    )  # read by libraries that are imported in the block
    torch = sys.modules.get("torch")
    had = torch.get_num_threads() if torch else 0
    try:
        if torch:
            torch.set_num_threads(count)
        with threadpool_limits(count):
            yield
    finally:
        if torch:
            torch.set_num_threads(had)
        for name in THREADS:
            os.environ.pop(name, None)
        os.environ.update(before)


def _portable(error: BaseException) -> list[BaseException]:
    """The error and its causes; what cannot travel between processes is replaced by what says the
    same."""
    if user_error_message(error) is None:
        error.add_note("in another process:\n" + "".join(traceback.format_exception(error)))
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and len(chain) < 10:
        chain.append(_traveller(cause))
        cause = cause.__cause__
    return chain


def _traveller(error: BaseException) -> BaseException:
    with suppress(Exception):
        if str(pickle.loads(pickle.dumps(error))) == str(error):
            return error
    users = getattr(error, "exit_code", None) == 2
    twin = UserError(str(error)) if users else RuntimeError(f"{type(error).__name__}: {error}")
    for note in getattr(error, "__notes__", ()):
        twin.add_note(note)
    return twin


ABANDONED = 30 * 86400.0  # seconds without a sign of life after which a task's folder is nobody's


def remove(folder: Path, tries: int = 5) -> None:
    """Remove a task's folder, also where a worker that was given up writes its heartbeat
    meanwhile."""
    for _ in range(tries):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)


def sweep(root: Path) -> None:
    """Remove the folders of tasks whose driver was killed long ago: their workers have shown no
    sign of life since."""
    for folder in root.glob("*"):
        with suppress(OSError):
            if (
                max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
                < time.time() - ABANDONED
            ):
                shutil.rmtree(folder, ignore_errors=True)
