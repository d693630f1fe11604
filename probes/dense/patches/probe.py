"""Segmentation without a trained decoder: by neighbours in a memory of patches, by a classifier of
patches, by class texts."""

from __future__ import annotations

from typing import Any

from probes.base import FeatureProbe
from probes.dense.patches.settings import (
    InContextSettings,
    LogregSettings,
    OpenVocabularySettings,
    PatchKnnSettings,
)
from probes.dense.tasks import DENSE_TASKS
from probes.registry import register_probe
from reports.records import Metric

METRICS = DENSE_TASKS["segmentation"].metrics
HUNGARIAN = {**METRICS, "mIoU_hungarian": Metric()}
ON_TEXT: Any = {"splits": ("val",), "needs_text": True, "needs_dense_text": True}

for _name, _module, _settings, _metrics, _options in (
    ("patch-knn", "knn", PatchKnnSettings, METRICS, {"version": 2}),
    ("logreg", "logreg", LogregSettings, METRICS, {"version": 3}),
    ("in-context", "in_context", InContextSettings, HUNGARIAN, {}),
    ("open-vocabulary", "open_vocabulary", OpenVocabularySettings, METRICS, ON_TEXT),
):
    _path = f"probes.dense.patches.{_module}"
    register_probe(FeatureProbe(_name, "segmentation", _settings, _metrics, _path, **_options))
