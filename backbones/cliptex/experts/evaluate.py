"""How right an expert is: its hard labels against truth. An expert is allowed to err; we say how much."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from backbones.cliptex.experts.angmf import expected_angle
from backbones.cliptex.experts.base import Expert
from backbones.cliptex.experts.data import ExpertData
from backbones.cliptex.protocols import Progress, Silent

Pair = tuple[np.ndarray, np.ndarray]


def evaluate(
    expert: Expert, data: ExpertData, *, batch_size: int = 32, progress: Progress | None = None
) -> dict[str, float]:
    """Accuracy of an expert's labels.

    Returns, by task:
        seg: ``mIoU`` over classes that occur (ignored predictions count as wrong), ``aAcc``, ``object_acc`` (over
            pixels of objects), ``labelled`` (share not ignored) and ``labelled_acc`` (right among those), in per cent;
        depth: ``abs_rel``, mean |d − d*| / d* of the depth after the least-squares scale and shift of inverse depth,
            image by image (MiDaS's protocol: Ranftl et al. 2020), and ``delta1`` in per cent;
        normal: ``normal_mean``, ``normal_median`` in degrees, ``normal_11.25`` in per cent; ``kappa_expected`` the mean
            angle that κ says, in degrees, to be held against ``normal_mean``.
    """
    progress = progress or Silent()
    progress.start(f"measuring the {expert.task} expert", len(data))

    def labelled() -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        for images, truth in data.batches(batch_size):
            yield expert.predict(images), truth.numpy()
            progress.advance(len(images))

    if expert.task == "seg":
        pairs = ((labels["seg"], _renumbered(truth, data.classes, expert)) for labels, truth in labelled())
        return segmentation(pairs, len(expert.classes), expert.ignore_index)
    if expert.task == "depth":
        return depth((labels["depth"], truth) for labels, truth in labelled())
    return normals((labels["normal"], truth, labels.get("confidence")) for labels, truth in labelled())


def segmentation(pairs: Iterable[Pair], classes: int, ignore: int) -> dict[str, float]:
    """Batches of (labels, truth), (N, H, W) each; class 0 is the background; truth ≥ ``classes`` is not scored."""
    counts = np.zeros((classes, classes + 1), np.int64)
    for labels, truth in pairs:
        scored = truth < classes
        found, real = labels[scored].astype(np.int64), truth[scored].astype(np.int64)
        found = np.where(found == ignore, classes, found)  # 'not sure' is a column of its own
        counts += np.bincount(real * (classes + 1) + found, minlength=counts.size).reshape(counts.shape)
    right = counts.diagonal()
    union = counts.sum(1) + counts[:, :classes].sum(0) - right
    occurs = counts.sum(1) > 0
    sure = counts[:, :classes].sum()
    return {
        "mIoU": 100 * float(np.mean(right[occurs] / union[occurs])),
        "aAcc": 100 * float(right.sum() / counts.sum()),
        "object_acc": 100 * float(right[1:].sum() / max(counts[1:].sum(), 1)),
        "labelled": 100 * float(sure / counts.sum()),
        "labelled_acc": 100 * float(right.sum() / max(sure, 1)),
    }


def depth(pairs: Iterable[Pair]) -> dict[str, float]:
    """Batches of relative inverse depth (N, H, W) and true inverse depth in 1/m, NaN unknown."""
    errors, deltas = [], []
    for predicted, real in ((one, other) for batch in pairs for one, other in zip(*batch, strict=True)):
        known = np.isfinite(real)
        if known.sum() < 2:
            continue
        x, y = predicted[known].astype(np.float64), real[known].astype(np.float64)
        design = np.stack([x, np.ones_like(x)], 1)
        aligned = np.maximum(design @ np.linalg.lstsq(design, y, rcond=None)[0], y.min() / 10)
        ratio = y / aligned  # of depths, predicted to true
        errors.append(np.mean(np.abs(ratio - 1)))
        deltas.append(np.mean(np.maximum(ratio, 1 / ratio) < 1.25))
    return {"abs_rel": float(np.mean(errors)), "delta1": 100 * float(np.mean(deltas))}


def normals(batches: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray | None]]) -> dict[str, float]:
    """Batches of unit normals (N, 3, H, W), truth, zero unknown, and κ (N, H, W) where there is one."""
    parts: list[np.ndarray] = []
    kappas: list[np.ndarray] = []
    for labels, truth, kappa in batches:
        known = np.square(truth).sum(1) > 0.25
        chord = np.linalg.norm(labels - truth, axis=1)[known]
        parts.append(np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1))))
        if kappa is not None:
            kappas.append(kappa[known])
    angles = np.concatenate(parts)
    metrics = {
        "normal_mean": float(angles.mean()),
        "normal_median": float(np.median(angles)),
        "normal_11.25": 100 * float(np.mean(angles < 11.25)),
    }
    if kappas:
        expected = expected_angle(torch.from_numpy(np.concatenate(kappas))).mean()
        metrics["kappa_expected"] = math.degrees(float(expected))
    return metrics


def _renumbered(truth: np.ndarray, classes: tuple[str, ...], expert: Expert) -> np.ndarray:
    """Truth in the expert's own class numbers, by name; classes that it does not know are not scored."""
    if classes == expert.classes:
        return truth
    table = np.full(256, 65535, np.int64)
    for place, name in enumerate(classes):
        if name in expert.classes:
            table[place] = expert.classes.index(name)
    return table[truth]
