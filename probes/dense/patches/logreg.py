"""``logreg`` segmentation: multinomial logistic regression on patches by L-BFGS (CAPI, Darcet et
al. 2025).

A patch's label is the class that has most of it. The objective is scikit-learn's: C · the sum of
the cross-entropies + half the squared weights (not the biases); strengths are fitted from the
strongest penalty to the weakest, each from where the last ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from common.errors import NonFiniteLoss
from probes.base import Context, Probe, TaskResult
from probes.dense.patches.images import Patches, PatchImages, evaluate
from probes.dense.patches.memory import Standard, mean_iou, remember
from probes.dense.patches.settings import LogregSettings
from probes.features.cost import EncodeRun
from probes.image_level.linear import linear_flops

ROWS = 2**16  # patches that are looked at at once


@dataclass
class Regression:
    """(D, classes) ``weight`` and (classes,) ``bias``; ``passes``: over its samples that finding
    them took."""

    weight: Tensor
    bias: Tensor
    passes: int = 0

    def logits(self, features: Tensor) -> Tensor:
        return features @ self.weight + self.bias


def fit(
    features: Tensor,
    labels: Tensor,
    classes: int,
    c: float,
    settings: LogregSettings,
    start: Regression | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Regression:
    """The regression of (N, D) features on (N,) labels.

    Args:
        c: inverse strength of the penalty.
        start: where to begin; zeros otherwise.
    Raises:
        NonFiniteLoss: the loss is no number.
    """
    width = features.shape[1]
    both = torch.zeros(width + 1, classes, device=labels.device)
    if start is not None:
        both = torch.cat([start.weight, start.bias[None]])
    both.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [both],
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
        loss = both[:-1].square().sum() / (2 * c * len(labels))
        loss.backward()
        total = loss.detach()
        for part, target in zip(features.split(ROWS), labels.split(ROWS), strict=True):
            one = cross_entropy(
                part.to(both.device) @ both[:-1] + both[-1], target, reduction="sum"
            ) / len(labels)
            one.backward()
            total = total + one.detach()
        if not bool(total.isfinite()):
            raise NonFiniteLoss(f"logreg: the loss is not finite with C = {c:g}")
        return total

    optimizer.step(closure)
    progress()
    found = both.detach()
    return Regression(found[:-1], found[-1], passes)


def run(probe: Probe, context: Context) -> TaskResult:
    """See ``probes.dense.patches.probe``."""
    settings: LogregSettings = context.settings
    started, encoding, classes = (
        time.perf_counter(),
        EncodeRun.of(context),
        len(context.data.classes),
    )
    memory, held = remember(context, encoding, choosing=len(settings.c) > 1)
    standard = Standard.of(memory.features, settings.standardise)
    grid, flops = sorted(settings.c), 0.0
    labels = memory.shares.argmax(dim=1).to(context.device)
    best, note, start = grid[0], "given", None
    context.progress.start("fitting logistic regressions", len(grid) + 1 if len(grid) > 1 else 1)
    if len(grid) > 1:
        kept = ~torch.isin(memory.owner, torch.tensor(held.places()))
        part, target = (
            standard(memory.features[kept.to(memory.features.device)]),
            labels[kept.to(labels.device)],
        )
        scores: dict[float, float] = {}
        starts: dict[float, Regression] = {}
        for c in grid:
            start = starts[c] = fit(
                part, target, classes, c, settings, start, context.progress.advance
            )
            said = [start.logits(standard(patches.features)) for patches in held.patches]
            scores[c] = mean_iou(held, said, classes, context.data.spec.ignore_index)
            flops += linear_flops(part.shape[1], classes, start.passes * len(part))
        best = max(grid, key=lambda c: (scores[c], -c))
        start = starts[best]
        context.log.log_metrics({f"select/mIoU/C_{c:.3g}": value for c, value in scores.items()}, 1)
        note = (
            f"best of {len(grid)} on {len(held.patches)} held-out training images (mIoU"
            f" {scores[best]:.1f})"
        )
        if best in (grid[0], grid[-1]):
            note += (
                f"; the {'lowest' if best == grid[0] else 'highest'} of its grid: a better one may"
                " lie beyond it"
            )
    features = standard(memory.features)
    model = fit(features, labels, classes, best, settings, start, context.progress.advance)
    fitted, patched = time.perf_counter(), 0

    def predict(patches: Patches) -> Tensor:
        nonlocal patched
        patched += len(patches.features)
        return model.logits(standard(patches.features))

    result = evaluate(probe, context, PatchImages(context, "val"), encoding, predict)
    result.notes = [
        f"C = {best:.3g}: {note}",
        f"{len(memory)} patches, {model.passes} passes",
        *result.notes,
    ]
    result.cost = encoding.cost.added_to(
        {
            "train_seconds": fitted - started,
            "eval_seconds": time.perf_counter() - fitted,
            "train_flops": (
                flops + linear_flops(features.shape[1], classes, model.passes * len(memory))
            ),
            "eval_flops": linear_flops(features.shape[1], classes, 0, patched),
        }
    )
    return result
