"""What the pretended accelerator counts: waits and copies, each with the line of the project that
caused it, and the bytes of its tensors."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

ROOT = Path(__file__).parents[3]
PROJECT = tuple(
    f"{ROOT / folder}/"
    for folder in (
        "backbones",
        "benchmark",
        "cliptex_common",
        "probes",
        "reports",
        "sweeps",
        "tests",
    )
)
HERE = f"{Path(__file__).parent}/"

Kind = Literal["wait", "blocking copy", "async copy"]


@dataclass(frozen=True)
class Event:
    """Something that the device was asked for.

    Attributes:
        kind: ``wait`` for a result; ``blocking copy`` between CPU and device, of which the CPU
            waits for the end; ``async copy``.
        operator: of torch.
        line: of the project, ``folder/file.py:12``.
    """

    kind: Kind
    operator: str
    line: str


@dataclass
class Events:
    """How often each event happened while they were counted."""

    counts: Counter[Event] = field(default_factory=Counter)

    def number(self, kind: Kind) -> int:
        """Of events of a kind."""
        return sum(count for event, count in self.counts.items() if event.kind == kind)

    @property
    def waits(self) -> int:
        return self.number("wait")

    @property
    def blocking_copies(self) -> int:
        return self.number("blocking copy")

    def __str__(self) -> str:
        """A line for each event, the most frequent first."""
        return "\n".join(
            f"{count:5} {event.kind:13} {event.operator:28} {event.line}"
            for event, count in self.counts.most_common()
        )


_counting: list[Events] = []


@contextmanager
def counting() -> Iterator[Events]:
    """Count the events of the block, in all threads."""
    events = Events()
    _counting.append(events)
    try:
        yield events
    finally:
        _counting.remove(events)


def record(kind: Kind, operator: str) -> None:
    """Count an event for all who count."""
    if _counting:
        event = Event(kind, operator, project_line())
        for events in _counting:
            events.counts[event] += 1


def project_line() -> str:
    """The innermost line of the project that is being executed by this thread."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(PROJECT) and not path.startswith(HERE):
            return f"{Path(path).relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside the project"


class Memory:
    """Bytes of the tensors on the device. A storage counts once, while any tensor of it lives.

    Attributes:
        live, peak: bytes now, and the most since ``reset_peak``.
        limit: bytes of the device.
    """

    UNLIMITED = 2**40

    def __init__(self) -> None:
        self.live = self.peak = 0
        self.limit = self.UNLIMITED
        self._tensors: Counter[int] = Counter()  # of a storage
        self._lock = threading.RLock()  # a tensor may be deleted while another one is created

    def reset_peak(self) -> None:
        """Start measuring the peak anew."""
        self.peak = self.live

    def add(self, storage: int, size: int) -> None:
        """Count a tensor with a storage of ``size`` bytes.

        Raises:
            torch.OutOfMemoryError: the storage is new and exceeds the limit.
        """
        with self._lock:
            if not self._tensors[storage]:
                if self.live + size > self.limit:
                    del self._tensors[storage]
                    raise torch.OutOfMemoryError(
                        f"the pretended accelerator is out of memory: {size} bytes requested,"
                        f" {self.live} of {self.limit} in use ({project_line()})"
                    )
                self.live += size
                self.peak = max(self.peak, self.live)
            self._tensors[storage] += 1

    def remove(self, storage: int, size: int) -> None:
        """The end of a tensor that was added."""
        with self._lock:
            self._tensors[storage] -= 1
            if not self._tensors[storage]:
                del self._tensors[storage]
                self.live -= size


MEMORY = Memory()


@contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Raise ``torch.OutOfMemoryError`` in the block where tensors would take more than ``size``
    bytes together, those from before the block included."""
    previous, MEMORY.limit = MEMORY.limit, size
    try:
        yield
    finally:
        MEMORY.limit = previous


class Allocation:
    """The bytes of one tensor, counted as long as this object lives."""

    def __init__(self, host: torch.Tensor) -> None:
        storage = host.untyped_storage()
        self._storage, self._size = storage._cdata, storage.nbytes()
        MEMORY.add(self._storage, self._size)
        self._counted = True

    def __del__(self) -> None:
        if getattr(self, "_counted", False):
            MEMORY.remove(self._storage, self._size)
