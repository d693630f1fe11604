"""Learning rates and betas of published sources that no scheduler of mmengine gives.

Importing the module registers ``CurveLR`` and ``CurveMomentum``, which configs name.
"""

from __future__ import annotations

from typing import Any

from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.optim.scheduler.momentum_scheduler import MomentumSchedulerMixin
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS

from probes.curves import BETAS, RATES


class _Curve(_ParamScheduler):
    """A parameter that follows a curve of ``probes.curves``.

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
