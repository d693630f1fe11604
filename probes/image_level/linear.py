"""Linear classifiers on features, a whole grid of learning rates and weight decays trained at once.

All classifiers of a grid see the same batches in the same order; their weights are stacked, so that
one matrix product serves them all and each comes out as if it had been trained alone (tested).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import NonFiniteLoss
from probes.image_level.settings import LinearSettings

ROWS = 8192  # of features that are looked at at once where all of them are


@dataclass
class Samples:
    """Features with their classes, or some of them; the others are not copied.

    Attributes:
        features: (N, D) float32, labels: (N,) int64, on the CPU (or, where it has the room, on a
            GPU).
        classes: number of classes.
        members: (M,) indices of those that count; None for all.
    """

    features: Tensor
    labels: Tensor
    classes: int
    members: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels if self.members is None else self.members)

    def batch(self, places: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """(features, labels) of members, on ``device``."""
        index = places if self.members is None else self.members[places]
        return self.features[index].to(device), self.labels[index].to(device)

    def batches(self, rows: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """All of them in order, ``rows`` at once."""
        for places in torch.arange(len(self)).split(rows):
            yield self.batch(places, device)


@dataclass
class Standardiser:
    """Shift and scale of each feature to mean 0 and variance 1, measured on the training features:
    a BatchNorm without affine part whose statistics are exact. Features that do not vary become
    0."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, samples: Samples) -> Standardiser:
        """Measured in float64, ``ROWS`` rows at once."""
        mean = variance = torch.zeros(samples.features.shape[1], dtype=torch.float64)
        for part, _ in samples.batches(ROWS, torch.device("cpu")):
            mean = mean + part.double().sum(dim=0) / len(samples)
        for part, _ in samples.batches(ROWS, torch.device("cpu")):
            variance = variance + (part.double() - mean).square().sum(dim=0) / len(samples)
        constant = variance <= 1e-12 * (mean**2 + 1e-12)
        scale = torch.where(constant, 0.0, variance.clamp_min(1e-24).rsqrt())
        return cls(mean.float(), scale.float())

    @classmethod
    def identity(cls, width: int) -> Standardiser:
        return cls(torch.zeros(width), torch.ones(width))

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean.to(features.device)) * self.scale.to(features.device)


@dataclass
class Linear:
    """G trained classifiers: ``weight`` (D, G, C), ``bias`` (G, C), on standardised features."""

    standardise: Standardiser
    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """(N, D) → (G, N, C)."""
        return self.scores(self.standardise(features)).transpose(0, 1)

    def scores(self, standardised: Tensor) -> Tensor:
        """(N, D) → (N, G, C): one matrix product for all."""
        return (standardised @ self.weight.flatten(1)).unflatten(1, self.bias.shape) + self.bias


class Grid:
    """Linear classifiers of all pairs of a grid while they are trained: softmax cross-entropy, SGD
    with momentum.

    Args:
        model: the classifiers, G of them; trained in place.
        grid: G pairs: a peak rate, given for a batch of 256 and scaled with the batch (Goyal et al.
            2017), and the decay of the weights (not the biases).
        batch_size: samples of a step.
    """

    def __init__(
        self,
        model: Linear,
        grid: Sequence[tuple[float, float]],
        batch_size: int,
        momentum: float = 0.9,
    ) -> None:
        self.model, self.momentum = model, momentum
        rates, self.decays = torch.tensor(grid, device=model.bias.device).T[..., None]
        self.rates = rates * batch_size / 256
        self.momenta = [torch.zeros_like(model.weight), torch.zeros_like(model.bias)]

    def step(self, inputs: Tensor, targets: Tensor, share: float) -> Tensor:
        """One step of SGD on (N, D) standardised features and (N,) classes, with a ``share`` of
        each peak rate; returns the (G,) cross-entropies before it, summed over the samples."""
        model = self.model
        log_probabilities = model.scores(inputs).log_softmax(dim=2)
        index = targets[:, None, None].expand(-1, len(self.rates), 1)
        losses = -log_probabilities.gather(2, index).sum(dim=(0, 2))
        # the gradient of the mean cross-entropy: (softmax - one-hot) / samples
        error = log_probabilities.exp_().scatter_add_(
            2, index, -torch.ones_like(index, dtype=inputs.dtype)
        )
        error /= len(targets)
        of_weight = (inputs.T @ error.flatten(1)).unflatten(
            1, error.shape[1:]
        ) + self.decays * model.weight
        for parameter, momentum, gradient in zip(
            (model.weight, model.bias), self.momenta, (of_weight, error.sum(dim=0)), strict=True
        ):
            momentum.mul_(self.momentum).add_(gradient)
            parameter.sub_(share * self.rates * momentum)
        return losses


