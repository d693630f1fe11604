"""What ``linear`` and ``knn`` need for images with several labels: label sets as matrices, how a
part of train is held out, the score of the choice, and the result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from probes.base import Context, Head, TaskResult
from probes.datasets.base import Sample
from probes.image_level.label_sets import average_precisions, label_sets
from reports.records import FLOOR


def label_matrix(samples: Sequence[Sample], classes: int) -> Tensor:
    """(N, C) float32: 1 of the classes that an image shows, 0 of others, NaN where unknown."""
    labels = torch.zeros(len(samples), classes)
    for row, sample in zip(labels, samples, strict=True):
        row[list(sample.target.unknown)] = torch.nan
        row[list(sample.target.present)] = 1
    return labels


def metric_of(labels: Tensor) -> str:
    """The metric by which settings are chosen: of classes (N,), or of label sets (N, C)."""
    return "top1" if labels.dim() == 1 else "mAP"


def strata(labels: Tensor) -> Tensor:
    """(N,) by which a part of train is held out: the class, of a label set the rarest one."""
    if labels.dim() == 1:
        return labels
    shown = labels == 1
    rarest = torch.where(shown, shown.sum(dim=0), len(labels) + 1).argmin(dim=1)
    return torch.where(shown.any(dim=1), rarest, labels.shape[1])


def mean_precision(scores: Tensor, labels: Tensor) -> float:
    """mAP in percent of (N, C) scores by label sets, over the classes that are shown."""
    shown = labels.nan_to_num(-1).numpy(), np.ones((1, len(labels)))
    return float(np.nanmean(average_precisions("mAP", scores.numpy(), *shown)))


def label_shares(weights: Tensor, voted: Tensor) -> Tensor:
    """(N, C) float64, 0 to 1: the share of each class in the votes (N, K) of images with the label
    sets (N, K, C), of those for which it is known."""
    shown, known = (
        (weights[:, None] @ each.double()).squeeze(1)
        for each in (voted.nan_to_num(), ~voted.isnan())
    )
    return shown / known.clamp_min(1e-300)


def score_label_sets(
    context: Context, scores: Tensor, notes: Sequence[str], head: Head | None
) -> TaskResult:
    """The result of a task by (N, C) scores of ``val``, and what scores that are all equal reach:
    the mean share of images with a class, by either average precision."""
    samples, classes = context.data.samples["val"], context.data.classes
    labels = label_matrix(samples, len(classes)).nan_to_num(-1).numpy().astype(np.int8)
    per_image = {
        "image": np.array([sample.image for sample in samples]),
        "score": scores.float().numpy(),
        "label": labels,
        "classes": np.array(classes),
    }
    shown = (labels == 1).sum(axis=0)
    share = shown / np.maximum((labels >= 0).sum(axis=0), 1)
    floor = 100 * share[shown > 0].mean()
    lowest = f"without features: mAP {floor:.1f} by area or 11 points"
    absent = f"{(shown == 0).sum()} of {len(classes)} classes have no image in val"
    return TaskResult(
        label_sets(tuple(per_image["image"]), per_image).values(),
        per_image,
        {FLOOR: floor},
        head=head,
        notes=[*notes, lowest, *[absent] * bool((shown == 0).any())],
    )
