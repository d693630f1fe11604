"""``logreg`` segmentation: multinomial logistic regression on patches by L-BFGS (CAPI, Darcet et
al. 2025).

A patch's label is the class that has most of it. The objective is scikit-learn's: C · the sum of
the cross-entropies + half the squared weights (not the biases). Strengths are fitted from the
strongest penalty to the weakest, each from where the last ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from common.errors import NonFiniteLoss
from probes.base import Context, TaskResult
from probes.dense.patches.images import PatchImages, evaluate
from probes.dense.patches.memory import HeldOutImage, Memory, mean_iou, remember, standardiser
from probes.dense.patches.settings import LogregSettings
from probes.image_level.linear import Standardiser
from probes.selection import Candidate, log_scores, select

ROWS = 2**16  # patches at once


@dataclass
class Regression:
    """(D, classes) ``weight`` and (classes,) ``bias``; ``passes`` over the samples of the fit."""

    weight: Tensor
    bias: Tensor
    passes: int = 0

    def logits(self, features: Tensor) -> Tensor:
        """(N, D) → (N, classes)."""
        return features @ self.weight + self.bias


def fit(
    features: Tensor,
    labels: Tensor,
    classes: int,
    c: float,
    settings: LogregSettings,
    start: Regression | None = None,
) -> Regression:
    """The regression of (N, D) features on (N,) labels.

    Args:
        c: inverse strength of the penalty.
        start: where to begin; zeros otherwise.
    Raises:
        NonFiniteLoss: the loss is not finite.
    """
    # the last row is the bias
    parameters = torch.zeros(features.shape[1] + 1, classes, device=labels.device)
    if start is not None:
        parameters = torch.cat([start.weight, start.bias[None]])
    parameters.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=settings.iterations,
        history_size=5,
        line_search_fn="strong_wolfe",
        tolerance_change=1e-9,
        tolerance_grad=settings.tolerance,
    )
    passes = 0

    def closure() -> Tensor:
        nonlocal passes
        passes += 1
        optimizer.zero_grad()
        # divided by C and the number of samples, so that the tolerance has one meaning
        loss = parameters[:-1].square().sum() / (2 * c * len(labels))
        loss.backward()
        total = loss.detach()
        for part, target in zip(features.split(ROWS), labels.split(ROWS), strict=True):
            logits = part.to(parameters.device) @ parameters[:-1] + parameters[-1]
            loss = cross_entropy(logits, target, reduction="sum") / len(labels)
            loss.backward()
            total = total + loss.detach()
        if not bool(total.isfinite()):
            raise NonFiniteLoss(f"logreg: the loss is not finite with C = {c:g}")
        return total

    optimizer.step(closure)
    weights = parameters.detach()
    return Regression(weights[:-1], weights[-1], passes)


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    settings: LogregSettings = context.settings
    grid = sorted(settings.c)
    with context.cost.phase("train"):
        memory, held_out = remember(context, choosing=len(grid) > 1)
        standardise = standardiser(memory.features)
        c, reason, start = grid[0], "fixed", None
        if len(grid) > 1:
            c, reason, start = choose(memory, standardise, held_out, context)
        context.progress.start("fitting the logistic regression", 1)
        labels = labels_of(memory, context)
        features = standardise(memory.features)
        model = fit(features, labels, len(context.data.classes), c, settings, start)
        context.progress.advance()
    images = PatchImages(context, "val")
    result = evaluate(context, images, lambda patches: model.logits(standardise(patches.features)))
    result.notes = [
        f"C = {c:.3g}: {reason}",
        f"{len(memory)} patches, {model.passes} passes",
        *result.notes,
    ]
    return result


def labels_of(memory: Memory, context: Context) -> Tensor:
    """(M,) the class that has most of each patch, on the device."""
    return memory.shares.argmax(dim=1).to(context.device)


def choose(
    memory: Memory,
    standardise: Standardiser,
    held_out: Sequence[HeldOutImage],
    context: Context,
) -> tuple[float, str, Regression]:
    """The inverse strength with the best mIoU on held-out images, why, and its regression.

    Of equals the strongest penalty wins.
    """
    settings: LogregSettings = context.settings
    grid = sorted(settings.c)
    rest = memory.without(held_out)
    features, labels = standardise(rest.features), labels_of(rest, context)
    context.progress.start("choosing the penalty", len(grid))
    candidates: list[Candidate[Regression]] = []
    model = None
    for c in grid:
        model = fit(features, labels, len(context.data.classes), c, settings, model)
        scores = [model.logits(standardise(image.patches.features)) for image in held_out]
        score = mean_iou(held_out, scores, context)
        candidates.append(Candidate(model, f"C_{c:.3g}", score, coordinate=c))
        context.progress.advance()
    log_scores(context.log, "mIoU", candidates, 1)
    best, reason = select(candidates, "mIoU", len(held_out))
    return grid[candidates.index(best)], reason, best.value
