"""``few-shot`` classification in closed form: least squares on a few images of each class
(big_vision's ``fewshot_lsr``).

Features are whitened, classes are ±1, a constant feature of 100 is a bias that is hardly penalised.
One eigendecomposition serves every strength of the penalty, and gives the error of each image by a
fit without it (leave-one-out) too: by that the strength is chosen, so that no label beyond the
shots is used. With one shot nothing is left of a class without its image: then it is 2¹⁰, which
big_vision takes always.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from probes.base import Context, TaskResult
from probes.features.cost import EncodeRun
from probes.image_level.classification import score, targets
from probes.image_level.embeddings import encode_split
from probes.image_level.linear import linear_flops
from probes.image_level.settings import FewShotSettings

BIAS = 100.0
USUAL = 2.0**10


@dataclass
class Fits:
    """Least squares on (N, D) features and (N,) labels, whitened and with a bias, for any strength
    of the penalty; float64.

    With X X' = Q diag(e) Q' (or X'X, where that is the smaller) the weights are L (diag(e) + λ)⁻¹
    R.
    """

    mean: Tensor
    std: Tensor
    left: Tensor
    right: Tensor
    eigenvalues: Tensor
    inputs: Tensor
    truth: Tensor

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, classes: int) -> Fits:
        features = features.double()
        mean, std = features.mean(dim=0), features.std(dim=0, correction=0) + 1e-5
        x, y = _with_bias((features - mean) / std), 2 * one_hot(labels, classes).double() - 1
        if len(x) >= x.shape[1]:
            eigenvalues, q = torch.linalg.eigh(x.T @ x)
            left, right = q, q.T @ (x.T @ y)
        else:
            eigenvalues, q = torch.linalg.eigh(x @ x.T)
            left, right = x.T @ q, q.T @ y
        return cls(mean, std, left, right, eigenvalues.clamp_min(0), x, y)

    def weights(self, l2: float) -> Tensor:
        """(D + 1, classes)."""
        return (self.left / (self.eigenvalues + l2)) @ self.right

    def scores(self, features: Tensor, l2: float) -> Tensor:
        """(M, classes) of other features."""
        return _with_bias((features.double() - self.mean) / self.std) @ self.weights(l2)

    def without(self, l2: float) -> Tensor:
        """(N, classes): of each image by the fit to all others, with y - (y - ŷ) / (1 - h), h its
        leverage."""
        turned = self.inputs @ self.left
        # left is Q (h = x Q (e + λ)⁻¹ Q' x') or X'Q, whose product with X is Q diag(e)
        square = turned.square()
        if len(self.left) != len(self.eigenvalues):
            square /= self.eigenvalues.clamp_min(1e-12)
        leverage = (square / (self.eigenvalues + l2)).sum(dim=1, keepdim=True).clamp_max(1 - 1e-9)
        return self.truth - (self.truth - self.inputs @ self.weights(l2)) / (1 - leverage)


def _with_bias(x: Tensor) -> Tensor:
    return pad(x, (0, 1), value=BIAS)


def run(context: Context) -> TaskResult:
    """See ``probes.image_level.probe``."""
    settings: FewShotSettings = context.settings
    encoding, labels, classes = (
        EncodeRun.of(context),
        targets(context, "train"),
        len(context.data.classes),
    )
    train, val = encode_split(context, "train", encoding), encode_split(context, "val", encoding)
    encoded, drawn = time.perf_counter(), draw(labels, settings.shots, context.seed)
    fits = Fits.of(train[drawn].to(context.device), labels[drawn].to(context.device), classes)
    l2, note = choose(fits, labels[drawn].to(context.device), settings)
    fitted = time.perf_counter()
    result = score(
        context,
        torch.cat([fits.scores(part.to(context.device), l2).cpu() for part in val.split(4096)]),
    )
    side = min(fits.inputs.shape)
    result.cost = encoding.cost.added_to(
        {
            "train_seconds": fitted - encoded,
            "eval_seconds": time.perf_counter() - fitted,
            "train_flops": 2.0 * max(fits.inputs.shape) * side**2 + 9.0 * side**3,
            "eval_flops": linear_flops(train.shape[1], classes, 0, len(val)),
        }
    )
    fewer = int((torch.bincount(labels, minlength=classes) < settings.shots).sum())
    result.notes = [f"{len(drawn)} training images, λ = {l2:g}: {note}"]
    if fewer:
        result.notes.append(
            f"{fewer} of {classes} classes have fewer than {settings.shots} training images"
        )
    return result


def draw(labels: Tensor, shots: int, seed: int) -> Tensor:
    """Indices of ``shots`` images of each class, or of all that it has; those of fewer shots are
    among those of more."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().squeeze(1)
        parts.append(members[torch.randperm(len(members), generator=generator)[:shots]])
    return torch.cat(parts).sort().values


def choose(fits: Fits, labels: Tensor, settings: FewShotSettings) -> tuple[float, str]:
    """The strength with the best leave-one-out top-1, of equals the one with the least squared
    error; and why."""
    if len(settings.l2) == 1:
        return settings.l2[0], "given"
    if int(torch.bincount(labels).max()) < 2:
        return USUAL, "as big_vision has it, since a class with one image leaves none to choose by"
    found = {}
    for l2 in settings.l2:
        left_out = fits.without(l2)
        right = 100 * (left_out.argmax(dim=1) == labels).double().mean().item()
        found[l2] = right, -(left_out - fits.truth).square().mean().item()
    best = max(found, key=lambda l2: found[l2])
    return best, f"best of {len(found)} by leaving each image out (top1 {found[best][0]:.1f})"
