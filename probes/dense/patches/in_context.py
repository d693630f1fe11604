"""``in-context`` segmentation: a patch attends to its nearest training patches (Balažević et al.
2023, Hummingbird).

Keys are the memory's features, values the part of a patch that each class has; the softmax is over
the cosines of the 30 nearest divided by 0.02, as in Open-Hummingbird (Pariza, Salehi, Asano 2024).
Nothing is trained and nothing chosen.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from probes.base import Context, TaskResult
from probes.dense.patches.images import PatchImages, evaluate
from probes.dense.patches.memory import remember
from probes.dense.patches.settings import InContextSettings
from probes.features.search import nearest


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    with context.cost.phase("train"):
        memory, _ = remember(context, choosing=False)
        keys = normalize(memory.features, dim=1)
    images = PatchImages(context, "val")
    result = evaluate(
        context,
        images,
        lambda patches: attend(patches.features, keys, memory.shares, context.settings),
    )
    result.notes = [f"{len(memory)} patches remembered", *result.notes]
    return result


def attend(queries: Tensor, keys: Tensor, values: Tensor, settings: InContextSettings) -> Tensor:
    """(N, D) features → (N, classes): the values of the nearest keys, by attention.

    Args:
        keys: (M, D) unit vectors, values: (M, classes).
    """
    similar, index = nearest(normalize(queries, dim=1), keys, settings.neighbours)
    weights = (similar / settings.temperature).softmax(dim=1)
    return (weights[..., None] * values[index.to(values.device)].to(weights)).sum(dim=1)
