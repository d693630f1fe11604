"""A run log and a progress bar that store what they get."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Recorder:
    """Metrics with their step, descriptions and lengths of bars, and the number of steps.

    After ``die_at`` steps it interrupts, as Ctrl-C does, or kills the process.
    """

    metrics: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    started: list[tuple[str, int]] = field(default_factory=list)
    advanced: int = 0
    die_at: int | None = None
    kill: bool = False

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics.append((step, dict(metrics)))

    def start(self, description: str, total: int) -> None:
        self.started.append((description, total))

    def advance(self, steps: int = 1) -> None:
        self.advanced += steps
        if self.die_at is not None and self.advanced >= self.die_at:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt

    def curve(self, name: str) -> list[float]:
        return [metrics[name] for _, metrics in self.metrics if name in metrics]
