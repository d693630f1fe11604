"""What a caller gives to long work: a log for curves, and a progress bar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class RunLog(Protocol):
    """Where curves go, such as a tracker's run."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record values of curves (``train/loss``, ``val/i2t_R@1`` …) at ``step``."""


class Progress(Protocol):
    """A progress bar."""

    def start(self, description: str, total: int) -> None: ...

    def advance(self, steps: int = 1) -> None: ...


class Silent:
    """A ``RunLog`` and a ``Progress`` that discard everything."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def start(self, description: str, total: int) -> None:
        pass

    def advance(self, steps: int = 1) -> None:
        pass
