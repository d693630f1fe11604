"""Segmentation without training: by neighbours in a memory of patches, by a classifier of patches,
by class texts.

What computes is imported when it runs, so that names are listed without torch and MMLab.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module

from probes.base import Context, TaskResult, settings_json
from probes.datasets.base import Kind, Split
from probes.dense.patches.settings import (
    InContextSettings,
    LogregSettings,
    OpenVocabularySettings,
    PatchKnnSettings,
)
from probes.dense.probe import METRICS
from probes.registry import register_probe
from reports.metrics import Metric


@dataclass
class PatchProbe:
    """A probe computed by ``run`` of ``module`` of this package; see ``probes.base.Probe``."""

    name: str
    settings_type: type
    module: str
    splits: tuple[Split, ...] = ("train", "val")
    needs_text: bool = False
    needs_dense_text: bool = False
    kind: Kind = "segmentation"
    metrics: Mapping[str, Metric] = field(default_factory=lambda: METRICS["segmentation"])
    version: int = 1

    def config(self, context: Context) -> str:
        """The settings, the backbone and the data, as JSON."""
        return settings_json(self.name, context)

    def run(self, context: Context) -> TaskResult:
        """Encode what is not kept already, and score ``val``."""
        result = import_module(f"probes.dense.patches.{self.module}").run(self, context)
        return replace(result, config=self.config(context))


for _probe in (
    PatchProbe("patch-knn", PatchKnnSettings, "knn"),
    PatchProbe("logreg", LogregSettings, "logreg"),
    PatchProbe("in-context", InContextSettings, "in_context"),
    PatchProbe("open-vocabulary", OpenVocabularySettings, "open_vocabulary", ("val",), True, True),
):
    register_probe(_probe)
