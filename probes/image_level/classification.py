"""``linear`` classification: features once, then linear classifiers over a grid, chosen on a split of train.

The labels of ``val`` are looked at once, at the end, by the classifier that was chosen without them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backbones.errors import UserError
from probes.base import Context, TaskResult
from probes.datasets.base import Split
from probes.features.cost import EncodeCost
from probes.image_level.embeddings import kept_embeddings
from probes.image_level.encode import square
from probes.image_level.flops import linear_flops
from probes.image_level.linear import Linear, Schedule, ranks, stratified_split, train_linear
from probes.image_level.settings import LinearSettings

SPLITS: tuple[Split, ...] = ("train", "val")


def run(context: Context) -> TaskResult:
    """See ``probes.image_level.probe``."""
    settings: LinearSettings = context.settings
    cost = EncodeCost()
    features: dict[str, Tensor] = {split: encode_split(context, split, settings, cost) for split in SPLITS}
    encoded = time.perf_counter()
    labels = {split: targets(context, split) for split in SPLITS}
    classes = len(context.data.classes)
    rate, decay, why = choose(features["train"], labels["train"], classes, context)
    model = refit(features["train"], labels["train"], classes, rate, decay, context)
    trained = time.perf_counter()
    logits = [model.logits(part.to(context.device))[0].cpu() for part in features["val"].split(4096)]
    result = score(torch.cat(logits), labels["val"], [sample.image for sample in context.data.samples["val"]])
    result.cost = cost.added_to({
        "train_seconds": trained - encoded,
        "eval_seconds": time.perf_counter() - trained,
        **probing_flops(features, classes, context),
    })  # fmt: skip
    result.notes = [f"learning rate {rate:g}, weight decay {decay:g}: {why}"]
    return result


def probing_flops(features: Mapping[str, Tensor], classes: int, context: Context) -> dict[str, float]:
    """``train_flops`` (choosing the classifier and training it) and ``eval_flops``."""
    settings: LinearSettings = context.settings
    grid = len(settings.learning_rates) * len(settings.weight_decays)
    train, val, width = len(features["train"]), len(features["val"]), features["train"].shape[1]
    choosing = 0.0
    if grid > 1:
        kept, held = stratified_split(targets(context, "train"), settings.holdout, context.seed)
        choosing = linear_flops(width, grid * classes, settings.epochs * len(kept), settings.epochs * len(held))
    return {
        "train_flops": choosing + linear_flops(width, classes, settings.epochs * train),
        "eval_flops": linear_flops(width, classes, 0, val),
    }


def encode_split(context: Context, split: Split, settings: Any, cost: EncodeCost) -> Tensor:
    """Features of the images of one split, in the order of its samples; encoded once for all that ask for them. What had
    to be encoded is added to ``cost``."""
    return kept_embeddings(
        context.backbone,
        [context.data.root / sample.image for sample in context.data.samples[split]],
        context.device,
        about=f"{context.data.spec.name} ({split})",
        size=square(settings.size),
        batch_size=settings.encode_batch_size,
        workers=context.num_workers,
        precision=settings.precision,
        progress=context.progress,
        cost=cost,
    )


def targets(context: Context, split: Split) -> Tensor:
    return torch.tensor([sample.target for sample in context.data.samples[split]], dtype=torch.int64)


def choose(features: Tensor, labels: Tensor, classes: int, context: Context) -> tuple[float, float, str]:
    """The (learning rate, weight decay) with the best top-1 on a held-out part of train, and why. ``val`` has no say.

    Of equals the one with the lower held-out loss wins. Logs ``select/top1/lr_…`` after each epoch.
    """
    settings: LinearSettings = context.settings
    grid = [(rate, decay) for rate in settings.learning_rates for decay in settings.weight_decays]
    if len(grid) == 1:
        return *grid[0], "given"
    kept, held = stratified_split(labels, settings.holdout, context.seed)
    if not len(held):
        raise UserError("linear: every class has only one training image, so that no learning rate can be chosen; "
                        "give one with --set learning_rates=0.1")  # fmt: skip
    latest: list[tuple[float, float]] = []

    def look(epoch: int, losses: list[float], model: Linear) -> None:
        latest[:] = zip(*held_out_scores(model, features[held], labels[held], context.device), strict=True)
        names = [f"lr_{rate:g}" + (f"_wd_{decay:g}" if decay else "") for rate, decay in grid]
        context.log.log_metrics({f"select/top1/{n}": top1 for n, (top1, _) in zip(names, latest, strict=True)}, epoch)
        context.progress.advance()

    context.progress.start(f"choosing among {len(grid)} linear classifiers", settings.epochs)
    train_linear(
        features[kept],
        labels[kept],
        classes,
        [rate for rate, _ in grid],
        [decay for _, decay in grid],
        Schedule(settings.epochs, settings.batch_size, settings.momentum),
        seed=context.seed,
        device=context.device,
        standardise=settings.standardise,
        on_epoch=look,
    )
    best = max(range(len(grid)), key=lambda each: (math.isfinite(latest[each][1]), latest[each][0], -latest[each][1]))
    return *grid[best], f"best of {len(grid)} on {len(held)} held-out training images (top1 {latest[best][0]:.1f})"


def held_out_scores(
    model: Linear, features: Tensor, labels: Tensor, device: torch.device
) -> tuple[list[float], list[float]]:
    """Top-1 in percent and mean cross-entropy (infinite if it is not a number) of each classifier of the grid."""
    right = torch.zeros(len(model.bias), dtype=torch.int64)
    loss = torch.zeros(len(model.bias), dtype=torch.float64)
    for part, truth in zip(features.split(1024), labels.split(1024), strict=True):
        logits = model.logits(part.to(device)).cpu()
        right += (ranks(logits, truth) == 0).sum(dim=1)
        loss -= logits.double().log_softmax(dim=2).gather(2, truth.expand(len(right), -1)[..., None]).sum(dim=(1, 2))
    loss = torch.where(loss.isfinite(), loss, torch.inf)
    return (100 * right / len(labels)).tolist(), (loss / len(labels)).tolist()


def refit(features: Tensor, labels: Tensor, classes: int, rate: float, decay: float, context: Context) -> Linear:
    """One classifier on all of train. Logs ``train/loss`` after each epoch."""
    settings: LinearSettings = context.settings

    def log(epoch: int, losses: list[float], model: Linear) -> None:
        context.log.log_metrics({"train/loss": losses[0]}, epoch)
        context.progress.advance()

    context.progress.start("training the linear classifier", settings.epochs)
    return train_linear(
        features,
        labels,
        classes,
        [rate],
        [decay],
        Schedule(settings.epochs, settings.batch_size, settings.momentum),
        seed=context.seed,
        device=context.device,
        standardise=settings.standardise,
        on_epoch=log,
    )


def score(logits: Tensor, labels: Tensor, images: list[str]) -> TaskResult:
    """``top1`` and, with more than five classes, ``top5`` in percent; the true class's rank (0 = right) for each image.

    (N, C), (N,), N names.
    """
    rank = ranks(logits, labels)
    metrics = {"top1": 100 * (rank < 1).double().mean().item()}
    if logits.shape[-1] > 5:
        metrics["top5"] = 100 * (rank < 5).double().mean().item()
    return TaskResult(metrics, {"image": np.array(images), "rank": rank.numpy(), "label": labels.numpy()})
