"""Schedules of ``probes.settings`` that mmengine has not, and the learning rates of a training.

Apart from ``probes.train.config`` because mmengine's optimizers take seconds to import, and a
config is read without them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.optim.scheduler.momentum_scheduler import MomentumSchedulerMixin
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS

from probes.settings import BETAS, RATES, TrainingSettings
from probes.train.config import training_config


def learning_rates(settings: TrainingSettings) -> np.ndarray:
    """(max_iters,) the rate of each iteration of a training with these settings."""
    config = training_config(settings)
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=config.optim_wrapper.optimizer.lr, momentum=0.9)
    wrapper = OptimWrapper(optimizer)
    parts = ({**part, "optimizer": wrapper} for part in config.param_scheduler)
    schedulers = [PARAM_SCHEDULERS.build(part) for part in parts]
    rates = np.empty(settings.max_iters)
    for iteration in range(settings.max_iters):
        rates[iteration] = optimizer.param_groups[0]["lr"]
        wrapper.step()  # which schedulers expect before theirs
        for scheduler in schedulers:
            scheduler.step()
    return rates


class _Curve(_ParamScheduler):
    """A parameter that follows a curve of ``probes.settings``.

    Args:
        curve: key of ``RATES`` or ``BETAS``.
        warm: iterations of warm-up.
    """

    def __init__(self, optimizer: Any, *args: Any, curve: str, warm: int, **kwargs: Any) -> None:
        self.curve, self.warm = curve, warm
        super().__init__(optimizer, *args, **kwargs)


@PARAM_SCHEDULERS.register_module()
class CurveLR(LRSchedulerMixin, _Curve):
    """``RATES[curve]`` times the optimizer's rate."""

    def _get_value(self) -> list[float]:
        share = RATES[self.curve](self.last_step, self.warm, self.end)
        return [base * share for base in self.base_values]


@PARAM_SCHEDULERS.register_module()
class CurveMomentum(MomentumSchedulerMixin, _Curve):
    """``BETAS[curve]`` as beta 1."""

    def _get_value(self) -> list[float]:
        return [BETAS[self.curve](self.last_step, self.warm, self.end)] * len(self.base_values)
