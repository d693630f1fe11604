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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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


def side_by_side(jobs: Sequence[Job], bar: Bar, *, device: str = "cpu", most: int = 0) -> list[Any]:
    """The jobs' results, in their order. As many at once as there are cores (``most`` at most, if above 0), which share
    them; on an accelerator, or where that is one, one after the other in this process.

    Raises:
        whatever a job raises, after the others were ended; RuntimeError when a process died.
    """
    count = min(len(jobs), cores(), most or len(jobs))
    if count < 2 or not device.startswith("cpu"):
        return [job.function(**job.arguments, bar=bar) for job in jobs]
    # spawned, not forked: a parent with torch's threads running must not be forked
    context = multiprocessing.get_context("spawn")
    todo, events = context.Queue(), context.Queue()
    for item in [*enumerate(jobs), *[None] * count]:
        todo.put(item)
    started = [context.Process(target=_work, args=(todo, events, max(1, cores() // count))) for _ in range(count)]
    for process in started:
        process.start()
    try:
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


def _follow(count: int, events: Any, started: Sequence[Any], bar: Bar) -> list[Any]:
    results: dict[int, Any] = {}
    lanes: dict[int, Lane] = {}
    while len(results) < count:
        try:
            number, what, *facts = events.get(timeout=0.5)
        except queue.Empty:
            if any(process.exitcode not in (None, 0) for process in started) and events.empty():
                raise RuntimeError(
                    "a process died, perhaps for want of memory; what was finished is kept: run again to go on"
                ) from None
            continue
        if what == "say":
            console.print(facts[0], markup=False, end="")
        elif what == "done":
            results[number] = facts[0]
        elif what == "failed":
            raise facts[0]
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

    interrupt.install()
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
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(130)


def _portable(error: Exception) -> Exception:
    """The error, or where it cannot travel between processes one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
