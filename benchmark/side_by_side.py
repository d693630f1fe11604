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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from benchmark.execution.progress import Bar, Lane, console


@dataclass(frozen=True)
class Job:
    """A function of a module (it must be found by name) and its arguments; ``bar`` is added.

    Attributes:
        after: place of an earlier job in the list, whose result this one takes as its argument ``result_as``.
        threads: on a CPU; 0 shares the cores among the jobs at once. Sums depend on it in their last bits, so give it
            where some of the jobs may be done already and the others must still end the same.
    """

    function: Callable[..., Any]
    arguments: dict[str, Any] = field(default_factory=dict)
    after: int | None = None
    result_as: str = ""
    threads: int = 0

    def given(self, results: Mapping[int, Any]) -> dict[str, Any]:
        """The arguments, with the result of the job that this one comes after."""
        return self.arguments if self.after is None else {**self.arguments, self.result_as: results[self.after]}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_of(jobs: int, most: int = 0) -> int:
    """Threads of each of ``jobs`` (``most`` at once, if above 0) that share the cores; at least one, and never more than
    torch may use here (``OMP_NUM_THREADS``)."""
    import torch

    return max(1, min(torch.get_num_threads(), cores() // max(1, min(jobs, cores(), most or jobs))))


def side_by_side(jobs: Sequence[Job], bar: Bar, *, device: str = "cpu", most: int = 0) -> list[Any]:
    """The jobs' results, in their order. As many at once as there are cores (``most`` at most, if above 0); on an
    accelerator, or where that is one, one after the other in this process. Those that can begin do so in their order.

    Raises:
        whatever a job raises, after the others were ended; RuntimeError when a process died.
    """
    count = min(len(jobs), cores(), most or len(jobs))
    if count < 2 or not device.startswith("cpu"):
        results: dict[int, Any] = {}
        for number, job in enumerate(jobs):
            with _threads(job.threads if device.startswith("cpu") else 0):
                results[number] = job.function(**job.given(results), bar=bar)
        return list(results.values())
    # spawned, not forked: a parent with torch's threads running must not be forked
    context = multiprocessing.get_context("spawn")
    todo, events = context.Queue(), context.Queue()
    todo.cancel_join_thread()  # jobs that nobody takes any more must not keep this process from ending
    started: list[Any] = []
    try:
        for _ in range(count):
            process = context.Process(target=_work, args=(todo, events, share_of(count)))
            process.start()
            started.append(process)
        return _follow(jobs, todo, events, started, bar)
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


def _follow(jobs: Sequence[Job], todo: Any, events: Any, started: Sequence[Any], bar: Bar) -> list[Any]:
    results: dict[int, Any] = {}
    lanes: dict[int, Lane] = {}

    def hand_out(after: int | None) -> None:
        """The jobs that may begin, now that ``after`` is done; None for those that come after nothing."""
        for number, job in enumerate(jobs):
            if job.after == after:
                todo.put((number, job.function, job.given(results), job.threads))

    hand_out(None)
    while len(results) < len(jobs):
        try:
            number, what, *facts = events.get(timeout=0.5)
        except queue.Empty:
            if any(process.exitcode is not None for process in started) and events.empty():
                codes = [process.exitcode for process in started]
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
            hand_out(number)
        elif what == "failed":
            raise _linked(facts[0])
        else:
            if number not in lanes:
                lanes[number] = bar.lane()
            getattr(lanes[number], what)(*facts)
        if number in results and number in lanes:
            lanes.pop(number).end()
    for _ in started:
        todo.put(None)
    return [results[number] for number in range(len(jobs))]


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
    """What a process does: jobs until there are none, each with ``threads`` of torch unless it says otherwise."""
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
            number, function, arguments, given_threads = item
            sender = _Sender(events, number)
            console.file = sender  # type: ignore[assignment]
            try:
                with _threads(given_threads or threads):
                    result = function(**arguments, bar=sender)
                pickle.dumps(result)  # the queue would drop in silence what cannot travel
                events.put((number, "done", result))
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
