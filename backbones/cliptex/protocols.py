"""What training and labelling ask of whoever calls them: a place for curves, and a progress bar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class RunLog(Protocol):
    """Where curves go; a tracker's run in real life, a list in a test."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record values of curves (``train/loss``, ``train/lr``, ``val/i2t_R@1`` …) at ``step``;
        cheap, batched."""


class Progress(Protocol):
    """A progress bar: rate and time left are its own business."""

    def start(self, description: str, total: int) -> None: ...

    def advance(self, steps: int = 1) -> None: ...


class Silent:
    """A ``RunLog`` and a ``Progress`` that keep nothing: for ranks other than the first, and for
    tests."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def start(self, description: str, total: int) -> None:
        pass

    def advance(self, steps: int = 1) -> None:
        pass
