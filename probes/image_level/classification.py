"""What the probes of classification share: targets, ranks and scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cliptex_common.device import is_accelerator, memory
from probes.base import Context, Head, TaskResult
from probes.datasets.base import Split


def targets(context: Context, split: Split) -> Tensor:
    """(N,) int64 classes of a split."""
    samples = context.data.samples[split]
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


def score(
    context: Context, logits: Tensor, notes: Sequence[str] = (), head: Head | None = None
) -> TaskResult:
    """Scores in percent of (N, C) logits of ``val``.

    ``top1`` and, with more than five classes, ``top5``; ``mean_per_class_recall`` and ``f1_macro``
    over the classes that have images; ``worst_group_top…`` where images have groups. For each image
    the true class's ``rank`` (0 = right), ``label``, ``prediction`` and ``group``.
    """
    labels, samples = targets(context, "val"), context.data.samples["val"]
    rank, prediction = ranks(logits, labels), logits.argmax(dim=1)
    hits = {f"top{k}": 100 * (rank < k).double() for k in (1, 5) if k == 1 or logits.shape[1] > 5}
    metrics = {name: hit.mean().item() for name, hit in hits.items()}
    true, predicted, right = (
        torch.bincount(classes, minlength=logits.shape[1]).double()
        for classes in (labels, prediction, labels[rank == 0])
    )
    present = true > 0
    metrics["mean_per_class_recall"] = 100 * (right / true)[present].mean().item()
    metrics["f1_macro"] = 100 * (2 * right / (true + predicted))[present].mean().item()
    per_image = {
        "image": np.array([sample.image for sample in samples]),
        "rank": rank.numpy(),
        "label": labels.numpy(),
        "prediction": prediction.numpy(),
    }
    if all(sample.group is not None for sample in samples):
        per_image["group"] = np.array([sample.group for sample in samples])
        groups = torch.from_numpy(np.unique(per_image["group"], return_inverse=True)[1])
        sizes = torch.bincount(groups).double()
        for name, hit in hits.items():
            metrics[f"worst_group_{name}"] = (torch.bincount(groups, hit) / sizes).min().item()
    return TaskResult(metrics, per_image, head=head, notes=list(notes))
