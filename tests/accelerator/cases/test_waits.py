"""A step of each loop waits for the accelerator, and copies without need, at most as often as
``bounds`` says."""

from __future__ import annotations

import pytest

from tests.accelerator.cases.bounds import BOUNDS
from tests.accelerator.cases.loops import step_cost
from tests.kinds import slow_except

ALWAYS = (
    "cliptex, moving average",
    "expert unet-seg",
    "segmentation",
    "segmentation, cached",
    "segmentation, upsampled",
    "linear",
    "linear, random crops",
    "attentive, resumed",
    "logreg",
    "patch-knn, evaluation",
    "encoding",
    "label propagation",
)


@pytest.mark.parametrize("name", slow_except(BOUNDS, ALWAYS))
def test_a_step_waits_at_most(name, tmp_path, pretended):
    bound = BOUNDS[name]
    cost = step_cost(bound.loop, tmp_path, pretended, bound.short, bound.long)
    assert cost.waits <= bound.waits, cost.report
    assert cost.blocking_copies <= bound.blocking_copies, cost.report
