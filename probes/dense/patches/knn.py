"""Segmentation by the nearest training patches.

``patch-knn``: a patch has the labels of its nearest (CAPI, Darcet et al. 2025,
``eval_segmentation.py``). Number of neighbours and distance are chosen on held-out training images.
Each neighbour passes on the part of it that every class has, and the mean of them is resized; with
``votes=pixels`` it passes on its labels pixel by pixel, as CAPI's do.

``in-context``: a patch attends to its nearest (Balažević et al. 2023, Hummingbird). Keys are the
memory's features, values the part of a patch that each class has; the softmax is over the cosines
of the 30 nearest divided by 0.02, as in Open-Hummingbird (Pariza, Salehi, Asano 2024). Nothing is
trained and nothing chosen. ``mIoU_hungarian`` is Open-Hummingbird's metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import normalize

from probes.base import Context, TaskResult
from probes.dense.patches.images import PatchImages, evaluate_patches
from probes.dense.patches.memory import (
    ROWS,
    Memory,
    classes_of,
    held_out_images,
    mean_iou,
    order_labels,
    remember,
)
from probes.dense.patches.pixels import Patches, label_map, pixel_map
from probes.dense.patches.probe import InContextSettings, PatchKnnSettings, has_void_class
from probes.features.search import nearest_neighbours
from probes.image_level.linear import Standardiser
from probes.pictures import log_label_free
from probes.select import Candidate, log_scores, select_candidate

ROWS_AT_ONCE = 2**10  # queries whose neighbours' values are in memory at once


def run_in_context(context: Context) -> TaskResult:
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


CountAndDistance = tuple[int, str]  # neighbours, distance


def key_maker(standardise: Standardiser, distance: str) -> Callable[[Tensor], Tensor]:
    """What makes keys and queries of (N, D) features for a search by cosine or L2 distance."""
    if distance == "cosine":
        return lambda features: normalize(standardise(features), dim=1)
    return standardise


class PatchKnn:
    """A memory that is searched by cosine or L2 distance.

    Args:
        held_out: images whose patches do not vote.
    """

    def __init__(
        self,
        memory: Memory,
        standardise: Standardiser,
        distance: str,
        context: Context,
        held_out: Sequence[int] = (),
    ) -> None:
        self.memory, self.context = memory, context
        unused = memory.unused(held_out)
        self.skip = unused if unused.any() else None
        self.make_keys, self.offset = key_maker(standardise, distance), None
        if distance == "l2":
            self.offset = memory.features.new_empty(len(memory), dtype=torch.float32)
            parts = memory.features.split(ROWS), self.offset.split(ROWS)
            for features, offset in zip(*parts, strict=True):
                torch.mul(self.make_keys(features.float()).square().sum(dim=1), -0.5, out=offset)

    def label_maps(
        self, images: Sequence[Patches], counts: Sequence[int]
    ) -> Iterator[list[Tensor]]:
        """For each image its (H, W) label map by so many neighbours each."""
        queries = self.make_keys(torch.cat([patches.features for patches in images]))
        _, index = nearest_neighbours(
            queries,
            self.memory.features,
            max(counts),
            self.offset,
            prepare=self.make_keys,
            skip=self.skip,
        )
        sizes = [len(patches.features) for patches in images]
        for patches, neighbours in zip(images, index.split(sizes), strict=True):
            labels = self.memory.labels[neighbours.to(self.memory.labels.device)]
            nearest_labels = [labels.to(queries.device)[:, :count] for count in counts]
            if self.context.settings.votes == "shares":
                yield [label_map(each.float().mean(dim=1), patches) for each in nearest_labels]
            else:
                yield [
                    pixel_map(most_frequent(each, self.context), patches) for each in nearest_labels
                ]


def most_frequent(labels: Tensor, context: Context) -> Tensor:
    """(N, k, P) labels of k neighbours as ``order_labels`` gives them → (N, P): the most frequent
    of k, of equals the first."""
    labels = labels.transpose(1, 2).long()
    shape = *labels.shape[:2], len(context.data.classes) + 1
    counts = labels.new_zeros(shape, dtype=torch.int16)
    counts.scatter_add_(2, labels, torch.ones_like(labels, dtype=torch.int16))
    if not has_void_class(context.settings):
        void = torch.tensor(context.data.spec.ignore_index)
        counts[..., int(order_labels(void, context))] = -1
    return classes_of(counts.argmax(dim=2), context)


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    settings: PatchKnnSettings = context.settings
    pairs: list[CountAndDistance] = list(product(settings.neighbours, settings.distances))
    with context.cost.phase("train"):
        memory = remember(context, settings.votes == "pixels")
        log_label_free(context, memory.features)
        standardise = Standardiser.fit(memory.features).to(context.device)
        (neighbours, distance), reason = pairs[0], "fixed"
        if len(pairs) > 1:
            (neighbours, distance), reason = choose(memory, standardise, pairs, context)
        knn = PatchKnn(memory, standardise, distance, context)
    return evaluate_patches(
        context,
        PatchImages(context, "val"),
        lambda images: (maps[0] for maps in knn.label_maps(images, [neighbours])),
        [f"{neighbours} neighbours by {distance}: {reason}", f"{len(memory)} patches remembered"],
    )


def choose(
    memory: Memory, standardise: Standardiser, pairs: Sequence[CountAndDistance], context: Context
) -> tuple[CountAndDistance, str]:
    """The pair with the best mIoU on held-out images, of equals fewer neighbours; and why."""
    settings: PatchKnnSettings = context.settings
    held_out = held_out_images(context)
    context.progress.start("choosing the neighbours", len(settings.distances) * len(held_out))
    scores: dict[CountAndDistance, float] = {}
    for distance in settings.distances:
        knn = PatchKnn(memory, standardise, distance, context, held_out)
        predict = partial(knn.label_maps, counts=settings.neighbours)
        ious = mean_iou(PatchImages(context, "train"), held_out, predict)
        scores |= {
            (count, distance): iou for count, iou in zip(settings.neighbours, ious, strict=True)
        }
    candidates = [
        Candidate(pair, f"{pair[0]}_{pair[1]}", scores[pair], coordinate=pair[0]) for pair in pairs
    ]
    log_scores(context.log, "mIoU", candidates, 1)
    best, reason = select_candidate(candidates, "mIoU", len(held_out))
    return best.value, reason
