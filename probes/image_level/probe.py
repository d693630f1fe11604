"""The probes on embeddings of whole images. What computes is imported when it runs, so that names
are listed without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module

from probes.base import Context, TaskResult, settings_json
from probes.datasets.base import DatasetSpec, Kind, Split
from probes.image_level.settings import (
    RECALL_AT,
    AssociationSettings,
    AttentiveSettings,
    CorrespondenceSettings,
    FewShotSettings,
    KnnSettings,
    LinearSettings,
    RetrievalSettings,
    ZeroShotSettings,
)
from probes.registry import register_probe
from reports.metrics import Metric


@dataclass
class ImageLevelProbe:
    """A probe on whole images, computed by ``run`` of ``module`` of this package; see
    ``probes.base.Probe``."""

    name: str
    kind: Kind
    settings_type: type
    metrics: Mapping[str, Metric]
    needs_text: bool
    splits: tuple[Split, ...]
    module: str
    version: int = 1

    def config(self, context: Context) -> str:
        """The settings, the backbone and the data, as JSON."""
        return settings_json(self.name, context)

    def run(self, context: Context) -> TaskResult:
        """Encode what is not kept already, and score ``val``."""
        module = "random_crops" if getattr(context.settings, "random_crops", False) else self.module
        result: TaskResult = import_module(f"probes.image_level.{module}").run(context)
        metrics = {name: result.metrics[name] for name in self.metrics if name in result.metrics}
        return replace(result, metrics=metrics, config=self.config(context))

    def on(self, spec: DatasetSpec) -> ImageLevelProbe:
        """The probe as it is scored on a dataset that has a main metric of its own."""
        main = spec.extra.get("main_metric")
        return (
            replace(self, metrics={main: OTHERS[main], **self.metrics}) if main in OTHERS else self
        )


TOP = {f"top{k}": Metric(label=f"top-{k}", shown=True) for k in (1, 5)}
OTHERS = {  # main metrics of some datasets
    "mean_per_class_recall": Metric(label="mean per-class recall"),
    "f1_macro": Metric(label="macro F1"),
    "worst_group_top1": Metric(label="top-1 of the worst group"),
    "worst_group_top5": Metric(label="top-5 of the worst group"),
    "mean_R@1": Metric(label="mean R@1"),
}
RECALLS = {
    f"{way}_R@{k}": Metric(label=f"{words} R@{k}", shown=True)
    for way, words in (("i2t", "I→T"), ("t2i", "T→I"))
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
LINEAR, ZERO_SHOT, RETRIEVAL, KNN, FEW_SHOT, ATTENTIVE, ASSOCIATION, KEYPOINTS = (
    ImageLevelProbe(
        "linear", "classification", LinearSettings, TOP, False, ("train", "val"), "classification"
    ),
    ImageLevelProbe(
        "zero-shot", "classification", ZeroShotSettings, TOP, True, ("val",), "zero_shot"
    ),
    ImageLevelProbe(
        "retrieval", "image-text", RetrievalSettings, RECALLS, True, ("val",), "retrieval", 2
    ),
    ImageLevelProbe("knn", "classification", KnnSettings, TOP, False, ("train", "val"), "knn"),
    ImageLevelProbe(
        "few-shot", "classification", FewShotSettings, TOP, False, ("train", "val"), "few_shot"
    ),
    ImageLevelProbe(
        "attentive", "classification", AttentiveSettings, TOP, False, ("train", "val"), "attentive"
    ),
    ImageLevelProbe(
        "zero-shot", "association", AssociationSettings, JACCARD, True, ("val",), "association"
    ),
    ImageLevelProbe(
        "keypoints",
        "correspondence",
        CorrespondenceSettings,
        PCK,
        False,
        ("val",),
        "correspondence",
    ),
)
for _probe in (LINEAR, RETRIEVAL, ZERO_SHOT, KNN, FEW_SHOT, ATTENTIVE, ASSOCIATION, KEYPOINTS):
    register_probe(_probe)
