"""``in-context`` segmentation: a patch attends to its nearest training patches (Balažević et al.
2023, Hummingbird).

Keys are the memory's features, values what part of a patch each class has; the softmax is over the
cosines of the 30 nearest divided by 0.02, as in Open-Hummingbird (Pariza, Salehi, Asano 2024).
Nothing is trained and nothing chosen.
"""

from __future__ import annotations

import time

from torch import Tensor
from torch.nn.functional import normalize

from probes.base import Context, Probe, TaskResult
from probes.dense.patches.images import Patches, PatchImages, evaluate
from probes.dense.patches.memory import remember
from probes.dense.patches.settings import InContextSettings
from probes.features.cost import EncodeRun
from probes.features.search import nearest


def run(probe: Probe, context: Context) -> TaskResult:
    """See ``probes.dense.patches.probe``."""
    settings: InContextSettings = context.settings
    started, encoding, asked = time.perf_counter(), EncodeRun.of(context), 0
    memory, _ = remember(context, encoding, choosing=False)
    keys = normalize(memory.features, dim=1)
    remembered = time.perf_counter()

    def predict(patches: Patches) -> Tensor:
        nonlocal asked
        asked += len(patches.features)
        return attend(patches.features, keys, memory.shares, settings)

    result = evaluate(probe, context, PatchImages(context, "val"), encoding, predict)
    result.notes = [f"{len(memory)} patches remembered", *result.notes]
    result.cost = encoding.cost.added_to(
        {
            "train_seconds": remembered - started,
            "eval_seconds": time.perf_counter() - remembered,
            "eval_flops": 2.0 * asked * keys.numel(),
        }
    )
    return result


def attend(queries: Tensor, keys: Tensor, values: Tensor, settings: InContextSettings) -> Tensor:
    """(N, D) features → (N, classes): the values (M, classes) of the nearest unit ``keys`` (M, D),
    by attention."""
    similar, index = nearest(normalize(queries, dim=1), keys, settings.neighbours)
    weights = (similar / settings.temperature).softmax(dim=1)
    return (weights[..., None] * values[index.to(values.device)].to(weights)).sum(dim=1)
