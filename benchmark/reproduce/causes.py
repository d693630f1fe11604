"""Known causes of a number that does not reproduce, each checked from what a run leaves behind.

Each check returns a sentence with what it saw where the cause fits, else an empty string. None is
inferred from the number alone, except ``classes_averaged``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from backbones.backbone import Backbone
from benchmark.reproduce.targets import Target
from cliptex_common.images import open_image
from probes.datasets.base import PreparedDataset
from probes.dense.settings import DenseSettings, in_iterations
from probes.dense.tasks import DENSE_TASKS
from probes.settings import TrainingSettings
from probes.train.config import learning_rates

MAX_MAPS = 50  # label maps that are read of a split
UNLABELLED = [
    "background or other",
    "ignore",
    "other",
    "unknown",
    "unlabeled",
    "unlabelled",
    "void",
]
FINAL_NORMS = ("norm", "ln_post", "layernorm", "post_layernorm", "final_norm", "norm_post")
MAX_ERROR = 0.05  # share of the highest learning rate that rates may differ by
FLOOR = 0.02  # share of the highest learning rate that counts as none
ENCODERS = ("", "visual", "visual.trunk", "vision_model", "model")  # modules that have such a norm


@dataclass(frozen=True)
class Evidence:
    """What one run left behind.

    Attributes:
        ours, tolerance: our value, and how far from the published one it may be by noise.
        data: that it was trained and scored on.
        backbone: built again.
        differs: how the cell differs from the protocol, by what it records.
        rates: (iteration, learning rate) as logged, oldest first.
        per_image: arrays of the cell.
    """

    target: Target
    ours: float
    tolerance: float
    data: PreparedDataset
    backbone: Backbone
    differs: str = ""
    rates: Sequence[tuple[int, float]] = ()
    per_image: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def settings(self) -> Any:
        return self.target.task.settings


def settings_changed(evidence: Evidence) -> str:
    """Settings or facts of the dataset that are not the preset's: layers, class token, …"""
    return evidence.differs


def training_images(evidence: Evidence) -> str:
    """VOC with 1,464 or 10,582 images, NYU with 795 or 24,231."""
    expected = {**evidence.data.spec.expected, **evidence.target.preset.images}
    for split in ("train", "val"):
        count = len(evidence.data.samples.get(split, ()))
        if count and expected.get(split, count) != count:
            return f"{count:,} images of {split}, the source has {expected[split]:,}"
    return ""


def size_of_label_maps(evidence: Evidence) -> str:
    """Masks that are stored, and so scored, at 100 px instead of their photographs' size."""
    data, needed = evidence.data, min(_sides(evidence), default=0) // 2
    if data.spec.kind in DENSE_TASKS:
        for label_map in _label_maps(data, "val"):
            width, height = label_map.size
            if max(width, height) < needed:
                return f"label maps of val have {width} × {height} px, at which they are scored"
    return ""


def label_zero(evidence: Evidence) -> str:
    """ADE20K's label 0 (unlabelled) scored as a class, or removed twice."""
    data = evidence.data
    if data.spec.kind != "segmentation":
        return ""
    classes, ignored = data.classes, data.spec.ignore_index
    if ignored < len(classes) and classes[ignored].lower() not in UNLABELLED:
        return f"class {classes[ignored]} is not scored, since ignore_index={ignored}"
    if data.spec.label_offset == 0:
        expected = evidence.target.preset.data.get("classes", len(classes))
        if classes[0].lower() in UNLABELLED or len(classes) != expected:
            return f"label 0 ({classes[0]}) is scored as one of {len(classes)} classes"
        return ""
    stored: set[int] = set()
    for label_map in chain(_label_maps(data, "train"), _label_maps(data, "val")):
        stored.update(np.unique(np.asarray(label_map)).tolist())
    if ignored in stored and 0 in stored and len(classes) not in stored:
        return (
            f"label maps hold 0 to {len(classes) - 1} and {ignored}, so label 0 was"
            f" removed before; class {classes[0]} is lost"
        )
    return ""


