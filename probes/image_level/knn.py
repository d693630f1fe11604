"""``knn`` classification: the nearest training images vote (Wu et al. 2018, section 3.4, as DINO's
``eval_knn.py`` does it).

A neighbour at cosine s counts exp(s / 0.07). How many vote is chosen on a held-out part of train;
DINO names the best on val.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from common.errors import UserError
from probes.base import Context, TaskResult
from probes.features.cost import EncodeRun
from probes.features.search import nearest
from probes.image_level.classification import near, score, targets
from probes.image_level.embeddings import encode_split
from probes.image_level.linear import linear_flops, ranks, stratified_split
from probes.image_level.settings import KnnSettings


def run(context: Context) -> TaskResult:
    """See ``probes.image_level.probe``."""
    settings: KnnSettings = context.settings
    encoding, labels = EncodeRun.of(context), targets(context, "train").to(context.device)
    train, val = (
        normalize(near(encode_split(context, split, encoding), context.device), dim=1)
        for split in ("train", "val")
    )
    encoded, classes = time.perf_counter(), len(context.data.classes)
    context.progress.start("looking for neighbours", 1)
    chosen, note, searched = settings.neighbours[0], "given", 0
    if len(settings.neighbours) > 1:
        kept, held = stratified_split(labels.cpu(), settings.holdout, context.seed)
        if not len(held):
            raise UserError(
                "knn: every class has only one training image, so that no number of neighbours can"
                " be chosen; give one with --set neighbours=10"
            )
        ballots = votes(
            train[held],
            train[kept],
            labels[kept],
            settings,
            settings.neighbours,
            classes,
            context.device,
        )
        top1 = [
            100 * (ranks(each, labels[held].cpu()) == 0).double().mean().item() for each in ballots
        ]
        chosen = settings.neighbours[max(range(len(top1)), key=lambda place: (top1[place], -place))]
        told = {
            f"select/top1/k_{k}": value for k, value in zip(settings.neighbours, top1, strict=True)
        }
        context.log.log_metrics(told, 1)
        note, searched = (
            f"best of {len(top1)} on {len(held)} held-out training images (top1 {max(top1):.1f})",
            len(held),
        )
    (logits,) = votes(val, train, labels, settings, [chosen], classes, context.device)
    context.progress.advance()
    result = score(context, logits)
    result.cost = encoding.cost.added_to(
        {
            "eval_seconds": time.perf_counter() - encoded,
            "eval_flops": linear_flops(train.shape[1], len(train), 0, searched + len(val)),
        }
    )
    result.notes = [f"{chosen} neighbours: {note}"]
    return result


def votes(
    queries: Tensor,
    memory: Tensor,
    labels: Tensor,
    settings: KnnSettings,
    neighbours: Sequence[int],
    classes: int,
    device: torch.device,
) -> list[Tensor]:
    """For each number of ``neighbours`` what each class gets of its votes, (N, classes) float64 on
    the CPU.

    Args:
        queries: (N, D), memory: (M, D) unit vectors; labels: (M,) of the memory.
    """
    found: list[list[Tensor]] = [[] for _ in neighbours]
    for part in queries.split(4096):
        similar, index = nearest(part.to(device), memory, max(neighbours))
        weights, voted = (similar.double() / settings.temperature).exp(), labels.to(device)[index]
        for place, k in enumerate(neighbours):
            ballot = torch.zeros(len(part), classes, dtype=torch.float64, device=device)
            found[place].append(ballot.scatter_add_(1, voted[:, :k], weights[:, :k]).cpu())
    return [torch.cat(each) for each in found]
