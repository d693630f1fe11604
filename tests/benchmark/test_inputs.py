"""What does not fit is refused before anything is run."""

from __future__ import annotations

from pathlib import Path

import pytest

import backbones
import benchmark.catalog  # noqa: F401
from benchmark.plan import check_fit
from benchmark.suites import SUITES
from benchmark.tasks import BackboneInfo, plan_tasks
from cliptex_common.errors import UserError
from probes.base import FeatureProbe
from probes.registry import PROBES


class Forgetful(FeatureProbe):
    """Its own check does not call that of its base."""

    def fits(self, backbone, data, settings) -> None:
        pass


def test_layers_are_checked_whatever_a_probe_checks(monkeypatch):
    name = "classification/knn"
    monkeypatch.setitem(PROBES, name, Forgetful(**vars(PROBES[name])))
    (task,) = plan_tasks(SUITES.find("own"), ["imagefolder/knn"], {"features": "99"})
    backbone = BackboneInfo.of(backbones.create("random"), {})
    with pytest.raises(UserError, match="layers=99: backbone 'random' has"):
        check_fit([task], {"imagefolder": Path()}, backbone)
