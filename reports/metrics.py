"""What a metric is, declared where its probe is registered and recorded with each number: reports
keep no list of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass

TAG = "metrics.declared"
# what runs of older stores did not say
OLDER_UNITS = {"rmse": "m", "normal_mean": "°", "normal_median": "°", "normal_image_mean": "°"}
OLDER_LOWER = (*OLDER_UNITS, "abs_rel", "log10")  # less is better; of sweeps that did not say it
OLDER_PERCENT = re.compile(
    r"mIoU|mAcc|aAcc|(bbox|segm)_\w+|delta\d|normal_[\d.]+|top\d|[it]2[it]_R@\d+"
)


@dataclass(frozen=True)
class Metric:
    """A metric of a probe; the default is a score in percent.

    Attributes:
        direction: +1 where higher is better, else -1.
        unit: as it is written after the number; '' for a bare number.
        low, high: what it can be, None where there is no end.
        label: for people; '' is its name.
        shown: whether tables show it beside the main one, which they always do.
    """

    direction: int = 1
    unit: str = "%"
    low: float | None = 0.0
    high: float | None = 100.0
    label: str = ""
    shown: bool = False

    @property
    def floor(self) -> float:
        """What a baseline counts as at least when a change is relative to it: one point of a score,
        next to nothing of others."""
        return 1.0 if self.unit == "%" else 1e-6


def declare(metrics: Mapping[str, Metric]) -> str:
    """Metrics, the main one first, as the tag ``TAG`` of a run holds them."""
    default = asdict(Metric())
    return json.dumps(
        {
            name: {k: v for k, v in asdict(one).items() if v != default[k]}
            for name, one in metrics.items()
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )


def declared(tags: Mapping[str, str]) -> dict[str, Metric]:
    """The metrics of a run, the main one first; runs of older stores say directions only
    (``mIoU:+1,…``)."""
    with suppress(
        ValueError, TypeError, AttributeError, RecursionError, KeyError
    ):  # somebody has changed it
        return {name: Metric(**told) for name, told in json.loads(tags[TAG]).items()}
    found: dict[str, Metric] = {}
    for pair in filter(None, tags.get("directions", "").split(",")):
        name, _, sign = pair.rpartition(":")
        percent = OLDER_PERCENT.fullmatch(name) is not None
        unit = "%" if percent else OLDER_UNITS.get(name, "")
        direction = -1 if sign.startswith("-") else 1
        found[name] = Metric(
            direction,
            unit,
            0.0 if percent else None,
            100.0 if percent else None,
            shown=len(found) < 3,
        )
    return found
