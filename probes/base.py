"""The contract of a probe: what it gets for one task, and what it returns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from backbones.cliptex.protocols import Progress, RunLog
from probes.cost import Cost
from probes.datasets.base import DatasetSpec, Kind, PreparedDataset, Split
from reports.metrics import Metric

MOST_PIXELS = (
    8192  # of an image's side: a slip of the finger would fill the memory before it is noticed
)

if TYPE_CHECKING:
    import numpy as np
    import torch

    from backbones.base import Backbone


@dataclass(frozen=True)
class Context:
    """All that a probe needs for one task.

    Attributes:
        backbone: frozen, on ``device``.
        backbone_config: keyword arguments of ``backbones.create`` that make it again (in another
            process, from a config).
        data: the checked dataset.
        settings: an instance of the probe's ``settings_type`` (all protocol: each field is part of
            the task's identity).
        seed: of everything random.
        device: where to compute.
        work_dir: scratch of this cell, kept until the cell is finished; resume state lives here.
        log, progress: where curves and progress go.
        num_workers: loading processes (0 = in this one); never changes a result.
        cost: what the task costs; the caller records it.
    """

    backbone: Backbone
    backbone_config: Mapping[str, Any]
    data: PreparedDataset
    settings: Any
    seed: int
    device: torch.device
    work_dir: Path
    log: RunLog
    progress: Progress
    num_workers: int = 2
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class Head:
    """A trained head, without the frozen backbone; ``probes.predictor`` makes it predict again.

    Attributes:
        tensors: its weights, by name.
        metadata: its task, backbone and model, as Python literals.
    """

    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, Any]


@dataclass
class TaskResult:
    """What a task ends with.

    Attributes:
        metrics: the field's names (``mIoU``, ``bbox_mAP``, ``abs_rel`` …) → value; percentages
            0–100. The caller keeps those that the probe declares.
        per_image: arrays whose first axis is the images, always with ``image`` (relative paths);
            for segmentation ``intersection``, ``prediction``, ``label`` pixel counts (N, classes);
            for depth and normals the metrics of each image and ``pixels``; for classification
            ``rank`` of the true class; for retrieval the best ``rank`` of each query. All that the
            statistics of a report need.
        detections: COCO result list (image_id, category_id, bbox, score[, segmentation RLE]);
            detection only.
        preview: PNG with images, truth and predictions side by side; dense tasks and detection.
        head: what was trained, of probes that train something.
        notes: things the user should know, one line each (skipped samples, chosen learning rate …).
    """

    metrics: dict[str, float]
    per_image: dict[str, np.ndarray] = field(default_factory=dict)
    detections: list[dict[str, Any]] | None = None
    preview: Path | None = None
    head: Head | None = None
    notes: list[str] = field(default_factory=list)


def settings_json(name: str, context: Context) -> str:
    """The ``config`` of a probe without a Runner: its settings, the backbone and the data."""
    return json.dumps(
        {
            "task": f"{context.data.spec.name}/{name}",
            "settings": asdict(context.settings),
            "seed": context.seed,
            "backbone": {
                "config": dict(context.backbone_config),
                "identity": context.backbone.identity(),
            },
            "dataset": {"fingerprint": context.data.fingerprint, "partial": context.data.partial},
        },
        indent=2,
        default=lambda value: str(value) if isinstance(value, Path) else repr(value),
    )


def missing_capability(probe: Probe, backbone: Backbone) -> str:
    """What a backbone lacks for a probe; empty where it lacks nothing."""
    if probe.needs_text and not backbone.has_text:
        return "no text tower"
    if getattr(probe, "needs_dense_text", False) and not backbone.has_dense_text:
        return "its patch features are not aligned with its text encoder"
    return ""


@runtime_checkable
class Probe(Protocol):
    """One probe for one kind of dataset; registered in ``probes.registry.PROBES`` under
    ``kind/name``.

    Attributes:
        name: second half of a task's name (``linear``, ``pspnet``, ``mask-rcnn`` …).
        kind: kind of dataset it is for.
        version: raised whenever the same settings would give other numbers; part of the task's
            identity.
        settings_type: frozen dataclass of JSON-able protocol fields with the paper-size defaults.
        metrics: what ``run`` returns by name, the main one first: unit, range, direction and label,
            recorded with each number.
        needs_text: whether the backbone must have a text tower; ``needs_dense_text``, where a probe
            has it: and patches in the space of its texts.
        splits: those that it reads; (``val``,) where nothing is trained.
    """

    name: str
    kind: Kind
    version: int
    settings_type: type
    metrics: Mapping[str, Metric]
    needs_text: bool
    splits: tuple[Split, ...]

    def config(self, context: Context) -> str:
        """The resolved config as text (MMEngine python, runnable with plain mmengine; JSON where no
        Runner is used)."""

    def run(self, context: Context) -> TaskResult:
        """Train on ``train``, evaluate on ``val`` and say what came out. Raises ``UserError`` for
        what the user can mend, ``NonFiniteLoss`` when training breaks."""


@dataclass
class FeatureProbe:
    """A probe on frozen features, without MMEngine's Runner; see ``Probe``.

    Attributes:
        module: has ``run(context)``. It is imported when the probe runs, so that names are listed
            without torch.
        other_metrics: main metrics of some datasets (``DatasetSpec.extra["main_metric"]``).
    """

    name: str
    kind: Kind
    settings_type: type
    metrics: Mapping[str, Metric]
    module: str
    splits: tuple[Split, ...] = ("train", "val")
    needs_text: bool = False
    needs_dense_text: bool = False
    version: int = 1
    other_metrics: Mapping[str, Metric] = field(default_factory=dict)

    def config(self, context: Context) -> str:
        """The settings, the backbone and the data, as JSON."""
        return settings_json(self.name, context)

    def run(self, context: Context) -> TaskResult:
        """Encode what is not cached, train what there is to train, and score ``val``."""
        with context.cost.phase("eval"):
            result: TaskResult = import_module(self.module).run(context)
        return result

    def on(self, spec: DatasetSpec) -> FeatureProbe:
        """The probe as it is scored on a dataset that has a main metric of its own."""
        main = spec.extra.get("main_metric", "")
        if main not in self.other_metrics:
            return self
        return replace(self, metrics={main: self.other_metrics[main], **self.metrics})


@runtime_checkable
class GroupedProbe(Probe, Protocol):
    """A probe that can be trained with others in one pass over the same photographs, each with a
    result as if it were alone.

    ``run`` is then a group of one.
    """

    def group_key(self, context: Context) -> str | None:
        """The same text for tasks (of one backbone and seed) that one pass can train; None for one
        that goes alone."""

    def run_group(self, tasks: Sequence[tuple[Probe, Context]]) -> list[TaskResult | Exception]:
        """``run`` of tasks with this probe's key: in their order, what came of each, or what it
        alone broke with."""
