"""What a task costs: the seconds of each phase, and the images that went through it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")
END = object()


@dataclass
class Cost:
    """Seconds and images by phase: ``encode``, ``text``, ``train`` and ``eval``.

    ``images["encode"]`` counts what went through the backbone, each view of an image once.
    """

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    images: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to a phase, less those of phases inside the block."""
        before, started = sum(self.seconds.values()), time.perf_counter()
        try:
            yield
        finally:
            inner = sum(self.seconds.values()) - before
            self.seconds[name] += time.perf_counter() - started - inner

    def timed(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yield ``items``; the seconds spent producing them count as a phase."""
        iterator = iter(items)
        while True:
            with self.phase(name):
                item = next(iterator, END)
            if item is END:
                return
            yield item  # type: ignore[misc]

    def add(self, cost: Cost, share: float = 1.0) -> None:
        """Add a share of another cost, such as that of a pass made for several tasks."""
        for name, seconds in cost.seconds.items():
            self.seconds[name] += share * seconds
        for name, images in cost.images.items():
            self.images[name] += share * images
        self.notes += [note for note in cost.notes if note not in self.notes]

    def metrics(self) -> dict[str, float]:
        """``PHASE_seconds``, and ``PHASE_images_per_second`` of phases that count images.

        Without ``encode`` where every feature came from the cache.
        """
        metrics = {}
        for name, seconds in self.seconds.items():
            images = self.images.get(name)
            if images or name != "encode":
                metrics[f"{name}_seconds"] = seconds
            if images and seconds:
                metrics[f"{name}_images_per_second"] = images / seconds
        return metrics
