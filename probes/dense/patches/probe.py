"""Segmentation without a trained decoder: by neighbours in a memory of patches, by a classifier of
patches, by class texts."""

from __future__ import annotations

from functools import partial

from probes.base import FeatureProbe
from probes.dense.patches.settings import (
    InContextSettings,
    LogregSettings,
    OpenVocabularySettings,
    PatchKnnSettings,
)
from probes.dense.tasks import DENSE_TASKS
from probes.registry import register_probe
from reports.metrics import Metric

FOLDER = "probes.dense.patches"
METRICS = DENSE_TASKS["segmentation"].metrics
patch_probe = partial(FeatureProbe, kind="segmentation", metrics=METRICS)

register_probe(
    patch_probe("patch-knn", settings_type=PatchKnnSettings, module=f"{FOLDER}.knn", version=2)
)
register_probe(
    patch_probe("logreg", settings_type=LogregSettings, module=f"{FOLDER}.logreg", version=3)
)
register_probe(
    patch_probe(
        "in-context",
        settings_type=InContextSettings,
        module=f"{FOLDER}.in_context",
        metrics={**METRICS, "mIoU_hungarian": Metric()},
    )
)
register_probe(
    patch_probe(
        "open-vocabulary",
        settings_type=OpenVocabularySettings,
        module=f"{FOLDER}.open_vocabulary",
        splits=("val",),
        needs_text=True,
        needs_dense_text=True,
    )
)
