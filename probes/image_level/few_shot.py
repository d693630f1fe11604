"""``few-shot`` classification in closed form: least squares on a few images of each class.

As in big_vision's ``fewshot_lsr`` features are whitened, classes are ±1, and a constant feature of
100 is a bias that is hardly penalised. One eigendecomposition serves every strength of the penalty
and gives the leave-one-out error of each image. The strength is chosen by that error, so no label
beyond the shots is used. With one shot a class without its image has no sample left; then the
strength is 2¹⁰, which big_vision always uses.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from cliptex_common.device import float64_device
from probes.base import Context, TaskResult
from probes.image_level.classification import score, targets
from probes.image_level.encode import encode_split
from probes.image_level.settings import FewShotSettings
from probes.selection import Candidate, select_candidate, shuffled_classes

BIAS = 100.0
DEFAULT_L2 = 2.0**10


class LeastSquares:
    """Least squares on whitened features with a bias, for any strength of the penalty; float64.

    With X X' = Q diag(e) Q' (or X'X, where that is the smaller) the weights are
    ``basis`` (diag(e) + λ)⁻¹ ``projections``.

    Args:
        features: (N, D). labels: (N,).
        classes: number of classes.
    """

    def __init__(self, features: Tensor, labels: Tensor, classes: int) -> None:
        features = features.double()
        self.mean, self.std = features.mean(dim=0), features.std(dim=0, correction=0) + 1e-5
        self.inputs = x = self.whitened(features)
        self.targets = y = 2 * one_hot(labels, classes).double() - 1
        if len(x) >= x.shape[1]:
            eigenvalues, self.basis = torch.linalg.eigh(x.T @ x)
            self.projections = self.basis.T @ (x.T @ y)
        else:
            eigenvalues, q = torch.linalg.eigh(x @ x.T)
            self.basis, self.projections = x.T @ q, q.T @ y
        self.eigenvalues = eigenvalues.clamp_min(0)

    def whitened(self, features: Tensor) -> Tensor:
        """(M, D + 1), with the bias."""
        return pad((features - self.mean) / self.std, (0, 1), value=BIAS)

    def weights(self, l2: float) -> Tensor:
        """(D + 1, classes)."""
        return (self.basis / (self.eigenvalues + l2)) @ self.projections

    def scores(self, features: Tensor, l2: float) -> Tensor:
        """(M, classes) of (M, D) features."""
        return self.whitened(features.double()) @ self.weights(l2)

    def leave_one_out(self, l2: float) -> Tensor:
        """(N, classes): each image by the fit to all others.

        That is y - (y - ŷ) / (1 - h), with h the image's leverage.
        """
        projected = self.inputs @ self.basis
        # basis is Q (h = x Q (e + λ)⁻¹ Q' x') or X'Q, whose product with X is Q diag(e)
        square = projected.square()
        if len(self.basis) != len(self.eigenvalues):
            square /= self.eigenvalues.clamp_min(1e-12)
        leverage = (square / (self.eigenvalues + l2)).sum(dim=1, keepdim=True).clamp_max(1 - 1e-9)
        return self.targets - (self.targets - self.inputs @ self.weights(l2)) / (1 - leverage)


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    settings: FewShotSettings = context.settings
    training = context.training
    device, classes = float64_device(context.device), len(training.data.classes)
    train, val = encode_split(training, "train"), encode_split(context, "val")
    labels = targets(training, "train")
    shots = sample_shots(labels, settings.shots, context.seed)
    with context.cost.phase("train"):
        shot_labels = labels[shots].to(device)
        fits = LeastSquares(train[shots].to(device), shot_labels, classes)
        l2, reason = choose(fits, shot_labels, settings)
    logits = [fits.scores(part.to(device), l2).cpu() for part in val.split(4096)]
    notes = [f"{len(shots)} training images, λ = {l2:g}: {reason}"]
    if fewer := int((torch.bincount(labels, minlength=classes) < settings.shots).sum()):
        notes += [f"{fewer} of {classes} classes have fewer than {settings.shots} training images"]
    return score(context, torch.cat(logits), notes)


def sample_shots(labels: Tensor, shots: int, seed: int) -> Tensor:
    """Indices of ``shots`` images of each class, or of all that it has.

    The images of fewer shots are among those of more.
    """
    parts = [members[:shots] for members in shuffled_classes(labels, seed)]
    return torch.cat(parts).sort().values


def choose(fits: LeastSquares, labels: Tensor, settings: FewShotSettings) -> tuple[float, str]:
    """The strength of the penalty that is best by leave-one-out top-1, and why."""
    if len(settings.l2) == 1:
        return settings.l2[0], "fixed"
    if int(torch.bincount(labels).max()) < 2:
        return DEFAULT_L2, "as in big_vision, since no image can be left out of a class with one"
    candidates = []
    for l2 in settings.l2:
        scores = fits.leave_one_out(l2)
        accuracy = 100 * (scores.argmax(dim=1) == labels).double().mean().item()
        error = (scores - fits.targets).square().mean().item()
        candidates.append(Candidate(l2, f"l2_{l2:g}", accuracy, error))
    best, reason = select_candidate(candidates, "top1", len(labels))
    return best.value, f"{reason}, each left out in turn"