def classes_averaged(evidence: Evidence) -> str:
    """mIoU over occurring or over all classes, with or without the first."""
    scores = evidence.per_image
    published = evidence.target.number.value
    if "intersection" not in scores or abs(evidence.ours - published) <= evidence.tolerance:
        return ""
    hits, labels = (scores[name].sum(axis=0).astype(float) for name in ("intersection", "label"))
    union = scores["prediction"].sum(axis=0) + labels - hits
    iou = 100 * hits / np.maximum(union, 1)
    means = {
        "over all classes, absent ones as 0": iou.mean(),
        "over classes that occur": iou[labels > 0].mean(),
        "without the first class": iou[1:][union[1:] > 0].mean(),
    }
    for name, mean in means.items():
        if abs(mean - published) <= evidence.tolerance:
            return f"averaged {name}, ours is {mean:.1f}"
    return ""


def final_norm(evidence: Evidence) -> str:
    """Features taken before the backbone's final norm, or a backbone without one."""
    backbone = evidence.backbone
    if getattr(evidence.settings, "layers", "last") != "last":
        return ""
    norms = []
    for name, module in backbone.model.named_modules():
        parent, _, own = name.rpartition(".")
        if own in FINAL_NORMS and parent in ENCODERS:
            norms.append(module)
    if not norms:
        return ""
    norms = [norm for norm in norms if not isinstance(norm, nn.Identity)]
    if not norms:
        return "the backbone's final norm is an identity"
    calls: list[nn.Module] = []
    hooks = [norm.register_forward_hook(lambda norm, *_: calls.append(norm)) for norm in norms]
    device = next(backbone.parameters()).device
    sides = (max(1, side // backbone.divisor) * backbone.divisor for side in backbone.data.size)
    with torch.inference_mode():
        backbone(torch.zeros(1, 3, *sides, device=device))
    for hook in hooks:
        hook.remove()
    return "" if calls else "features do not pass the backbone's final norm"


def rate_schedule(evidence: Evidence) -> str:
    """A learning rate stepped per batch where its schedule counts epochs, or the reverse, or that
    is not the protocol's."""
    if len(evidence.rates) < 4:
        return ""
    steps, rates = (np.array(column, float) for column in zip(*evidence.rates, strict=True))
    peak = int(rates.argmax())
    after = rates[peak:] / rates[peak]
    share = (steps - steps[0]) / max(steps[-1] - steps[0], 1)
    rises = sum(later > 1.05 * earlier + FLOOR for earlier, later in pairwise(after))
    if rises:
        return f"the rate rises {rises} times again after its maximum, so it was stepped too often"
    low = share[peak:][after < FLOOR]
    if len(low) and low[0] < 0.5:
        return f"the rate reached its floor after {100 * low[0]:.0f} % of the training"
    if getattr(evidence.settings, "schedule", "") and after[-1] > 0.5 and share[peak] < 0.5:
        return f"the rate ends at {100 * after[-1]:.0f} % of its maximum: it was stepped too rarely"
    settings = evidence.settings
    if isinstance(settings, DenseSettings):
        settings = in_iterations(settings, len(evidence.data.samples["train"]))
    if isinstance(settings, TrainingSettings) and not getattr(settings, "lr_grid", ()):
        expected = learning_rates(settings)[steps.astype(int) - 1]
        worst = int(abs(rates - expected).argmax())
        if abs(rates - expected)[worst] > MAX_ERROR * expected.max():
            return (
                f"the rate is {rates[worst]:.3g} at iteration {steps[worst]:.0f}, the protocol's is"
                f" {expected[worst]:.3g}"
            )
    return ""


CAUSES: dict[str, Callable[[Evidence], str]] = {
    "settings": settings_changed,
    "training images": training_images,
    "resolution of masks": size_of_label_maps,
    "label 0": label_zero,
    "classes averaged": classes_averaged,
    "final norm": final_norm,
    "learning rate": rate_schedule,
}
# not comparable at all, whatever the difference is
BLOCKING = {"settings", "training images"}


def find_causes(evidence: Evidence) -> dict[str, str]:
    """Cause → what was seen, of those that fit."""
    return {name: text for name, check in CAUSES.items() if (text := check(evidence))}


def _sides(evidence: Evidence) -> tuple[int, ...]:
    """Sides in pixels of what the backbone gets."""
    crop = getattr(evidence.settings, "crop", None)
    return tuple(crop or filter(None, [getattr(evidence.settings, "size", 0)]))


def _label_maps(data: PreparedDataset, split: str) -> Iterator[Image.Image]:
    """Some of the files, evenly spaced; none where labels are no pictures."""
    samples = data.samples.get(split, [])
    for sample in samples[:: max(1, len(samples) // MAX_MAPS)]:
        if str(sample.target).endswith(".png"):
            yield open_image(data.root / sample.target)
