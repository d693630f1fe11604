"""The probes on whole images."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import probes.image_level.metrics  # noqa: F401  registers the metrics
from probes.base import FeatureProbe
from probes.image_level.settings import (
    OOD_SCORES,
    RECALL_AT,
    AttentiveSettings,
    CorrespondenceSettings,
    EmbeddingSettings,
    EncodeSettings,
    FewShotSettings,
    KnnSettings,
    LinearSettings,
    RetrievalSettings,
    ZeroShotSettings,
)
from probes.registry import register_probe
from reports.records import Metric

TOP = {f"top{k}": Metric(label=f"top-{k}", shown=True) for k in (1, 5)}
OTHER_METRICS = {
    "mean_per_class_recall": Metric(label="mean per-class recall"),
    "f1_macro": Metric(label="macro F1"),
    "mCE": Metric(-1, high=None, label="mCE"),
    "worst_group_top1": Metric(label="top-1 of the worst group"),
    "worst_group_top5": Metric(label="top-5 of the worst group"),
}
RECALLS = {
    f"{direction}_R@{k}": Metric(label=f"{words} R@{k}", shown=True)
    for direction, words in (("i2t", "I→T"), ("t2i", "T→I"))
    for k in RECALL_AT
}
PCK = {
    "PCK@0.1": Metric(label="PCK@0.1 per pair"),
    "PCK@0.05": Metric(label="PCK@0.05 per pair", shown=True),
    "PCK@0.1_point": Metric(label="PCK@0.1 per point", shown=True),
}
JACCARD = {
    "jaccard_10-12": Metric(label="Jaccard, 10 or 12 candidates"),
    "jaccard_5-6": Metric(label="Jaccard, 5 or 6 candidates", shown=True),
    "jaccard": Metric(label="Jaccard"),
}
CALIBRATION_METRICS = {
    f"{name}{suffix}": replace(metric, label=f"{metric.label}{words}")
    for suffix, words in (("", ""), ("_scaled", ", with temperature"))
    for name, metric in {
        "ece": Metric(-1, label="ECE", shown=True),
        "ece_adaptive": Metric(-1, label="ECE, adaptive bins"),
        "nll": Metric(-1, "", 0.0, None, "NLL", True),
        "brier": Metric(-1, "", 0.0, 2.0, "Brier score", True),
    }.items()
}
OOD_METRICS = {
    f"{prefix}{name}_{score}": Metric(direction, label=f"{label}, {words}{score}", shown=shown)
    for prefix, words, shown in (
        ("", "", True),
        ("near_", "near, ", False),
        ("far_", "far, ", False),
    )
    for score in OOD_SCORES
    for name, label, direction in (("auroc", "AUROC", 1), ("fpr95", "FPR95", -1))
}
FOLDER = "probes.image_level"
classification = partial(
    FeatureProbe, kind="classification", metrics=TOP, other_metrics=OTHER_METRICS
)
untrained = partial(FeatureProbe, splits=("val",))

LINEAR = classification(
    "linear",
    settings_type=LinearSettings,
    module=f"{FOLDER}.tuned:run_linear",
    version=2,
    reuse="head",
)
KNN = classification(
    "knn", settings_type=KnnSettings, module=f"{FOLDER}.neighbours:run_knn", reuse="train"
)
FEW_SHOT = classification(
    "few-shot",
    settings_type=FewShotSettings,
    module=f"{FOLDER}.neighbours:run_few_shot",
    reuse="train",
)
ATTENTIVE = classification(
    "attentive",
    settings_type=AttentiveSettings,
    module=f"{FOLDER}.tuned:run_attentive",
    reuse="head",
)
CALIBRATION = FeatureProbe(
    "calibration",
    "classification",
    LinearSettings,
    {**CALIBRATION_METRICS, **TOP},
    f"{FOLDER}.robustness:run_calibration",
    reuse="head",
    head_of="linear",
)
# named as the probe whose head it uses (``reuse``)
OOD = FeatureProbe(
    "linear",
    "unknown-images",
    LinearSettings,
    OOD_METRICS,
    f"{FOLDER}.robustness:run_ood",
    reuse="head",
)
ZERO_SHOT = classification(
    "zero-shot",
    settings_type=ZeroShotSettings,
    module=f"{FOLDER}.text:run_zero_shot",
    splits=("val",),
    needs_text=True,
)
ASSOCIATION = untrained(
    "zero-shot",
    "association",
    EncodeSettings,
    JACCARD,
    f"{FOLDER}.text:run_association",
    needs_text=True,
)
RETRIEVAL = untrained(
    "retrieval",
    "image-text",
    RetrievalSettings,
    RECALLS,
    f"{FOLDER}.text:run_retrieval",
    needs_text=True,
    version=2,
    other_metrics={"mean_R@1": Metric(label="mean R@1")},
)
CLASS_RETRIEVAL = untrained(
    "retrieval",
    "classification",
    EmbeddingSettings,
    {
        "mAP": Metric(label="mAP"),
        **{f"recall@{k}": Metric(label=f"recall@{k}", shown=True) for k in RECALL_AT},
    },
    f"{FOLDER}.class_retrieval",
)
KEYPOINTS = untrained(
    "keypoints",
    "correspondence",
    CorrespondenceSettings,
    PCK,
    "probes.matching.keypoints",
    version=2,
)
for _probe in (
    LINEAR,
    RETRIEVAL,
    ZERO_SHOT,
    KNN,
    FEW_SHOT,
    ATTENTIVE,
    CALIBRATION,
    OOD,
    ASSOCIATION,
    CLASS_RETRIEVAL,
    KEYPOINTS,
):
    register_probe(_probe)
