"""``patch-knn``: a patch has the labels of its nearest training patches (CAPI, Darcet et al. 2025,
``eval_segmentation.py``).

Number of neighbours and distance are chosen on held-out training images. CAPI's neighbours pass on
their labels pixel by pixel; here each passes on the part of it that every class has, and the mean
of them is resized.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    def __init__(self, memory: Memory, standardise: Standardiser, distance: str) -> None:
        self.shares, self.standardise = memory.shares, standardise
        self.is_cosine, self.offset = distance == "cosine", None
        self.keys = standardise(memory.features)
        if self.is_cosine:
            self.keys = normalize(self.keys, dim=1)
        else:
            self.offset = -self.keys.square().sum(dim=1) / 2

    def votes(self, patches: Patches, counts: Sequence[int]) -> list[Tensor]:
        """The part that each class has of so many neighbours, (rows × columns, classes) each."""
        queries = self.standardise(patches.features)
        if self.is_cosine:
            queries = normalize(queries, dim=1)
        _, index = nearest(queries, self.keys, max(counts), self.offset)
        shares = self.shares[index.to(self.shares.device)].to(queries.device).float()
        return [shares[:, :count].mean(dim=1) for count in counts]


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    settings: PatchKnnSettings = context.settings
    pairs: list[Pair] = list(product(settings.neighbours, settings.distances))
    with context.cost.phase("train"):
        memory, held_out = remember(context, choosing=len(pairs) > 1)
        standardise = standardiser(memory.features)
        (neighbours, distance), reason = pairs[0], "fixed"
        if len(pairs) > 1:
            rest = memory.without(held_out)
            (neighbours, distance), reason = choose(rest, standardise, pairs, held_out, context)
        voter = Voter(memory, standardise, distance)
    images = PatchImages(context, "val")
    result = evaluate(context, images, lambda patches: voter.votes(patches, [neighbours])[0])
    result.notes = [
        f"{neighbours} neighbours by {distance}: {reason}",
        f"{len(memory)} patches remembered",
        *result.notes,
    ]
    return result


def choose(
    memory: Memory,
    standardise: Standardiser,
    pairs: Sequence[Pair],
    held_out: Sequence[HeldOutImage],
    context: Context,
) -> tuple[Pair, str]:
    """The pair with the best mIoU on held-out images, of equals fewer neighbours; and why."""
    settings: PatchKnnSettings = context.settings
    context.progress.start("choosing the neighbours", len(settings.distances) * len(held_out))
    votes: dict[Pair, list[Tensor]] = {pair: [] for pair in pairs}
    for distance in settings.distances:
        voter = Voter(memory, standardise, distance)
        for image in held_out:
            scores = voter.votes(image.patches, settings.neighbours)
            for neighbours, score in zip(settings.neighbours, scores, strict=True):
                votes[neighbours, distance].append(score)
            context.progress.advance()
    candidates = [
        Candidate(pair, f"{pair[0]}_{pair[1]}", mean_iou(held_out, votes[pair], context), pair[0])
        for pair in pairs
    ]
    log_scores(context.log, "mIoU", candidates, 1)
    best, reason = select(candidates, "mIoU", len(held_out))
    return best.value, reason
