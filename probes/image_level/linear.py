"""Linear classifiers on features, a whole grid of learning rates and weight decays trained at once.

All classifiers of a grid see the same batches in the same order; their weights are stacked, so that one matrix product
serves them all and each comes out as if it had been trained alone (tested).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backbones.errors import NonFiniteLoss


@dataclass(frozen=True)
class Schedule:
    """How a classifier is trained: SGD with momentum, its learning rate brought to zero by a cosine.

    Attributes:
        epochs: passes over the features.
        batch_size: samples a step; capped at the number of samples.
        momentum: of SGD.
    """

    epochs: int
    batch_size: int
    momentum: float = 0.9


@dataclass
class Standardiser:
    """Shift and scale of each feature to mean 0 and variance 1, measured on the training features: a BatchNorm without
    affine part whose statistics are exact. Features that do not vary become 0."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, features: Tensor) -> Standardiser:
        variance, mean = torch.var_mean(features.double(), dim=0, correction=0)
        constant = variance <= 1e-12 * (mean**2 + 1e-12)
        scale = torch.where(constant, 0.0, variance.clamp_min(1e-24).rsqrt())
        return cls(mean.float(), scale.float())

    @classmethod
    def identity(cls, features: Tensor) -> Standardiser:
        return cls(torch.zeros(features.shape[1]), torch.ones(features.shape[1]))

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


def train_linear(
    features: Tensor,
    labels: Tensor,
    classes: int,
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    schedule: Schedule,
    *,
    seed: int,
    device: torch.device,
    standardise: bool = True,
    on_epoch: Callable[[int, list[float], Linear], None] | None = None,
) -> Linear:
    """Train one classifier for each (learning rate, weight decay) pair, with cross-entropy and SGD from zero weights.

    Args:
        features: (N, D) float32, labels: (N,) int64, both on the CPU; batches are moved to ``device``.
        learning_rates: G peak rates, given for a batch of 256 and scaled with the batch (Goyal et al. 2017).
        weight_decays: G decays of the weights (not the biases).
        seed: of the order of samples, which is the same for every member of the grid.
        on_epoch: called after each epoch with its number from 1, the mean loss of each classifier, and the classifiers.
    Raises:
        NonFiniteLoss: every classifier of the grid diverged. (One that diverges alone is left to lose.)
    """
    if len(learning_rates) != len(weight_decays):
        raise ValueError("one weight decay for each learning rate")
    grid, samples = len(learning_rates), len(features)
    batch = min(schedule.batch_size, samples)
    model = Linear(
        Standardiser.fit(features) if standardise else Standardiser.identity(features),
        torch.zeros(features.shape[1], grid, classes, device=device),
        torch.zeros(grid, classes, device=device),
    )
    momenta = [torch.zeros_like(model.weight), torch.zeros_like(model.bias)]
    rates = torch.tensor(learning_rates, device=device)[:, None] * batch / 256
    decay = torch.tensor(weight_decays, device=device)[:, None]
    order = torch.Generator().manual_seed(seed)
    steps = math.ceil(samples / batch)
    for epoch in range(schedule.epochs):
        losses = torch.zeros(grid, device=device)
        for step, picked in enumerate(torch.randperm(samples, generator=order).split(batch)):
            inputs, targets = model.standardise(features[picked].to(device)), labels[picked].to(device)
            log_probabilities = model.scores(inputs).log_softmax(dim=2)
            index = targets[:, None, None].expand(-1, grid, 1)
            losses -= log_probabilities.gather(2, index).sum(dim=(0, 2))
            # the gradient of the mean cross-entropy: (softmax - one-hot) / samples
            error = log_probabilities.exp_().scatter_add_(2, index, -torch.ones_like(index, dtype=inputs.dtype))
            error /= len(picked)
            gradients = (
                (inputs.T @ error.flatten(1)).unflatten(1, error.shape[1:]) + decay * model.weight,
                error.sum(dim=0),
            )
            progress = (epoch * steps + step) / (schedule.epochs * steps)
            rate = rates * (0.5 * (1 + math.cos(math.pi * progress)))
            for parameter, momentum, gradient in zip((model.weight, model.bias), momenta, gradients, strict=True):
                momentum.mul_(schedule.momentum).add_(gradient)
                parameter.sub_(rate * momentum)
        mean = (losses / samples).tolist()
        if not any(map(math.isfinite, mean)):
            raise NonFiniteLoss(
                f"linear: every loss of the grid is not finite in epoch {epoch + 1} of {schedule.epochs}"
            )
        if on_epoch:
            on_epoch(epoch + 1, mean, model)
    return model


def ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """Rank of the true class, 0 for the first: how many others score at least as high (ties count against it).

    (…, N, C) and (N,) → (…, N) int64. Scores that are not finite rank last.
    """
    true = logits.gather(-1, labels.expand(logits.shape[:-1])[..., None])
    beaten = (logits >= true).sum(dim=-1) - 1
    return torch.where(true.squeeze(-1).isfinite(), beaten, logits.shape[-1] - 1)


def stratified_split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (kept, held out), each sorted: of every class about ``share`` is held out, at least one of two or more,
    and never all. Which ones depends on ``seed`` and the labels alone."""
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().squeeze(1)
        number = min(len(members) - 1, max(1, round(share * len(members))))
        held[members[torch.randperm(len(members), generator=generator)[:number]]] = True
    return (~held).nonzero().squeeze(1), held.nonzero().squeeze(1)
