"""``patch-knn``: a patch has the labels of its nearest training patches (CAPI, Darcet et al. 2025,
``eval_segmentation.py``).

Number of neighbours and distance are chosen on held-out training images. CAPI's neighbours hand on
their labels pixel by pixel; here each hands on what part of it every class has, and the mean of
them is resized.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import product

from torch import Tensor
from torch.nn.functional import normalize

from probes.base import Context, Probe, TaskResult
from probes.dense.patches.images import Patches, PatchImages, evaluate
from probes.dense.patches.memory import Memory, Standard, mean_iou, remember
from probes.dense.patches.settings import PatchKnnSettings
from probes.features.cost import EncodeRun
from probes.features.search import nearest

Pair = tuple[int, str]  # neighbours, distance


class Voting:
    """A memory, ready to be asked by cosine or L2 distance."""

    def __init__(self, memory: Memory, standard: Standard, distances: Sequence[str]) -> None:
        self.memory, self.standard = memory, standard
        features = standard(memory.features)
        self.keys: Mapping[str, tuple[Tensor, Tensor | None]] = {
            distance: (
                (normalize(features, dim=1), None)
                if distance == "cosine"
                else (features, -features.square().sum(dim=1) / 2)
            )
            for distance in distances
        }

    def ask(self, patches: Patches, pairs: Sequence[Pair]) -> dict[Pair, Tensor]:
        """For each pair what each class has of the patches, (rows × columns, classes)."""
        queries = self.standard(patches.features)
        found: dict[Pair, Tensor] = {}
        for distance in dict.fromkeys(each for _, each in pairs):
            keys, offset = self.keys[distance]
            asked = normalize(queries, dim=1) if distance == "cosine" else queries
            counts = [k for k, each in pairs if each == distance]
            _, index = nearest(asked, keys, max(counts), offset)
            voted = (
                self.memory.shares[index.to(self.memory.shares.device)].to(queries.device).float()
            )
            found |= {(k, distance): voted[:, :k].mean(dim=1) for k in counts}
        return found


def run(probe: Probe, context: Context) -> TaskResult:
    """See ``probes.dense.patches.probe``."""
    settings: PatchKnnSettings = context.settings
    started, encoding = time.perf_counter(), EncodeRun.of(context)
    pairs = list(product(settings.neighbours, settings.distances))
    memory, held = remember(context, encoding, choosing=len(pairs) > 1)
    standard = Standard.of(memory.features, settings.standardise)
    best, note, asked = pairs[0], "given", 0
    if len(pairs) > 1:
        voting = Voting(memory.without(held.places()), standard, settings.distances)
        context.progress.start("choosing the neighbours", len(held.patches))
        ballots: dict[Pair, list[Tensor]] = {pair: [] for pair in pairs}
        for patches in held.patches:
            for pair, scores in voting.ask(patches, pairs).items():
                ballots[pair].append(scores)
            asked += len(patches.features)
            context.progress.advance()
        classes, ignore = len(context.data.classes), context.data.spec.ignore_index
        found = {pair: mean_iou(held, scores, classes, ignore) for pair, scores in ballots.items()}
        best = max(pairs, key=lambda pair: (found[pair], -pair[0]))
        context.log.log_metrics(
            {f"select/mIoU/{k}_{distance}": value for (k, distance), value in found.items()}, 1
        )
        note = (
            f"best of {len(pairs)} on {len(held.patches)} held-out training images (mIoU"
            f" {found[best]:.1f})"
        )
    voting = Voting(memory, standard, [best[1]])
    fitted = time.perf_counter()

    def predict(patches: Patches) -> Tensor:
        nonlocal asked
        asked += len(patches.features)
        return voting.ask(patches, [best])[best]

    result = evaluate(probe, context, PatchImages(context, "val"), encoding, predict)
    result.notes = [
        f"{best[0]} neighbours by {best[1]}: {note}",
        f"{len(memory)} patches remembered",
        *result.notes,
    ]
    result.cost = encoding.cost.added_to(
        {
            "train_seconds": fitted - started,
            "eval_seconds": time.perf_counter() - fitted,
            "eval_flops": 2.0 * asked * memory.features.numel(),
        }
    )
    return result