def cosine(done: float) -> float:
    """The share of a peak rate after a share of all steps: from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * done))


def train_linear(
    samples: Samples,
    grid: Sequence[tuple[float, float]],
    settings: LinearSettings,
    seed: int,
    device: torch.device,
    on_epoch: Callable[[int, list[float], Linear], None] | None = None,
) -> Linear:
    """Train one classifier for each (learning rate, weight decay) pair, from zero weights; see
    ``Grid``.

    Args:
        settings: of which epochs, batch_size, momentum and standardise are read; a cosine takes the
            rate to zero.
        seed: of the order of samples, which is the same for every member of the grid.
        on_epoch: called after each epoch with its number from 1, the mean loss of each classifier,
            and the classifiers.
    Raises:
        NonFiniteLoss: every classifier of the grid diverged. (One that diverges alone is left to
            lose.)
    """
    batch, width = min(settings.batch_size, len(samples)), samples.features.shape[1]
    model = Linear(
        Standardiser.fit(samples) if settings.standardise else Standardiser.identity(width),
        torch.zeros(width, len(grid), samples.classes, device=device),
        torch.zeros(len(grid), samples.classes, device=device),
    )
    training = Grid(model, grid, batch, settings.momentum)
    order = torch.Generator().manual_seed(seed)
    steps = math.ceil(len(samples) / batch)
    for epoch in range(settings.epochs):
        losses = torch.zeros(len(grid), device=device)
        for step, picked in enumerate(torch.randperm(len(samples), generator=order).split(batch)):
            inputs, targets = samples.batch(picked, device)
            done = (epoch * steps + step) / (settings.epochs * steps)
            losses += training.step(model.standardise(inputs), targets, cosine(done))
        mean = (losses / len(samples)).tolist()
        if not any(map(math.isfinite, mean)):
            raise NonFiniteLoss(
                f"linear: every loss of the grid is not finite in epoch {epoch + 1} of"
                f" {settings.epochs}"
            )
        if on_epoch:
            on_epoch(epoch + 1, mean, model)
    return model


def linear_flops(features: int, classes: int, trained: int, scored: int = 0) -> float:
    """Of linear classifiers, from the number of samples that they were trained on and only scored
    on, repetitions counted: a product for the scores and, in training, one for the gradient of the
    weights."""
    return 2.0 * features * classes * (2 * trained + scored)


def ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """Rank of the true class, 0 for the first: how many others score at least as high (ties count
    against it).

    (…, N, C) and (N,) → (…, N) int64. Scores that are not finite rank last.
    """
    true = logits.gather(-1, labels.expand(logits.shape[:-1])[..., None])
    beaten = (logits >= true).sum(dim=-1) - 1
    return torch.where(true.squeeze(-1).isfinite(), beaten, logits.shape[-1] - 1)


def stratified_split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (kept, held out), each sorted: of every class about ``share`` is held out, at least
    one of two or more, and never all. Which ones depends on ``seed`` and the labels alone."""
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().squeeze(1)
        number = min(len(members) - 1, max(1, round(share * len(members))))
        held[members[torch.randperm(len(members), generator=generator)[:number]]] = True
    return (~held).nonzero().squeeze(1), held.nonzero().squeeze(1)
