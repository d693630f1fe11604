"""``logreg`` segmentation: multinomial logistic regression on patches by L-BFGS (CAPI, Darcet et
al. 2025).

A patch's label is the class that has most of it; classes that no patch has are not fitted. The
objective is scikit-learn's: C · the sum of the cross-entropies + half the squared weights (not the
biases). Strengths are fitted from the strongest penalty to the weakest, each from where the last
ended unless ``warm_start`` is off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cliptex_common.device import upload
from cliptex_common.errors import NonFiniteLoss
from probes.base import Context, TaskResult
from probes.dense.patches.images import PatchImages, evaluate_patches
from probes.dense.patches.memory import (
    ROWS,
    Memory,
    held_out_images,
    mean_iou,
    remember,
)
from probes.dense.patches.pixels import Patches, label_map, pixel_map
from probes.dense.patches.probe import LogregSettings
from probes.image_level.linear import Standardiser
from probes.select import Candidate, log_scores, select_candidate


@dataclass
class Regression:
    """(D, K) ``weight`` and (K,) ``bias`` of the (K,) ``classes`` that were fitted, in ascending
    order; ``passes`` over the samples of the fit."""

    weight: Tensor
    bias: Tensor
    classes: Tensor
    passes: int = 0

    def logits(self, features: Tensor) -> Tensor:
        """(N, D) → (N, K)."""
        return features @ self.weight + self.bias

    def label_map(
        self, patches: Patches, standardise: Standardiser, settings: LogregSettings
    ) -> Tensor:
        """The (H, W) label map of an image."""
        logits = self.logits(standardise(patches.features))
        if settings.votes == "shares":
            return self.classes[label_map(logits, patches)]
        height, width = patches.size
        pixels = height * width // len(logits)
        predictions = self.classes[logits.argmax(dim=1)]
        return pixel_map(predictions[:, None].expand(-1, pixels), patches)


def fit(
    features: Tensor,
    labels: Tensor,
    c: float,
    settings: LogregSettings,
    start: Regression | None = None,
    prepare: Callable[[Tensor], Tensor] = Tensor.float,
) -> Regression:
    """The regression of (N, D) features on the classes that occur in (N,) labels.

    L-BFGS itself is on the CPU: its line search compares numbers some forty times a pass, and on
    another device each comparison would wait for it. Now a pass waits once, for loss and gradient.

    Args:
        labels: on the device that computes; rows below 0 are left out.
        c: inverse strength of the penalty.
        start: where to begin; zeros otherwise, and for classes that it lacks.
        prepare: what is fitted of some features, float32.
    Raises:
        NonFiniteLoss: the loss is not finite.
    """
    is_fitted = labels >= 0
    classes = labels[is_fitted].unique()
    columns = torch.searchsorted(classes, labels).masked_fill(~is_fitted, -1)
    # the last row is the bias
    parameters = torch.zeros(features.shape[1] + 1, len(classes))
    if start is not None:
        is_started = torch.isin(classes, start.classes).cpu()
        parameters[:, is_started] = torch.cat([start.weight, start.bias[None]]).cpu()
    parameters.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=settings.iterations,
        history_size=5,
        line_search_fn="strong_wolfe",
        tolerance_change=1e-4 * settings.tolerance,
        tolerance_grad=settings.tolerance,
    )
    passes, count, device = 0, int(is_fitted.sum()), labels.device

    def closure() -> Tensor:
        nonlocal passes
        passes += 1
        weights = upload(parameters.detach(), device).requires_grad_()
        # divided by C and the number of samples, so that the tolerance has one meaning
        loss = weights[:-1].square().sum() / (2 * c * count)
        loss.backward()
        total = loss.detach()
        for part, target in zip(features.split(ROWS), columns.split(ROWS), strict=True):
            logits = prepare(upload(part, device)) @ weights[:-1] + weights[-1]
            loss = cross_entropy(logits, target, ignore_index=-1, reduction="sum") / count
            loss.backward()
            total = total + loss.detach()
        assert weights.grad is not None
        results = torch.cat([weights.grad.flatten(), total[None]]).cpu()
        if not results[-1].isfinite():
            raise NonFiniteLoss(f"logreg: the loss is not finite with C = {c:g}")
        parameters.grad = results[:-1].view_as(parameters)
        return results[-1]

    optimizer.step(closure)
    weights = parameters.detach().to(device)
    return Regression(weights[:-1], weights[-1], classes, passes)


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    settings: LogregSettings = context.settings
    grid = sorted(settings.c)
    with context.cost.phase("train"):
        memory = remember(context)
        standardise = Standardiser.fit(memory.features).to(context.device)
        c, reason, start = grid[0], "fixed", None
        if len(grid) > 1:
            c, reason, start = choose(memory, standardise, context)
        context.progress.start("fitting the logistic regression", 1)
        model = fit(
            memory.features,
            targets(memory, context),
            c,
            settings,
            start if settings.warm_start else None,
            standardise,
        )
        context.progress.advance()
    return evaluate_patches(
        context,
        PatchImages(context, "val"),
        lambda images: (model.label_map(patches, standardise, settings) for patches in images),
        [f"C = {c:.3g}: {reason}", f"{len(memory)} patches, {model.passes} passes"],
    )


def targets(memory: Memory, context: Context, held_out: Sequence[int] = ()) -> Tensor:
    """(M,) the class that has most of each patch, -1 where it is not fitted; on the device."""
    labels = memory.labels.argmax(dim=1).to(context.device)
    return labels.masked_fill(memory.unused(held_out).to(context.device), -1)


def choose(
    memory: Memory, standardise: Standardiser, context: Context
) -> tuple[float, str, Regression]:
    """The inverse strength with the best mIoU on held-out images, why, and its regression.

    Of equals the strongest penalty wins.
    """
    settings: LogregSettings = context.settings
    grid, held_out = sorted(settings.c), held_out_images(context)
    labels = targets(memory, context, held_out)
    context.progress.start("choosing the penalty", len(grid) + len(held_out))
    models: list[Regression] = []
    for c in grid:
        start = models[-1] if models and settings.warm_start else None
        models.append(fit(memory.features, labels, c, settings, start, standardise))
        context.progress.advance()
    scores = mean_iou(
        PatchImages(context, "train"),
        held_out,
        lambda images: (
            [model.label_map(patches, standardise, settings) for model in models]
            for patches in images
        ),
    )
    candidates = [
        Candidate(model, f"C_{c:.3g}", score, coordinate=c)
        for model, c, score in zip(models, grid, scores, strict=True)
    ]
    log_scores(context.log, "mIoU", candidates, 1)
    best, reason = select_candidate(candidates, "mIoU", len(held_out))
    return grid[candidates.index(best)], reason, best.value
