"""``linear`` classification: features once, then linear classifiers over a grid, chosen on a split of train.

The labels of ``val`` are looked at once, at the end, by the classifier that was chosen without them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from backbones.errors import UserError
from probes.base import Context, TaskResult
from probes.datasets.base import Split
from probes.features.cost import EncodeCost
from probes.image_level.embeddings import kept_embeddings
from probes.image_level.flops import linear_flops
from probes.image_level.linear import Linear, Samples, Schedule, ranks, stratified_split, train_linear
from probes.image_level.settings import LinearSettings

SPLITS: tuple[Split, ...] = ("train", "val")


def run(context: Context) -> TaskResult:
    """See ``probes.image_level.probe``."""
    cost = EncodeCost()
    features: dict[str, Tensor] = {split: encode_split(context, split, cost) for split in SPLITS}
    encoded = time.perf_counter()
    train, val = (
        Samples(near(features[split], context.device), targets(context, split), len(context.data.classes))
        for split in SPLITS
    )
    pair, why = choose(train, context)
    model = refit(train, pair, context)
    trained = time.perf_counter()
    logits = [model.logits(part)[0].cpu() for part, _ in val.batches(4096, context.device)]
    result = score(torch.cat(logits), val.labels, [sample.image for sample in context.data.samples["val"]])
    result.cost = cost.added_to({
        "train_seconds": trained - encoded,
        "eval_seconds": time.perf_counter() - trained,
        **probing_flops(train, len(val), context),
    })  # fmt: skip
    result.notes = [f"learning rate {pair[0]:g}, weight decay {pair[1]:g}: {why}"]
    return result


def probing_flops(train: Samples, scored: int, context: Context) -> dict[str, float]:
    """``train_flops`` (choosing the classifier and training it) and ``eval_flops``."""
    settings: LinearSettings = context.settings
    grid, width = len(settings.learning_rates) * len(settings.weight_decays), train.features.shape[1]
    choosing = 0.0
    if grid > 1:
        kept, held = stratified_split(train.labels, settings.holdout, context.seed)
        choosing = linear_flops(width, grid * train.classes, settings.epochs * len(kept), settings.epochs * len(held))
    return {
        "train_flops": choosing + linear_flops(width, train.classes, settings.epochs * len(train)),
        "eval_flops": linear_flops(width, train.classes, 0, scored),
    }


def encode_split(context: Context, split: Split, cost: EncodeCost) -> Tensor:
    """Features of the images of one split, in the order of its samples; encoded once for all that ask for them. What had
    to be encoded is added to ``cost``."""
    paths = [context.data.root / sample.image for sample in context.data.samples[split]]
    about = f"{context.data.spec.name} ({split})"
    return kept_embeddings(context, paths, context.settings.encoding(context.device.type), about=about, cost=cost)


def near(features: Tensor, device: torch.device) -> Tensor:
    """``features`` on the device, where they take up to a quarter of what is free there."""
    if device.type != "cuda" or features.nbytes > torch.cuda.mem_get_info(device)[0] // 4:
        return features
    return features.to(device)


def targets(context: Context, split: Split) -> Tensor:
    return torch.tensor([sample.target for sample in context.data.samples[split]], dtype=torch.int64)


def choose(train: Samples, context: Context) -> tuple[tuple[float, float], str]:
    """The (learning rate, weight decay) with the best top-1 on a held-out part of train, and why. ``val`` has no say.

    Of equals the one with the lower held-out loss wins. Logs ``select/top1/lr_…`` after each epoch.
    """
    settings: LinearSettings = context.settings
    grid = [(rate, decay) for rate in settings.learning_rates for decay in settings.weight_decays]
    if len(grid) == 1:
        return grid[0], "given"
    kept, held = (replace(train, members=part) for part in held_out_split(train.labels, settings, context.seed))
    latest: list[tuple[float, float]] = []

    def look(epoch: int, losses: list[float], model: Linear) -> None:
        latest[:] = held_out_scores(model, held, context.device)
        names = [f"lr_{rate:g}" + (f"_wd_{decay:g}" if decay else "") for rate, decay in grid]
        context.log.log_metrics({f"select/top1/{n}": top1 for n, (top1, _) in zip(names, latest, strict=True)}, epoch)
        context.progress.advance()

    context.progress.start(f"choosing among {len(grid)} linear classifiers", settings.epochs)
    train_linear(kept, grid, schedule(context), context.device, look)
    best = best_of(latest)
    why = f"best of {len(grid)} on {len(held)} held-out training images (top1 {latest[best][0]:.1f})"
    return grid[best], why + at_the_edge(grid[best][0], settings.learning_rates)


def held_out_split(labels: Tensor, settings: LinearSettings, seed: int) -> tuple[Tensor, Tensor]:
    """``stratified_split`` of train. Raises ``UserError`` when nothing can be held out."""
    kept, held = stratified_split(labels, settings.holdout, seed)
    if not len(held):
        raise UserError("linear: every class has only one training image, so that no learning rate can be chosen; "
                        "give one with --set learning_rates=0.1")  # fmt: skip
    return kept, held


def best_of(scores: Sequence[tuple[float, float]]) -> int:
    """The place of the best (top-1, loss): the highest top-1, of equals the lowest loss; one that is not finite is last."""
    return max(range(len(scores)), key=lambda each: (math.isfinite(scores[each][1]), scores[each][0], -scores[each][1]))


def at_the_edge(rate: float, rates: Sequence[float]) -> str:
    """What to say of a chosen rate beyond which a better one may lie."""
    if len(set(rates)) < 2 or rate not in (min(rates), max(rates)):
        return ""
    return f"; the {'lowest' if rate == min(rates) else 'highest'} rate of its grid: a better one may lie beyond it"


def schedule(context: Context) -> Schedule:
    settings: LinearSettings = context.settings
    return Schedule(settings.epochs, settings.batch_size, settings.momentum, context.seed, settings.standardise)


def held_out_scores(model: Linear, held: Samples, device: torch.device) -> list[tuple[float, float]]:
    """(top-1 in percent, mean cross-entropy, infinite if it is not a number) of each classifier of the grid."""
    right, loss = (torch.zeros(len(model.bias), dtype=torch.float64) for _ in range(2))
    rows = max(1, 2**23 // model.bias.numel())  # 64 MiB of logits in float64
    for features, labels in held.batches(rows, device):
        logits = model.logits(features)
        right += (ranks(logits, labels) == 0).sum(dim=1).cpu()
        picked = logits.double().log_softmax(dim=2).gather(2, labels.expand(len(right), -1)[..., None])
        loss -= picked.sum(dim=(1, 2)).cpu()
    loss = torch.where(loss.isfinite(), loss, torch.inf)
    return list(zip((100 * right / len(held)).tolist(), (loss / len(held)).tolist(), strict=True))


def refit(train: Samples, pair: tuple[float, float], context: Context) -> Linear:
    """One classifier on all of train. Logs ``train/loss`` after each epoch."""

    def log(epoch: int, losses: list[float], model: Linear) -> None:
        context.log.log_metrics({"train/loss": losses[0]}, epoch)
        context.progress.advance()

    context.progress.start("training the linear classifier", context.settings.epochs)
    return train_linear(train, [pair], schedule(context), context.device, log)


def score(logits: Tensor, labels: Tensor, images: list[str]) -> TaskResult:
    """``top1`` and, with more than five classes, ``top5`` in percent; the true class's rank (0 = right) for each image.

    (N, C), (N,), N names.
    """
    rank = ranks(logits, labels)
    metrics = {"top1": 100 * (rank < 1).double().mean().item()}
    if logits.shape[-1] > 5:
        metrics["top5"] = 100 * (rank < 5).double().mean().item()
    return TaskResult(metrics, {"image": np.array(images), "rank": rank.numpy(), "label": labels.numpy()})
