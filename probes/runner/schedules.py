"""Learning rates and betas of published sources that no scheduler of mmengine gives.

Importing the module registers ``SourceLR`` and ``SourceMomentum``, which configs name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.optim.scheduler.momentum_scheduler import MomentumSchedulerMixin
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS

# (iteration, iterations of warm-up, iterations of training) → share of the highest rate, or beta 1
Curve = Callable[[int, int, int], float]


def _cosine(share: float) -> float:
    """From 1 at 0 to 0 at 1."""
    return (1 + math.cos(math.pi * share)) / 2


def dinov3_segmentation(iteration: int, warm: int, end: int) -> float:
    step = max(iteration - 1, 0)  # it does not step after the first iteration
    if step < warm:
        return (1e-6 + (1 - 1e-6) * step / warm) * (1 - step / end)
    return _cosine((step + 1) / end)


def dinov3_depth(iteration: int, warm: int, end: int) -> float:
    if iteration < warm:
        return 1e-3 + _cosine(iteration / end) * iteration / warm
    floor = 1 / 25_000
    return floor + (1 - floor) * _cosine((iteration + 1) / end)


def pixio(iteration: int, warm: int, end: int) -> float:
    step = iteration - 1  # the rate is set after an iteration, from its number
    if step < 0:
        return 1.0
    return step / warm if step < warm else (1 - (step - warm) / (end - warm)) ** 0.9


def probe3d(iteration: int, warm: int, end: int) -> float:
    if iteration < warm:
        share = iteration / warm
    else:
        share = math.cos(math.pi / 2 * (iteration - warm) / (end - warm))
    return 0.99 * share + 0.01


def dinov3_depth_beta(iteration: int, warm: int, end: int) -> float:
    if iteration < warm:
        return 0.0
    return 0.95 - 0.1 * _cosine((iteration - warm) / (end - warm))


RATES: dict[str, Curve] = {
    "dinov3-segmentation": dinov3_segmentation,
    "dinov3-depth": dinov3_depth,
    "pixio": pixio,
    "probe3d": probe3d,
}
BETAS: dict[str, Curve] = {"dinov3-depth": dinov3_depth_beta}


class _Source(_ParamScheduler):
    """A parameter that follows the curve of ``source``.

    Args:
        source: key of ``RATES`` or ``BETAS``.
        warm: iterations of warm-up.
    """

    def __init__(self, optimizer: Any, *args: Any, source: str, warm: int, **kwargs: Any) -> None:
        self.source, self.warm = source, warm
        super().__init__(optimizer, *args, **kwargs)


@PARAM_SCHEDULERS.register_module()
class SourceLR(LRSchedulerMixin, _Source):
    """``RATES[source]`` times the optimizer's rate."""

    def _get_value(self) -> list[float]:
        share = RATES[self.source](self.last_step, self.warm, self.end)
        return [base * share for base in self.base_values]


@PARAM_SCHEDULERS.register_module()
class SourceMomentum(MomentumSchedulerMixin, _Source):
    """``BETAS[source]`` as beta 1."""

    def _get_value(self) -> list[float]:
        return [BETAS[self.source](self.last_step, self.warm, self.end)] * len(self.base_values)


def source_schedule(source: str, warm: int) -> list[dict[str, Any]]:
    """Configs of the schedulers of a source, by iteration."""
    parts = [{"type": "SourceLR", "source": source, "warm": warm}]
    if source in BETAS:
        parts.append({"type": "SourceMomentum", "source": source, "warm": warm})
    return parts
