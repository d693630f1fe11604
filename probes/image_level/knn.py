"""``knn`` classification: the nearest training images vote (Wu et al. 2018, section 3.4).

As in DINO's ``eval_knn.py`` a neighbour at cosine s counts exp(s / 0.07). The number of neighbours
is chosen on a held-out part of train; DINO reports the best on val.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cliptex_common.device import float64_device
from probes.base import Context, TaskResult
from probes.features.search import nearest_neighbours
from probes.image_level.classification import on_device_if_small, score, targets, top1
from probes.image_level.encode import encode_split
from probes.image_level.settings import KnnSettings
from probes.label_free import log_label_free
from probes.selection import Candidate, log_scores, select_candidate, stratified_split


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    settings: KnnSettings = context.settings
    training = context.training
    labels, classes = targets(training, "train").to(context.device), len(training.data.classes)
    features = encode_split(training, "train"), encode_split(context, "val")
    if training.data is context.data:
        log_label_free(context, features[0])
    train, val = (normalize(on_device_if_small(each, context.device), dim=1) for each in features)
    context.progress.start("searching neighbours", 1)
    neighbours, reason = settings.neighbours[0], "fixed"
    if len(settings.neighbours) > 1:
        neighbours, reason = choose(train, labels, training)
    (logits,) = votes(val, train, labels, [neighbours], settings.temperature, classes)
    context.progress.advance()
    return score(context, logits, [f"{neighbours} neighbours: {reason}"])


def choose(train: Tensor, labels: Tensor, context: Context) -> tuple[int, str]:
    """The number of neighbours that is best on a held-out part of train, and why."""
    settings: KnnSettings = context.settings
    memory, held_out = stratified_split(
        labels.cpu(), settings.holdout, context.seed, "give one with --set neighbours=10"
    )
    counts, classes = settings.neighbours, len(context.data.classes)
    labelled = train[memory], labels[memory]
    ballots = votes(train[held_out], *labelled, counts, settings.temperature, classes)
    candidates = [
        Candidate(k, f"k_{k}", top1(ballot, labels[held_out].cpu()))
        for k, ballot in zip(counts, ballots, strict=True)
    ]
    log_scores(context.log, "top1", candidates, 1)
    best, reason = select_candidate(candidates, "top1", len(held_out))
    return best.value, reason


def votes(
    queries: Tensor,
    memory: Tensor,
    labels: Tensor,
    neighbours: Sequence[int],
    temperature: float,
    classes: int,
) -> list[Tensor]:
    """For each number of ``neighbours`` the votes of each class, (N, classes) float64 on the CPU.

    Args:
        queries: (N, D), memory: (M, D) unit vectors.
        labels: (M,) of the memory, on the device that computes.
    """
    device, exact = labels.device, float64_device(labels.device)
    ballots: list[list[Tensor]] = [[] for _ in neighbours]
    for part in queries.split(4096):
        similar, index = nearest_neighbours(part.to(device), memory, max(neighbours))
        weights, voted = (similar.to(exact).double() / temperature).exp(), labels[index].to(exact)
        for parts, k in zip(ballots, neighbours, strict=True):
            ballot = torch.zeros(len(part), classes, dtype=torch.float64, device=exact)
            parts.append(ballot.scatter_add_(1, voted[:, :k], weights[:, :k]).cpu())
    return [torch.cat(parts) for parts in ballots]
