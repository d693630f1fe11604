"""What the probes of classification share: targets, ranks and scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cliptex_common.device import is_accelerator, memory
from probes.base import Context, Head, TaskResult
from probes.datasets.base import Split
from probes.image_level.metrics import classification


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
    """Metrics of (N, C) logits of ``val``, ``top5`` with more than five classes; see
    ``probes.image_level.metrics.classification``."""
    samples = context.data.samples["val"]
    labels = targets(context, "val")
    per_image = {
        "image": np.array([sample.image for sample in samples]),
        "rank": ranks(logits, labels).numpy(),
        "label": labels.numpy(),
        "prediction": logits.argmax(dim=1).numpy(),
    }
    if all(sample.group is not None for sample in samples):
        per_image["group"] = np.array([sample.group for sample in samples])
    metrics = classification(tuple(per_image["image"]), per_image).values()
    if logits.shape[1] <= 5:
        metrics = {name: value for name, value in metrics.items() if not name.endswith("top5")}
    return TaskResult(metrics, per_image, head=head, notes=list(notes))
