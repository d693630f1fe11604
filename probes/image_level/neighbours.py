"""Classification without training: ``few-shot`` in closed form, and ``knn``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot, pad

from cliptex_common.device import float64_device
from probes.base import Context, TaskResult
from probes.features.search import nearest_neighbours
from probes.image_level.classification import on_device_if_small, score, targets, top1
from probes.image_level.encode import encode_split
from probes.image_level.multi_label import label_shares, mean_precision, metric_of, strata
from probes.image_level.settings import FewShotSettings, KnnSettings
from probes.pictures import log_label_free
from probes.select import (
    Candidate,
    log_scores,
    select_candidate,
    shuffled_classes,
    stratified_split,
)

BIAS = 100.0
DEFAULT_L2 = 2.0**10


class LeastSquares:
    """Least squares on whitened features with a bias, for any strength of the penalty; float64.

    As in big_vision's ``fewshot_lsr`` classes are ±1, and a constant feature of 100 is a bias that
    is hardly penalised. One eigendecomposition serves every strength and gives the leave-one-out
    error of each image.

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


def run_few_shot(context: Context) -> TaskResult:
    """``few-shot``: least squares on a few images of each class. See
    ``probes.base.FeatureProbe``."""
    settings: FewShotSettings = context.settings
    training = context.training
    device, classes = float64_device(context.device), len(training.data.classes)
    train, val = encode_split(training, "train"), encode_split(context, "val")
    labels = targets(training, "train")
    shots = sample_shots(labels, settings.shots, context.seed)
    with context.cost.phase("train"):
        shot_labels = labels[shots].to(device)
        fits = LeastSquares(train[shots].to(device), shot_labels, classes)
        l2, reason = choose_few_shot(fits, shot_labels, settings)
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


def choose_few_shot(
    fits: LeastSquares, labels: Tensor, settings: FewShotSettings
) -> tuple[float, str]:
    """The strength of the penalty that is best by leave-one-out top-1, so that no label beyond the
    shots is used; and why. With one shot a class without its image has no sample left; then it is
    2¹⁰, which big_vision always uses."""
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


def run_knn(context: Context) -> TaskResult:
    """``knn``: the nearest training images vote (Wu et al. 2018, section 3.4), as in DINO's
    ``eval_knn.py``. The number of neighbours is chosen on a held-out part of train; DINO reports
    the best on val. Of label sets the score of a class is its share of the votes of those images
    for which it is known. See ``probes.base.FeatureProbe``."""
    settings: KnnSettings = context.settings
    training = context.training
    labels, classes = targets(training, "train").to(context.device), len(training.data.classes)
    features = encode_split(training, "train"), encode_split(context, "val")
    if training.data is context.data:
        log_label_free(context, features[0])
    train, val = (normalize(on_device_if_small(each, context.device), dim=1) for each in features)
    context.progress.start("searching neighbours", 1)
    neighbours, reason = settings.neighbours[0], "fixed"
    if len(settings.neighbours) > 1:
        neighbours, reason = choose_knn(train, labels, training)
    (logits,) = votes(val, train, labels, [neighbours], settings.temperature, classes)
    context.progress.advance()
    return score(context, logits, [f"{neighbours} neighbours: {reason}"])


def choose_knn(train: Tensor, labels: Tensor, context: Context) -> tuple[int, str]:
    """The number of neighbours that is best on a held-out part of train, and why."""
    settings: KnnSettings = context.settings
    memory, held_out = stratified_split(
        strata(labels.cpu()), settings.holdout, context.seed, "give one with --set neighbours=10"
    )
    counts, classes = settings.neighbours, len(context.data.classes)
    labelled = train[memory], labels[memory]
    ballots = votes(train[held_out], *labelled, counts, settings.temperature, classes)
    metric = metric_of(labels)
    measure = top1 if metric == "top1" else mean_precision
    candidates = [
        Candidate(k, f"k_{k}", measure(ballot, labels[held_out].cpu()))
        for k, ballot in zip(counts, ballots, strict=True)
    ]
    log_scores(context.log, metric, candidates, 1)
    best, reason = select_candidate(candidates, metric, len(held_out))
    return best.value, reason


def votes(
    queries: Tensor,
    memory: Tensor,
    labels: Tensor,
    neighbours: Sequence[int],
    temperature: float,
    classes: int,
) -> list[Tensor]:
    """For each number of ``neighbours`` the votes of each class, (N, classes) float64 on the CPU; a
    neighbour at cosine s counts exp(s / ``temperature``).

    Args:
        queries: (N, D), memory: (M, D) unit vectors.
        labels: (M,) of the memory, or (M, C) label sets, on the device that computes.
    """
    device, exact = labels.device, float64_device(labels.device)
    ballots: list[list[Tensor]] = [[] for _ in neighbours]
    for part in queries.split(4096 if labels.dim() == 1 else 256):
        similar, index = nearest_neighbours(part.to(device), memory, max(neighbours))
        weights, voted = (similar.to(exact).double() / temperature).exp(), labels[index].to(exact)
        for parts, k in zip(ballots, neighbours, strict=True):
            if labels.dim() == 2:
                parts.append(label_shares(weights[:, :k], voted[:, :k]).cpu())
                continue
            ballot = torch.zeros(len(part), classes, dtype=torch.float64, device=exact)
            parts.append(ballot.scatter_add_(1, voted[:, :k], weights[:, :k]).cpu())
    return [torch.cat(parts) for parts in ballots]
