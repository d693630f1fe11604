"""Choosing hyper-parameters on a held-out part of train; ``val`` has no say.

A linear grid, random-crop heads, attentive heads, k-NN, patches and the learning rates of dense
probes all choose here. Few-shot chooses by leaving each image out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from cliptex_common.errors import UserError
from cliptex_common.files import content_key
from probes.base import Context, RunLog
from probes.features.files import content_hashes
from reports.records import BEYOND_GRID

T = TypeVar("T")
SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Candidate(Generic[T]):
    """One value of a grid, and how it scores on the held-out part.

    Attributes:
        value: the hyper-parameters.
        name: of its curve, such as ``lr_0.1``.
        score: of the main metric.
        loss: decides between equal scores; a candidate whose loss is not finite ranks last.
        coordinate: its position in a grid of numbers, where a best value at the edge is reported.
    """

    value: T
    name: str
    score: float
    loss: float = 0.0
    coordinate: float | None = None


def log_scores(log: RunLog, metric: str, candidates: Sequence[Candidate[T]], step: int) -> None:
    """Log ``select/METRIC/NAME`` of each candidate that has a score."""
    scores = {f"select/{metric}/{each.name}": each.score for each in candidates}
    log.log_metrics({name: score for name, score in scores.items() if score == score}, step)


def select_candidate(
    candidates: Sequence[Candidate[T]], metric: str, images: int, direction: float = 1
) -> tuple[Candidate[T], str]:
    """The best candidate, and a note on the choice.

    Of candidates that are equal in score and loss the first wins; scores that are NaN rank last.

    Args:
        images: number of held-out training images that the scores are measured on.
        direction: 1 where a higher score is better, -1 where a lower one is.
    """

    def rank(candidate: Candidate[T]) -> tuple[bool, float, float]:
        valid = math.isfinite(candidate.loss) and not math.isnan(candidate.score)
        return valid, direction * candidate.score, -candidate.loss

    best = max(candidates, key=rank)
    note = (
        f"best of {len(candidates)} on {images} held-out training images"
        f" ({metric} {best.score:.4g})"
    )
    grid = {each.coordinate for each in candidates if each.coordinate is not None}
    if len(grid) > 1 and best.coordinate in (min(grid), max(grid)):
        edge = "lowest" if best.coordinate == min(grid) else "highest"
        note += f"; the {edge} of its grid: {BEYOND_GRID}"
    return best, note


def shuffled_classes(labels: Tensor, seed: int) -> Iterator[Tensor]:
    """Shuffled indices of each class's samples, by ``seed`` and the labels alone."""
    generator = torch.Generator().manual_seed(seed)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().squeeze(1)
        yield members[torch.randperm(len(members), generator=generator)]


def stratified_split(labels: Tensor, share: float, seed: int, advice: str) -> tuple[Tensor, Tensor]:
    """Indices (training, held out), each sorted.

    About ``share`` of every class is held out, at least one image of two or more, and never all.
    Args:
        labels: (N,) classes.
        advice: what to do without the choice, for the error.
    Raises:
        UserError: every class has a single image.
    """
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for members in shuffled_classes(labels, seed):
        held_out[members[: min(len(members) - 1, max(1, round(share * len(members))))]] = True
    if not held_out.any():
        raise UserError(
            "every class has only one training image, which leaves none to choose a setting on;"
            f" {advice}"
        )
    return (~held_out).nonzero().squeeze(1), held_out.nonzero().squeeze(1)


def held_out_by_content(context: Context) -> list[int]:
    """Positions of a tenth of the training images among those that are encoded, in random order, so
    that the first of them are a fair sample.

    The images follow from the hash of their content, so they are the same for all backbones, seeds
    and tasks; copies of an image stay together.

    Raises:
        UserError: there are fewer than two different images.
    """
    data = context.data
    hashes = content_hashes([data.root / sample.image for sample in data.samples["train"]])
    ranked = sorted(set(hashes), key=lambda digest: content_key(["held out", digest]))
    if len(ranked) < 2:
        raise UserError(
            "choosing a setting needs two different training images or more, one of them held out;"
            " give a single value instead"
        )
    held_out = ranked[: max(1, round(SHARE * len(ranked)))]
    rank = {digest: number for number, digest in enumerate(held_out)}
    positions = data.train_indices or range(len(hashes))
    pairs = zip(positions, hashes, strict=True)
    chosen = [(rank[digest], position) for position, digest in pairs if digest in rank]
    return [position for _, position in sorted(chosen)]
