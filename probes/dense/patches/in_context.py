"""``in-context`` segmentation: a patch attends to its nearest training patches (Balažević et al.
2023, Hummingbird).

Keys are the memory's features, values the part of a patch that each class has; the softmax is over
the cosines of the 30 nearest divided by 0.02, as in Open-Hummingbird (Pariza, Salehi, Asano 2024).
Nothing is trained and nothing chosen. ``mIoU_hungarian`` is Open-Hummingbird's metric.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from probes.base import Context, TaskResult
from probes.dense.patches.images import PatchImages, evaluate_patches
from probes.dense.patches.memory import remember
from probes.dense.patches.pixels import Patches, label_map
from probes.dense.patches.settings import InContextSettings
from probes.features.search import nearest_neighbours
from probes.pictures import log_label_free

ROWS_AT_ONCE = 2**10  # queries whose neighbours' values are in memory at once


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    with context.cost.phase("train"):
        memory = remember(context)
        log_label_free(context, memory.features)

    def predict(images: Sequence[Patches]) -> Iterator[Tensor]:
        queries = torch.cat([patches.features for patches in images])
        shares = attend(queries, memory.features, memory.labels, context.settings)
        sizes = [len(patches.features) for patches in images]
        for patches, scores in zip(images, shares.split(sizes), strict=True):
            yield label_map(scores, patches)

    notes = [f"{len(memory)} patches remembered"]
    return evaluate_patches(context, PatchImages(context, "val"), predict, notes, hungarian=True)


def attend(
    queries: Tensor, features: Tensor, values: Tensor, settings: InContextSettings
) -> Tensor:
    """(N, D) features → (N, classes): the values of the nearest patches, by attention.

    Args:
        features: (M, D), values: (M, classes), of the memory, of any precision.
    """
    similar, index = nearest_neighbours(
        normalize(queries, dim=1),
        features,
        settings.neighbours,
        prepare=lambda part: normalize(part, dim=1),
    )
    weights = (similar / settings.temperature).softmax(dim=1)
    attended = [
        (part[..., None] * values[rows.to(values.device)].to(part)).sum(dim=1)
        for part, rows in zip(weights.split(ROWS_AT_ONCE), index.split(ROWS_AT_ONCE), strict=True)
    ]
    return torch.cat(attended)
