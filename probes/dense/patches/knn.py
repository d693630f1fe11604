"""``patch-knn``: a patch has the labels of its nearest training patches (CAPI, Darcet et al. 2025,
``eval_segmentation.py``).

Number of neighbours and distance are chosen on held-out training images. CAPI's neighbours pass on
their labels pixel by pixel; here each passes on the part of it that every class has, and the mean
of them is resized.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

from torch import Tensor
from torch.nn.functional import normalize

from probes.base import Context, TaskResult
from probes.dense.patches.images import Patches, PatchImages, evaluate
from probes.dense.patches.memory import HeldOutImage, Memory, mean_iou, remember, standardiser
from probes.dense.patches.settings import PatchKnnSettings
from probes.features.search import nearest
from probes.image_level.linear import Standardiser
from probes.selection import Candidate, log_scores, select

Pair = tuple[int, str]  # neighbours, distance


class Voter:
    """A memory that is searched by cosine or L2 distance."""

    def __init__(self, memory: Memory, standardise: Standardiser, distances: Iterable[str]) -> None:
        self.memory, self.standardise = memory, standardise
        features = standardise(memory.features)
        self.keys: dict[str, tuple[Tensor, Tensor | None]] = {}
        for distance in distances:
            if distance == "cosine":
                self.keys[distance] = normalize(features, dim=1), None
            else:
                self.keys[distance] = features, -features.square().sum(dim=1) / 2

    def votes(self, patches: Patches, pairs: Sequence[Pair]) -> dict[Pair, Tensor]:
        """For each pair the part that each class has, (rows × columns, classes)."""
        features = self.standardise(patches.features)
        votes: dict[Pair, Tensor] = {}
        for distance in dict.fromkeys(distance for _, distance in pairs):
            keys, offset = self.keys[distance]
            queries = normalize(features, dim=1) if distance == "cosine" else features
            counts = [k for k, name in pairs if name == distance]
            _, index = nearest(queries, keys, max(counts), offset)
            shares = self.memory.shares[index.to(self.memory.shares.device)]
            shares = shares.to(features.device).float()
            votes |= {(k, distance): shares[:, :k].mean(dim=1) for k in counts}
        return votes


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    settings: PatchKnnSettings = context.settings
    pairs: list[Pair] = list(product(settings.neighbours, settings.distances))
    with context.cost.phase("train"):
        memory, held_out = remember(context, choosing=len(pairs) > 1)
        standardise = standardiser(memory.features, settings.standardise)
        best, reason = pairs[0], "fixed"
        if len(pairs) > 1:
            rest = memory.without([image.patches.index for image in held_out])
            best, reason = choose(
                Voter(rest, standardise, settings.distances), pairs, held_out, context
            )
        voter = Voter(memory, standardise, [best[1]])
    images = PatchImages(context, "val")
    result = evaluate(context, images, lambda patches: voter.votes(patches, [best])[best])
    result.notes = [
        f"{best[0]} neighbours by {best[1]}: {reason}",
        f"{len(memory)} patches remembered",
        *result.notes,
    ]
    return result


def choose(
    voter: Voter, pairs: Sequence[Pair], held_out: Sequence[HeldOutImage], context: Context
) -> tuple[Pair, str]:
    """The pair with the best mIoU on held-out images, of equals fewer neighbours; and why."""
    context.progress.start("choosing the neighbours", len(held_out))
    votes: dict[Pair, list[Tensor]] = {pair: [] for pair in pairs}
    for image in held_out:
        for pair, scores in voter.votes(image.patches, pairs).items():
            votes[pair].append(scores)
        context.progress.advance()
    candidates = [
        Candidate(pair, f"{pair[0]}_{pair[1]}", mean_iou(held_out, votes[pair], context), pair[0])
        for pair in pairs
    ]
    log_scores(context.log, "mIoU", candidates, 1)
    best, reason = select(candidates, "mIoU", len(held_out))
    return best.value, reason
