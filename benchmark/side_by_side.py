"""Work that does not wait for other work, side by side in processes: on a CPU two trainings of one thread each finish well
before one after the other of two threads, since small layers leave threads waiting for each other.

Each process ends with its parent, however that went, and is told of an interruption: what it was doing is then saved and
its run KILLED, as always.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from benchmark.progress import Bar, Lane, console


@dataclass(frozen=True)
class Job:
    """A function of a module (it must be found by name) and its arguments; ``bar`` is added."""

    function: Callable[..., Any]
    arguments: dict[str, Any] = field(default_factory=dict)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_of(jobs: int, most: int = 0) -> int:
    """Threads of each of ``jobs`` (``most`` at once, if above 0) that share the cores; at least one, and never more than
    torch may use here (``OMP_NUM_THREADS``)."""
    import torch

    return max(1, min(torch.get_num_threads(), cores() // max(1, min(jobs, cores(), most or jobs))))


def side_by_side(jobs: Sequence[Job], bar: Bar, *, device: str = "cpu", most: int = 0, threads: int = 0) -> list[Any]:
    """The jobs' results, in their order. As many at once as there are cores (``most`` at most, if above 0); on an
    accelerator, or where that is one, one after the other in this process.

    Args:
        threads: of each job on a CPU; 0 shares the cores among those at once. Sums depend on it in their last bits, so
            give it where some of the jobs may be done already and the others must still end the same.

    Raises:
        whatever a job raises, after the others were ended; RuntimeError when a process died.
    """
    count = min(len(jobs), cores(), most or len(jobs))
    if not device.startswith("cpu"):
        return [job.function(**job.arguments, bar=bar) for job in jobs]
    if count < 2:
        with _threads(threads):
            return [job.function(**job.arguments, bar=bar) for job in jobs]
    # spawned, not forked: a parent with torch's threads running must not be forked
    context = multiprocessing.get_context("spawn")
    todo, events = context.Queue(), context.Queue()
    todo.cancel_join_thread()  # jobs that nobody takes any more must not keep this process from ending
    for item in [*enumerate(jobs), *[None] * count]:
        todo.put(item)
    started: list[Any] = []
    try:
        for _ in range(count):
            process = context.Process(target=_work, args=(todo, events, threads or share_of(count)))
            process.start()
            started.append(process)
        return _follow(len(jobs), events, started, bar)
    except BaseException:
        for process in started:
            process.terminate()
        raise
    finally:
        for process in started:
            process.join(60)
            if process.is_alive():
                process.kill()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """``count`` threads of torch in this process, if above 0."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _follow(count: int, events: Any, started: Sequence[Any], bar: Bar) -> list[Any]:
    results: dict[int, Any] = {}
    lanes: dict[int, Lane] = {}
    while len(results) < count:
        try:
            number, what, *facts = events.get(timeout=0.5)
        except queue.Empty:
            codes = [process.exitcode for process in started]
            if (any(codes) or None not in codes) and events.empty():
                raise RuntimeError(
                    "a process died, perhaps for want of memory; what was finished is kept: run again to go on"
                    if any(codes)
                    else "a process ended without its result; see what it said above"
                ) from None
            continue
        if what == "say":
            console.print(facts[0], markup=False, end="")
        elif what == "done":
            results[number] = facts[0]
        elif what == "failed":
            raise _linked(facts[0])
        else:
            if number not in lanes:
                lanes[number] = bar.lane()
            getattr(lanes[number], what)(*facts)
        if number in results and number in lanes:
            lanes.pop(number).end()
    return [results[number] for number in range(count)]


class _Sender:
    """The lane of a job, and its standard output, as events for the parent."""

    def __init__(self, events: Any, number: int) -> None:
        self.events, self.number, self.prefix = events, number, ""

    def start(self, description: str, total: int) -> None:
        self.events.put((self.number, "start", f"{self.prefix}{description}", total))

    def advance(self, steps: int = 1) -> None:
        self.events.put((self.number, "advance", steps))

    def write(self, text: str) -> None:
        if text:
            self.events.put((self.number, "say", text))

    def flush(self) -> None:
        pass


def _work(todo: Any, events: Any, threads: int) -> None:
    """What a process does: jobs until there are none."""
    from benchmark import interrupt

    interrupt.install(once=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business, which then ends its processes
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported, which is with the first job
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()  # returns when the parent is gone, however it went
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    try:
        while (item := todo.get()) is not None:
            number, job = item
            sender = _Sender(events, number)
            console.file = sender  # type: ignore[assignment]
            try:
                events.put((number, "done", job.function(**job.arguments, bar=sender)))
            except Exception as error:
                events.put((number, "failed", _portable(error)))
    except KeyboardInterrupt:
        events.cancel_join_thread()  # nobody reads them any more
        sys.exit(130)


def _portable(error: BaseException) -> list[BaseException]:
    """The error and its causes; what cannot travel between processes is replaced by what says the same."""
    if getattr(error, "exit_code", None) != 2:
        error.add_note("in another process:\n" + "".join(traceback.format_exception(error)))
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        try:
            pickle.loads(pickle.dumps(cause))
            chain.append(cause)
        except Exception:
            chain.append(RuntimeError(f"{type(cause).__name__}: {cause}"))
        cause = cause.__cause__ or cause.__context__
    return chain


def _linked(chain: Sequence[BaseException]) -> BaseException:
    """The error again, its causes behind it."""
    for error, cause in pairwise(chain):
        error.__cause__ = cause
    return chain[0]
