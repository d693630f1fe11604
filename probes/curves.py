"""Curves of learning rates and of beta 1 that published protocols have, without MMEngine."""

from __future__ import annotations

import math
from collections.abc import Callable

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
