"""What probes that classify images share: targets, scores, and the notes of corruptions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from cliptex_common.device import float64_device, is_accelerator, memory
from probes.base import Context, Head, TaskResult
from probes.datasets.base import Split
from probes.image_level.metrics import classification
from probes.image_level.multi_label import label_matrix, score_label_sets
from probes.image_level.settings import ALEXNET_ERRORS
from reports.records import FLOOR

SECTIONS = 34  # of the logarithm of a temperature: to 1e-6


def targets(context: Context, split: Split) -> Tensor:
    """(N,) int64 classes of a split; of kind ``multi-label`` those of ``label_matrix``."""
    samples = context.data.samples[split]
    if context.data.spec.kind == "multi-label":
        return label_matrix(samples, len(context.data.classes))
    return torch.tensor([sample.target for sample in samples], dtype=torch.int64)


def on_device_if_small(features: Tensor, device: torch.device) -> Tensor:
    """``features`` on the device where they take up to a quarter of its free memory, as far as
    it can tell."""
    free_and_total = memory(device) if is_accelerator(device) else None
    if free_and_total is None or features.nbytes > free_and_total[0] // 4:
        return features
    return features.to(device)


def ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """Rank of the true class, 0 for the first: how many others score at least as high.

    (…, N, C) and (N,) → (…, N) int64. Ties count against the true class; scores that are not
    finite rank last.
    """
    true = logits.gather(-1, labels.expand(logits.shape[:-1])[..., None])
    higher = (logits >= true).sum(dim=-1) - 1
    return torch.where(true.squeeze(-1).isfinite(), higher, logits.shape[-1] - 1)


def top1(logits: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in percent of (N, C) logits."""
    return 100 * (ranks(logits, labels) == 0).double().mean().item()


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature, 1/50 to 50, by which dividing (N, C) logits minimises their mean
    cross-entropy."""
    exact, index = float64_device(logits.device), labels.to(logits.device)[:, None]

    def loss(log_temperature: float) -> float:
        total = torch.zeros((), dtype=torch.float64, device=exact)
        for part, true in zip(logits.split(8192), index.split(8192), strict=True):
            scaled = part.to(exact).double() / math.exp(log_temperature)
            total -= scaled.log_softmax(dim=1).gather(1, true.to(exact)).sum()
        return (total / len(logits)).item()

    # by golden sections, as many for all logits: so an accelerator is waited for as often
    high, golden = math.log(50), (math.sqrt(5) - 1) / 2
    low = -high
    left, right = high - golden * (high - low), low + golden * (high - low)
    of_left, of_right = loss(left), loss(right)
    for _ in range(SECTIONS):
        if of_left < of_right:
            high, right, of_right = right, left, of_left
            left = high - golden * (high - low)
            of_left = loss(left)
        else:
            low, left, of_left = left, right, of_right
            right = low + golden * (high - low)
            of_right = loss(right)
    return math.exp((low + high) / 2)


def own_classes(context: Context, logits: Tensor) -> Tensor:
    """Logits of the classes of a task's dataset, from those of the dataset that the probe was
    trained on; as DINOv2's ``LinearPostprocessor``, where each class is one of those. See
    ``DatasetSpec.transfer``."""
    groups = context.data.spec.transfer.get("classes")
    if context.data.trained_on is None or not groups:
        return logits
    return torch.stack([logits[:, list(group)].amax(dim=1) for group in groups], dim=1)


def best_targets(context: Context, logits: Tensor) -> Tensor:
    """(N,) int64 classes of ``val``; of an image with several right ones that of the highest
    score."""
    samples = context.data.samples["val"]
    if not any(isinstance(sample.target, list) for sample in samples):
        return targets(context, "val")
    best = [
        max(sample.target, key=row.__getitem__)
        for sample, row in zip(samples, logits.tolist(), strict=True)
    ]
    return torch.tensor(best, dtype=torch.int64)


def score(
    context: Context,
    logits: Tensor,
    notes: Sequence[str] = (),
    head: Head | None = None,
    more: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> TaskResult:
    """The result of a task by (N, C) logits of ``val``, C the classes that it was trained on;
    ``top5`` with more than five classes; see ``probes.image_level.metrics.classification``.
    ``more`` are other numbers of the images. Of kind ``multi-label`` see ``score_label_sets``."""
    if context.data.spec.kind == "multi-label":
        return score_label_sets(context, logits, notes, head)
    samples, logits = context.data.samples["val"], own_classes(context, logits)
    labels = best_targets(context, logits)
    per_image = {
        "image": np.array([sample.image for sample in samples]),
        "rank": ranks(logits, labels).numpy(),
        "label": labels.numpy(),
        "prediction": logits.argmax(dim=1).numpy(),
        **more,
    }
    notes = list(notes)
    if context.data.spec.extra.get("main_metric") == "mCE":
        # CORRUPTION/LEVEL/WNID/NAME
        folders = [sample.image.split("/") for sample in samples]
        per_image["corruption"] = np.array(["/".join(parts[:2]) for parts in folders])
        per_image["unit"] = np.array(["/".join(parts[2:]) for parts in folders])  # photographs
        present = {parts[0] for parts in folders}
        if missing := [name for name in ALEXNET_ERRORS if name not in present]:
            notes.append(
                f"mCE over {len(present)} of {len(ALEXNET_ERRORS)} corruptions, without"
                f" {', '.join(missing)}"
            )
    elif all(sample.group is not None for sample in samples):
        per_image["group"] = np.array([sample.group for sample in samples])
    metrics = classification(tuple(per_image["image"]), per_image).values()
    if logits.shape[1] <= 5:
        metrics = {name: value for name, value in metrics.items() if not name.endswith("top5")}
    bounds = {}
    if next(iter(metrics)) == "top1":  # the floor: always the most frequent class of val
        bounds[FLOOR] = 100 * np.bincount(labels).max() / len(labels)
    return TaskResult(metrics, per_image, bounds, head=head, notes=notes)
