"""``linear`` classification: features once, then linear classifiers over a grid.

The pair of learning rate and weight decay is chosen on a held-out part of train. The labels of
``val`` are used once, to score the classifier that was chosen without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from probes.base import Context, TaskResult
from probes.datasets.base import Split
from probes.image_level import random_crops
from probes.image_level.classification import on_device_if_small, score, targets
from probes.image_level.embeddings import encode_split
from probes.image_level.linear import LinearHeads, Pair, Samples, evaluate_grid, train_linear
from probes.image_level.settings import LinearSettings
from probes.predictor import linear_head
from probes.selection import Candidate, log_scores, select, stratified_split


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    settings: LinearSettings = context.settings
    if settings.random_crops:
        return random_crops.run(context)
    train, val = load_samples(context, "train"), load_samples(context, "val")
    with context.cost.phase("train"):
        pair, reason = choose(train, context)
        context.progress.start("training the linear classifier", settings.epochs)

        def log(epoch: int, losses: list[float], heads: LinearHeads) -> None:
            context.log.log_metrics({"train/loss": losses[0]}, epoch)
            context.progress.advance()

        heads = train_linear(train, [pair], settings, context.seed, context.device, log)
    with torch.no_grad():
        logits = [heads(features)[0].cpu() for features, _ in val.batches(4096, context.device)]
    result = score(context, torch.cat(logits))
    result.head = linear_head(heads, 0, context)
    result.notes = [f"learning rate {pair[0]:g}, weight decay {pair[1]:g}: {reason}"]
    return result


def load_samples(context: Context, split: Split) -> Samples:
    """Features and classes of a split."""
    features = on_device_if_small(encode_split(context, split), context.device)
    return Samples(features, targets(context, split), len(context.data.classes))


def choose(train: Samples, context: Context) -> tuple[Pair, str]:
    """The pair with the best top-1 on a held-out part of train, and why.

    Logs ``select/top1/lr_…`` after each epoch.
    """
    settings: LinearSettings = context.settings
    grid = settings.grid
    if len(grid) == 1:
        return grid[0], "fixed"
    split = stratified_split(
        train.labels.cpu(), settings.holdout, context.seed, "learning_rates=0.1"
    )
    training, held_out = (replace(train, members=part) for part in split)
    candidates: Sequence[Candidate[Pair]] = []

    def evaluate(epoch: int, losses: list[float], heads: LinearHeads) -> None:
        nonlocal candidates
        candidates = evaluate_grid(heads, grid, held_out, context.device)
        log_scores(context.log, "top1", candidates, epoch)
        context.progress.advance()

    context.progress.start(f"choosing among {len(grid)} linear classifiers", settings.epochs)
    train_linear(training, grid, settings, context.seed, context.device, evaluate)
    best, reason = select(candidates, "top1", len(held_out))
    return best.value, reason
