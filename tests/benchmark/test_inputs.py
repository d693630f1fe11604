"""What does not fit is refused before anything is run."""

from __future__ import annotations

import pytest

import backbones
import benchmark.catalog  # noqa: F401
from benchmark.options import RunOptions
from benchmark.plan import Plan
from benchmark.suites import SUITES
from benchmark.tasks import BackboneInfo, plan_tasks
from cliptex_common.errors import UserError
from probes.base import FeatureProbe
from probes.registry import PROBES


class Forgetful(FeatureProbe):
    """Its own check does not call that of its base."""

    def fits(self, backbone, data, settings) -> None:
        pass


def test_layers_are_checked_whatever_a_probe_checks(monkeypatch, tmp_path):
    name = "classification/knn"
    monkeypatch.setitem(PROBES, name, Forgetful(**vars(PROBES[name])))
    own = SUITES.find("own")
    tasks = plan_tasks(own, ["imagefolder/knn"], {"features": "99"})
    plan = Plan(RunOptions(data={"imagefolder": tmp_path}), own, tasks)
    backbone = BackboneInfo.of(backbones.create("random"), {})
    with pytest.raises(UserError, match="layers=99: backbone 'random' has"):
        plan.inapplicable_tasks(backbone)
