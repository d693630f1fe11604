"""Linear classifiers on features: a grid of learning rates and weight decays trained at once.

All classifiers of a grid see the same batches in the same order, and one matrix product gives the
scores of all. Each comes out as if it had been trained alone (tested).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.device import float64_device, upload
from common.errors import NonFiniteLoss
from probes.image_level.classification import ranks
from probes.image_level.settings import LinearSettings
from probes.selection import Candidate

ROWS = 8192  # samples at once when the statistics of all features are measured
Pair = tuple[float, float]  # learning rate for a batch of 256, weight decay


@dataclass
class Samples:
    """Features with their classes, or some of them; the others are not copied.

    Attributes:
        features: (N, D) float32, on the CPU or, where it has room, on a GPU; there, too, are
        labels: (N,) int64.
        classes: number of classes.
        members: (M,) indices of the samples that count; None for all.
    """

    features: Tensor
    labels: Tensor
    classes: int
    members: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels if self.members is None else self.members)

    def __post_init__(self) -> None:
        device = self.features.device
        self.labels = self.labels.to(device)
        if self.members is not None:
            self.members = self.members.to(device)

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """(features, labels) of members, on ``device``. ``indices`` are where the features are."""
        rows = indices if self.members is None else self.members[indices]
        return upload(self.features[rows], device), upload(self.labels[rows], device)

    def batches(self, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """All members in order, ``size`` at once."""
        for indices in torch.arange(len(self), device=self.features.device).split(size):
            yield self.batch(indices, device)


class Standardiser(nn.Module):
    """Shift and scale each feature to mean 0 and variance 1 over the training features.

    It is a BatchNorm without affine part whose statistics are exact. Features that do not vary
    become 0.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    @classmethod
    def fit(cls, samples: Samples) -> Standardiser:
        """Measure in float64, ``ROWS`` rows at once."""
        device = float64_device(samples.features.device)
        mean = variance = torch.zeros((), dtype=torch.float64, device=device)
        for part, _ in samples.batches(ROWS, device):
            mean = mean + part.double().sum(dim=0) / len(samples)
        for part, _ in samples.batches(ROWS, device):
            variance = variance + (part.double() - mean).square().sum(dim=0) / len(samples)
        return cls.from_moments(mean, variance)

    @classmethod
    def from_moments(cls, mean: Tensor, variance: Tensor) -> Standardiser:
        """From (D,) float64 mean and variance."""
        constant = variance <= 1e-12 * (mean**2 + 1e-12)
        scale = torch.where(constant, 0.0, variance.clamp_min(1e-24).rsqrt())
        return cls(mean.float(), scale.float())

    @classmethod
    def identity(cls, width: int) -> Standardiser:
        """Change nothing."""
        return cls(torch.zeros(width), torch.ones(width))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) * self.scale


class LinearHeads(nn.Module):
    """G linear classifiers on the same standardised features.

    Args:
        weights: G initial weights (D, C); the biases start at zero.
        columns: the D features that the classifiers read; all by default.
        name: prefix of the names of the classifiers.
    """

    def __init__(
        self,
        standardise: Standardiser,
        weights: Sequence[Tensor],
        columns: slice = slice(None),
        name: str = "",
    ) -> None:
        super().__init__()
        self.standardise, self.columns, self.name = standardise, columns, name
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(torch.zeros_like(weight[0]) for weight in weights)

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) → (G, N, C): one matrix product for all."""
        biases = torch.stack(list(self.biases))
        inputs = self.standardise(features[:, self.columns])
        product = inputs @ torch.cat(list(self.weights), dim=1)
        return (product.unflatten(1, biases.shape) + biases).transpose(0, 1)


def sgd(
    grids: Iterable[Any], settings: LinearSettings, pairs: Sequence[Pair], batch_size: int
) -> torch.optim.SGD:
    """An optimizer in which each head of a grid has the learning rate and weight decay of its pair.

    Rates are scaled with the batch (Goyal et al. 2017); biases do not decay.

    Args:
        grids: ``LinearHeads``, each with a head for each pair.
    """
    groups: list[dict] = []
    for heads in grids:
        for weight, bias, (rate, decay) in zip(heads.weights, heads.biases, pairs, strict=True):
            rates = dict.fromkeys(("lr", "initial_lr"), rate * batch_size / 256)
            groups.append({"params": [weight], "weight_decay": decay, **rates})
            groups.append({"params": [bias], **rates})
    return torch.optim.SGD(groups, momentum=settings.momentum)


def cosine(step: int, steps: int, warmup: int = 0) -> float:
    """The share of the highest rate: a cosine to zero, after ``warmup`` steps from zero to one.

    With a warm-up the first and the last step of both parts are at their ends, as in CAPI.
    """
    if not warmup:
        return 0.5 * (1 + math.cos(math.pi * (step / steps)))
    if step < warmup:
        return step / max(warmup - 1, 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup - 1, 1)))


def train_step(
    heads: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    share: float,
) -> Tensor:
    """One step of all heads, whose gradients are each head's own.

    Args:
        heads: inputs → the logits (N, C) of each head.
        share: of the highest rates, as of ``cosine``.
    Returns:
        (heads,) mean cross-entropies before the step.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * share
    optimizer.zero_grad()
    losses = torch.stack([F.cross_entropy(logits, targets) for logits in heads(inputs)])
    losses.sum().backward()
    optimizer.step()
    return losses.detach()


