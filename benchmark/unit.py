"""A unit of work as a worker receives it (``Unit``), and how a worker runs it (``execute``): the
same for all executors.

Beside them is what the code of a unit meets there: signals as ``KeyboardInterrupt``, streams that
hide secrets, its number of threads, and the model that the unit before it loaded.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial, wraps
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeVar

from benchmark.progress import ProgressLine, console, reporting
from cliptex_common import registry as plugins
from cliptex_common.errors import RunFailed, UserError, redact, user_error_message
from cliptex_common.process import keep_freed_memory, restrict_accelerators, return_freed_memory
from cliptex_common.progress import repeating

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_pid = os.getpid()  # of the process that called ``handle_signals``, not of forked ones
# The last signal, remembered: one that goes to the whole process group also kills the loading
# processes, whose death must not be taken for the failure of a unit.
_received = 0
# what is ignored after the first signal; (): all of ``STOP_SIGNALS``, but not a second Ctrl-C
_ignored_after: tuple[int, ...] = ()


def handle_signals(*, once: bool = False, numbers: Sequence[int] = STOP_SIGNALS) -> None:
    """Let the signals ``numbers`` raise ``KeyboardInterrupt`` here, and end forked processes. After
    the first, others are ignored, except Ctrl-C after Ctrl-C: batch systems and shells send theirs
    twice, to the process and to its group, and must not disturb the saving that the first starts.

    Args:
        once: ignore a second Ctrl-C, too. A worker may get one with its process group and one from
            its parent.
    """
    global _pid, _received, _ignored_after
    _pid, _received, _ignored_after = os.getpid(), 0, tuple(numbers) if once else ()
    for number in numbers:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, _handle)


@contextmanager
def interruptible(numbers: Sequence[int] = STOP_SIGNALS) -> Iterator[None]:
    """``handle_signals(once=True)`` while the block runs; does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in numbers}
    handle_signals(once=True, numbers=numbers)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def exit_on_next_signal(code: int) -> None:
    """Let the next signal end the process at once with ``code``: nothing is left to save."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: os._exit(code))


def received() -> int:
    """The number of the signal received since ``handle_signals``, or 0."""
    return _received


def _handle(number: int, frame: FrameType | None) -> None:
    global _received
    if os.getpid() != _pid:
        os._exit(128 + number)
    _received = number
    # An exception would be swallowed, or leave a half-imported library: sent again a little later.
    if _is_importing(frame):
        threading.Timer(0.05, os.kill, (_pid, number)).start()
        return
    for each in _ignored_after or {*STOP_SIGNALS} - ({signal.SIGINT} & {number}):
        signal.signal(each, signal.SIG_IGN)
    logging.getLogger("asyncio").disabled = True  # tracebacks of tasks that end by this
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


@contextmanager
def as_interrupt() -> Iterator[None]:
    """Turn an error raised after a signal into the interruption."""
    try:
        yield
    except Exception as error:
        if _received:
            raise KeyboardInterrupt from error
        raise


class RedactingStream:
    """A text stream that hides secrets in everything written to ``stream``."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def redact_streams() -> None:
    """Redact this process's standard streams from now on, for libraries and tracebacks too;
    characters that their encoding lacks are replaced."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # not redacted yet
            stream.reconfigure(errors="replace" if name == "stdout" else "backslashreplace")
            setattr(sys, name, RedactingStream(stream))


T = TypeVar("T")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
GPUS = "CLIPTEX_UNIT_GPUS"  # number of GPUs of this process's unit, for ``choose_device``
ABANDONED = 30 * 86400.0  # seconds without a change after which a unit's folder is deleted


class WorkerLost(RunFailed):
    """The worker of a unit died: it was killed, ran out of memory, or its node failed."""


@dataclass(frozen=True)
class _PickledCall:
    """Function and arguments of a unit in another process, and the plugins that they need there.
    The function's module is imported first, and with it the registries that plugins add to."""

    module: str
    plugins: tuple[tuple[str, bytes], ...]
    content: bytes

    def load(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        import_module(self.module)
        for path, source in self.plugins:
            plugins.load(path, source, registers=False)
        return pickle.loads(self.content)


@dataclass(frozen=True)
class Unit:
    """A module-level function and its arguments: plain values, so that any process can run it.

    Attributes:
        folder: holds the progress (``status.json``) and the output (``log.txt``); the submitting
            process and the worker both see it.
        cpus: number of reserved cores and of computing threads.
        gpus: number of GPUs; the unit sees no others.
        kind: ``probe``, ``train`` …; units of one kind take about equally long.
        cwd: working folder of the submitting process.
        software: versions of the submitting process, if units run on several nodes, which must have
            the same.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    name: str
    folder: Path
    cpus: int = 1
    gpus: int = 0
    kind: str = ""
    cwd: str = field(default_factory=os.getcwd)
    software: Mapping[str, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """In a worker ``function`` is a ``_PickledCall`` of both, which ``call`` unpacks."""
        content = pickle.dumps((self.function, self.args))
        call = _PickledCall(self.function.__module__, plugins.plugin_sources(), content)
        return {**vars(self), "function": call, "args": ()}

    def call(self) -> Any:
        """Run it in this process, with the plugins of the submitting one; ``sys.exit`` fails the
        unit instead of ending the process."""
        function, args = self.function, self.args
        if isinstance(function, _PickledCall):
            function, args = function.load()
        os.environ[GPUS] = str(self.gpus)
        keep_freed_memory()
        try:
            return function(*args)
        except SystemExit as error:
            raise RuntimeError(f"{self.name} called sys.exit({error.code!r})") from error
        finally:
            os.environ.pop(GPUS, None)
            return_freed_memory()

    @property
    def status_file(self) -> Path:
        return self.folder / "status.json"

    @property
    def stop_file(self) -> Path:
        """Created by the submitting process to stop the unit, which saves its state and ends."""
        return self.folder / "stop"

    @property
    def log_file(self) -> Path:
        return self.folder / "log.txt"


@dataclass(frozen=True)
class Outcome:
    """How a unit ended; ``content`` is the pickled result or error."""

    kind: Literal["done", "failed", "interrupted"]
    content: bytes = b""
    signal: int = 0

    @classmethod
    def of(cls, call: Callable[[], Any]) -> Outcome:
        """The outcome of ``call()``; an error after a signal counts as the interruption."""
        try:
            with as_interrupt():
                return cls("done", pickle.dumps(call()))
        except KeyboardInterrupt:
            return cls("interrupted", signal=received())
        except Exception as error:
            return cls.failed(_portable(error))

    @classmethod
    def failed(cls, error: Exception) -> Outcome:
        """A unit that failed with ``error``, which must be picklable."""
        return cls("failed", pickle.dumps(error))

    def result(self) -> Any:
        """The unit's result; raises its error, or ``KeyboardInterrupt``."""
        if self.kind == "interrupted":
            raise KeyboardInterrupt
        if self.kind == "failed":
            raise self.error()
        return pickle.loads(self.content)

    def error(self) -> Exception:
        """The error of a failed unit."""
        return pickle.loads(self.content)


def execute(unit: Unit, signals: Sequence[int] = STOP_SIGNALS) -> Outcome:
    """Run a unit in a worker, with its threads; its progress and output are written to files."""
    try:
        with ExitStack() as stack:
            # entered first: a signal before this line is not treated as an interruption
            stack.enter_context(interruptible(signals))
            if unit.software is not None:
                _check_node(unit.folder, unit.software)
            unit.folder.mkdir(parents=True, exist_ok=True)
            if not unit.gpus:
                os.environ.update(restrict_accelerators())
            with suppress(OSError):
                os.chdir(unit.cwd)
            stack.enter_context(threads(unit.cpus))
            progress = ProgressLine()
            write_progress = partial(progress.write, unit.status_file)
            stack.callback(write_progress)
            stack.enter_context(repeating(write_progress, 1.0))
            stack.enter_context(repeating(partial(_obey, unit.stop_file), 0.5))
            stack.enter_context(reporting(progress))
            # restore the console's file at the end
            stack.callback(setattr, console, "file", console._file)
            redact_streams()
            log = unit.log_file.open("a", encoding="utf-8", errors="replace", buffering=1)
            console.file = RedactingStream(stack.enter_context(log))  # type: ignore[assignment]
            return Outcome.of(unit.call)
    except KeyboardInterrupt:  # before the unit started, or after its end
        return Outcome("interrupted", signal=received())
    except UserError as error:  # the node is not set up like the submitting machine
        return Outcome.failed(error)


def _obey(stop: Path) -> None:
    if stop.exists():
        os.kill(os.getpid(), signal.SIGTERM)


_last_load: Any = None  # the ``lru_cache`` of the function that loaded a model last


def keep_last_model(load: Callable[..., T]) -> Callable[..., T]:
    """Decorate a function that loads a model: the last one stays in this process for the next unit.

    Of all such functions together only one model stays, because models are large.
    """
    cached_load = lru_cache(maxsize=1)(load)

    @wraps(load)
    def call(*args: Any, **kwargs: Any) -> T:
        global _last_load
        if _last_load is not cached_load:
            drop_last_model()
            _last_load = cached_load
        return cached_load(*args, **kwargs)

    return call


def drop_last_model() -> None:
    """Free what ``keep_last_model`` keeps."""
    if _last_load is not None:
        _last_load.cache_clear()


@cache
def software() -> Mapping[str, str]:
    """The commit and the versions that a number depends on."""
    from reports.provenance import environment

    versions = environment()
    # without "+…" of uncommitted changes: all nodes see the same checkout with them
    commit = versions["git.commit"].partition("+")[0]
    return {"git.commit": commit, "python": versions["python"], **versions["packages"]}


def _check_node(folder: Path, submitting: Mapping[str, str]) -> None:
    """Raise ``UserError`` if this node does not see ``folder`` or has other versions."""
    node, here = socket.gethostname(), software()
    if not folder.is_dir():
        raise UserError(
            f"node {node} does not see {folder.parent}; set CLIPTEX_HOME to a folder that all nodes"
            " share, under one path"
        )
    differences = [
        f"{name} {here[name]} instead of {version}"
        for name, version in submitting.items()
        if version and here.get(name) and here[name] != version  # a node may lack git
    ]
    if differences:
        raise UserError(
            f"node {node} has other software than the submitting machine: {', '.join(differences)};"
            " use the same environment and checkout on all nodes"
        )


def threads_per_unit(cpus: int, jobs: int = 0) -> int:
    """Computing threads of a unit on a CPU: ``cpus`` divided by ``jobs``; without ``jobs`` a
    quarter of them, from 1 to 8. At most ``OMP_NUM_THREADS``.

    It must not depend on what other units do: the last bits of sums depend on the number of
    threads.
    """
    share = max(1, cpus // jobs if jobs else min(8, cpus // 4))
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(limit)) if limit.isdigit() and int(limit) > 0 else share


@contextmanager
def environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables while the block runs."""
    previous = {name: os.environ[name] for name in values if name in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        os.environ.update(previous)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch and linear algebra compute with ``count`` threads while the block runs."""
    from threadpoolctl import threadpool_limits

    torch = sys.modules.get("torch")
    torch_threads = torch.get_num_threads() if torch else 0
    # the variables are for libraries imported in the block
    with environment_variables(dict.fromkeys(THREADS, str(count))):
        try:
            if torch:
                torch.set_num_threads(count)
            with threadpool_limits(count):
                yield
        finally:
            if torch:
                torch.set_num_threads(torch_threads)


def _portable(error: Exception) -> Exception:
    """The user's error as one line; a bug with its traceback, or its message if it cannot be
    pickled."""
    if message := user_error_message(error):
        return UserError(message)
    error.add_note("in another process:\n" + "".join(traceback.format_exception(error)))
    with suppress(Exception):
        if str(pickle.loads(pickle.dumps(error))) == str(error):
            return error
    substitute = RuntimeError(f"{type(error).__name__}: {error}")
    substitute.__notes__ = error.__notes__
    return substitute


def remove_folder(folder: Path, tries: int = 5) -> None:
    """Remove a unit's folder, even if an abandoned worker still writes its progress there."""
    for _ in range(tries):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)


def remove_abandoned(root: Path) -> None:
    """Remove the folders that no unit has written to for a month: their submitting process was
    killed."""
    for folder in root.glob("*"):
        with suppress(OSError):
            newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if newest < time.time() - ABANDONED:
                remove_folder(folder)
