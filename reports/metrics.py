"""Metrics are declared where their probe is registered and recorded with each number.

Reports have no list of metrics of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A metric of a probe; the default is a score in percent.

    Attributes:
        direction: +1 where higher is better, else -1.
        unit: as written after the number; '' for a bare number.
        low, high: bounds of its range, None where it is open.
        label: name in reports; '' for the metric's own name.
        shown: whether tables show it beside the main metric, which they always show.
    """

    direction: int = 1
    unit: str = "%"
    low: float | None = 0.0
    high: float | None = 100.0
    label: str = ""
    shown: bool = False

    @property
    def width(self) -> float:
        """Of its range; 0 where that is open."""
        return 0.0 if self.low is None or self.high is None else self.high - self.low

    @property
    def floor(self) -> float:
        """The smallest baseline value that a relative change is computed from.

        One point of a score, next to nothing of other metrics.
        """
        return 1.0 if self.unit == "%" else 1e-6


# (task, kind of its dataset, the dataset's main metric or '') → declarations of the task's metrics,
# the main one first; empty if the probe is not registered for this dataset. Of results that others
# share, metrics are what the probe says, never what the file says.
DECLARERS: list[Callable[[str, str, str], dict[str, Metric]]] = []
