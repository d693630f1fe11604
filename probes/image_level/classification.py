"""``linear`` classification: features once, then linear classifiers over a grid, chosen on a split
of train.

The labels of ``val`` are looked at once, at the end, by the classifier that was chosen without
them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from probes.base import Context, TaskResult
from probes.datasets.base import Split
from probes.features.cost import EncodeRun
from probes.image_level.embeddings import encode_split
from probes.image_level.linear import (
    Linear,
    Samples,
    linear_flops,
    ranks,
    stratified_split,
    train_linear,
)
from probes.image_level.settings import AttentiveSettings, LinearSettings
from probes.predictor import linear_head

Pair = tuple[float, float]  # learning rate, weight decay


def run(context: Context) -> TaskResult:
    """See ``probes.image_level.probe``."""
    settings: LinearSettings = context.settings
    encoding = EncodeRun.of(context)
    features: dict[Split, Tensor] = {"train": encode_split(context, "train", encoding)}
    features["val"] = encode_split(context, "val", encoding)
    encoded = time.perf_counter()
    train, val = (
        Samples(near(each, context.device), targets(context, split), len(context.data.classes))
        for split, each in features.items()
    )
    pair, why, choosing = choose(train, context)
    context.progress.start("training the linear classifier", settings.epochs)

    def log(epoch: int, losses: list[float], model: Linear) -> None:
        context.log.log_metrics({"train/loss": losses[0]}, epoch)
        context.progress.advance()

    model = train_linear(train, [pair], settings, context.seed, context.device, log)
    trained = time.perf_counter()
    logits = [model.logits(part)[0].cpu() for part, _ in val.batches(4096, context.device)]
    result = score(context, torch.cat(logits))
    width = train.features.shape[1]
    result.cost = encoding.cost.added_to(
        {
            "train_seconds": trained - encoded,
            "eval_seconds": time.perf_counter() - trained,
            "train_flops": (
                choosing + linear_flops(width, train.classes, settings.epochs * len(train))
            ),
            "eval_flops": linear_flops(width, train.classes, 0, len(val)),
        }
    )
    result.head = linear_head(model, 0, settings.encoding(context.device.type), None, context)
    result.notes = [f"learning rate {pair[0]:g}, weight decay {pair[1]:g}: {why}"]
    return result


def near(features: Tensor, device: torch.device) -> Tensor:
    """``features`` on the device, where they take up to a quarter of what is free there."""
    if device.type != "cuda" or features.nbytes > torch.cuda.mem_get_info(device)[0] // 4:
        return features
    return features.to(device)


def targets(context: Context, split: Split) -> Tensor:
    return torch.tensor(
        [sample.target for sample in context.data.samples[split]], dtype=torch.int64
    )


def choose(train: Samples, context: Context) -> tuple[Pair, str, float]:
    """The pair of the grid with the best top-1 on a held-out part of train, why, and the
    floating-point operations of finding it. ``val`` has no say. Logs ``select/top1/lr_…`` after
    each epoch."""
    settings: LinearSettings = context.settings
    grid = grid_of(settings)
    if len(grid) == 1:
        return grid[0], "given", 0.0
    kept, held = (
        replace(train, members=part)
        for part in held_out_split(train.labels, settings, context.seed)
    )
    latest: list[tuple[float, float]] = []

    def look(epoch: int, losses: list[float], model: Linear) -> None:
        latest[:] = held_out_scores(model, held, context.device)
        found = {
            f"select/top1/{name_of(pair)}": top1
            for pair, (top1, _) in zip(grid, latest, strict=True)
        }
        context.log.log_metrics(found, epoch)
        context.progress.advance()

    context.progress.start(f"choosing among {len(grid)} linear classifiers", settings.epochs)
    train_linear(kept, grid, settings, context.seed, context.device, look)
    best = best_of(latest)
    why = (
        f"best of {len(grid)} on {len(held)} held-out training images (top1 {latest[best][0]:.1f})"
    )
    trained, scored = settings.epochs * len(kept), settings.epochs * len(held)
    flops = linear_flops(train.features.shape[1], len(grid) * train.classes, trained, scored)
    return grid[best], why + at_the_edge(grid[best][0], settings.learning_rates), flops


def grid_of(settings: LinearSettings) -> list[Pair]:
    return [(rate, decay) for rate in settings.learning_rates for decay in settings.weight_decays]


def name_of(pair: Pair) -> str:
    """``lr_0.05``, ``lr_0.05_wd_0.001``."""
    return f"lr_{pair[0]:g}" + (f"_wd_{pair[1]:g}" if pair[1] else "")


def held_out_split(
    labels: Tensor, settings: LinearSettings | AttentiveSettings, seed: int
) -> tuple[Tensor, Tensor]:
    """``stratified_split`` of train. Raises ``UserError`` when nothing can be held out."""
    kept, held = stratified_split(labels, settings.holdout, seed)
    if not len(held):
        raise UserError(
            "linear: every class has only one training image, so that no learning rate can be"
            " chosen; give one with --set learning_rates=0.1"
        )
    return kept, held


def held_out_scores(
    model: Linear, held: Samples, device: torch.device
) -> list[tuple[float, float]]:
    """(top-1 in percent, mean cross-entropy, infinite if it is not a number) of each classifier of
    the grid."""
    right, loss = (torch.zeros(len(model.bias), dtype=torch.float64) for _ in range(2))
    rows = max(1, 2**23 // model.bias.numel())  # 64 MiB of logits in float64
    for features, labels in held.batches(rows, device):
        logits = model.logits(features)
        right += (ranks(logits, labels) == 0).sum(dim=1).cpu()
        picked = (
            logits.double().log_softmax(dim=2).gather(2, labels.expand(len(right), -1)[..., None])
        )
        loss -= picked.sum(dim=(1, 2)).cpu()
    loss = torch.where(loss.isfinite(), loss, torch.inf)
    return list(zip((100 * right / len(held)).tolist(), (loss / len(held)).tolist(), strict=True))


def best_of(scores: Sequence[tuple[float, float]]) -> int:
    """The place of the best (top-1, loss): the highest top-1, of equals the lowest loss; one that
    is not finite is last."""
    return max(
        range(len(scores)),
        key=lambda each: (math.isfinite(scores[each][1]), scores[each][0], -scores[each][1]),
    )


def at_the_edge(rate: float, rates: Sequence[float]) -> str:
    """What to say of a chosen rate beyond which a better one may lie."""
    if len(set(rates)) < 2 or rate not in (min(rates), max(rates)):
        return ""
    return (
        f"; the {'lowest' if rate == min(rates) else 'highest'} rate of its grid: a better one may"
        " lie beyond it"
    )


def score(context: Context, logits: Tensor) -> TaskResult:
    """Scores in percent of (N, C) logits of ``val``: ``top1`` and, with more than five classes,
    ``top5``; over the classes that have images the ``mean_per_class_recall`` and the ``f1_macro``;
    ``worst_group_top…`` where images have groups.

    For each image the true class's ``rank`` (0 = right), ``label``, ``prediction`` and ``group``.
    """
    labels, samples = targets(context, "val"), context.data.samples["val"]
    rank, prediction = ranks(logits, labels), logits.argmax(dim=1)
    hit = {f"top{k}": 100 * (rank < k).double() for k in (1, 5) if k == 1 or logits.shape[1] > 5}
    metrics = {name: each.mean().item() for name, each in hit.items()}
    true, predicted, right = (
        torch.bincount(each, minlength=logits.shape[1]).double()
        for each in (labels, prediction, labels[rank == 0])
    )
    there = true > 0
    metrics["mean_per_class_recall"] = 100 * (right / true)[there].mean().item()
    metrics["f1_macro"] = 100 * (2 * right / (true + predicted))[there].mean().item()
    found = {
        "image": np.array([sample.image for sample in samples]),
        "rank": rank.numpy(),
        "label": labels.numpy(),
    }
    found["prediction"] = prediction.numpy()
    if samples and all(sample.group is not None for sample in samples):
        found["group"] = np.array([sample.group for sample in samples])
        groups = torch.from_numpy(np.unique(found["group"], return_inverse=True)[1])
        sizes = torch.bincount(groups).double()
        for name, each in hit.items():
            metrics[f"worst_group_{name}"] = (torch.bincount(groups, each) / sizes).min().item()
    return TaskResult(metrics, found)