def train_linear(
    samples: Samples,
    grid: Sequence[Pair],
    settings: LinearSettings,
    seed: int,
    device: torch.device,
    on_epoch: Callable[[int, list[float], LinearHeads], None] | None = None,
) -> LinearHeads:
    """Train one classifier for each pair of a grid, from zero weights.

    Args:
        settings: epochs, batch_size, momentum and standardise are used.
        seed: of the order of samples, which is the same for every classifier.
        on_epoch: called after each epoch with its number from 1, the mean loss of each classifier,
            and the classifiers.
    Raises:
        NonFiniteLoss: every classifier diverged. A single one that diverges is not chosen.
    """
    batch_size, width = min(settings.batch_size, len(samples)), samples.features.shape[1]
    standardise = Standardiser.identity(width)
    if settings.standardise:
        standardise = Standardiser.fit(samples)
    zeros = [torch.zeros(width, samples.classes, device=device) for _ in grid]
    heads = LinearHeads(standardise, zeros).to(device)
    optimizer = sgd([heads], settings, grid, batch_size)
    order = torch.Generator().manual_seed(seed)
    steps = math.ceil(len(samples) / batch_size)
    for epoch in range(settings.epochs):
        losses = torch.zeros(len(grid), device=device)
        indices_of_epoch = torch.randperm(len(samples), generator=order)
        batches = upload(indices_of_epoch, samples.features.device).split(batch_size)
        for step, indices in enumerate(batches):
            inputs, targets = samples.batch(indices, device)
            share = cosine(epoch * steps + step, settings.epochs * steps)
            losses += len(indices) * train_step(heads, optimizer, inputs, targets, share)
        mean = (losses / len(samples)).tolist()
        if not any(map(math.isfinite, mean)):
            raise NonFiniteLoss(
                f"linear: every loss of the grid is not finite in epoch {epoch + 1} of"
                f" {settings.epochs}"
            )
        if on_epoch:
            on_epoch(epoch + 1, mean, heads)
    return heads


@torch.no_grad()
def evaluate_grid(
    heads: LinearHeads, grid: Sequence[Pair], samples: Samples, device: torch.device
) -> list[Candidate[Pair]]:
    """Top-1 and mean cross-entropy of each head on held-out samples."""
    count, exact = len(grid), float64_device(device)
    hits, total = (torch.zeros(count, dtype=torch.float64, device=exact) for _ in range(2))
    rows = max(1, 2**23 // (count * samples.classes))  # 64 MiB of logits in float64
    for features, labels in samples.batches(rows, device):
        logits = heads(features).to(exact)
        labels = labels.to(exact)
        hits += (ranks(logits, labels) == 0).sum(dim=1)
        index = labels.expand(count, -1)[..., None]
        total -= logits.double().log_softmax(dim=2).gather(2, index).sum(dim=(1, 2))
    names = [heads.name + pair_name(pair) for pair in grid]
    top1, losses = (100 * hits / len(samples)).tolist(), (total / len(samples)).tolist()
    return [
        Candidate(pair, name, accuracy, loss, pair[0])
        for pair, name, accuracy, loss in zip(grid, names, top1, losses, strict=True)
    ]


def pair_name(pair: Pair) -> str:
    """``lr_0.05``, ``lr_0.05_wd_0.001``."""
    return f"lr_{pair[0]:g}" + (f"_wd_{pair[1]:g}" if pair[1] else "")
