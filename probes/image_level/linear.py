"""``linear`` classification: a grid of learning rates and weight decays trained at once.

All classifiers of a grid see the same batches in the same order, and one matrix product gives the
scores of all. Each comes out as if it had been trained alone (tested). The best pair is chosen on a
held-out part of train. The labels of ``val`` are used once, to score the classifier that was chosen
without them.

Features are encoded once; or, with ``random_crops``, heads read the tokens of fresh random crops,
as in DINOv2's linear classification of ImageNet (Oquab et al. 2024; ``dinov2/eval/linear.py`` of
facebookresearch/dinov2): the class tokens of the last n blocks, without and with the mean of the
last patch tokens, one for each learning rate; ``RandomResizedCrop`` and a flip, SGD with momentum,
a cosine to zero, no weight decay. Weights start from N(0, 0.01²). DINOv2 chooses the best head on
the validation set. Here no head is trained on the part of train that decides; the chosen one is not
trained again on it, which would cost another pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from cliptex_common.device import float64_device, upload
from cliptex_common.errors import NonFiniteLoss, report_malformed
from cliptex_common.files import derive_seed
from probes.base import Context, Head, TaskResult
from probes.image_level.classification import (
    fit_temperature,
    on_device_if_small,
    ranks,
    score,
    targets,
)
from probes.image_level.encode import encode_split, encoder, input_size, layer_columns
from probes.image_level.random_crops import cosine, train_heads, train_step
from probes.image_level.settings import LinearSettings
from probes.label_free import log_label_free
from probes.selection import Candidate, log_scores, select_candidate, stratified_split

ROWS = 8192  # samples at once when the statistics of all features are measured
Pair = tuple[float, float]  # learning rate for a batch of 256, weight decay


@dataclass
class Samples:
    """Features with their classes, or some of them; the others are not copied.

    Attributes:
        features: (N, D) float32, on the CPU or, where it has room, on a GPU.
        labels: (N,) int64, on the same device.
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
    def fit(cls, features: Tensor, members: Tensor | None = None) -> Standardiser:
        """Measure (N, D) features, or those of some rows, in float64 on their own device, ``ROWS``
        rows at once."""
        device = float64_device(features.device)
        every = torch.arange(len(features), device=features.device)
        rows = every if members is None else members
        mean = variance = torch.zeros(features.shape[1], dtype=torch.float64, device=device)
        for part in rows.split(ROWS):
            mean = mean + features[part].to(device).double().sum(dim=0) / len(rows)
        for part in rows.split(ROWS):
            deviation = features[part].to(device).double() - mean
            variance = variance + deviation.square().sum(dim=0) / len(rows)
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

    @classmethod
    def of(cls, head: Head) -> LinearHeads:
        """The one classifier of a stored head."""
        with report_malformed("the stored head is damaged", "name that of a finished run"):
            mean, scale = head.tensors["mean"], head.tensors["scale"]
            weight, bias = head.tensors["weight"], head.tensors["bias"]
            shape = len(mean), len(head.metadata["classes"])
            if weight.shape != shape or bias.shape != shape[1:] or scale.shape != shape[:1]:
                raise ValueError(f"weights {weight.shape}")
            columns = slice(*head.metadata["columns"])
        heads = cls(Standardiser(mean, scale), [weight], columns)
        heads.biases = nn.ParameterList([bias])
        return heads

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


def zero_heads(
    samples: Samples, count: int, settings: LinearSettings, device: torch.device
) -> LinearHeads:
    """Classifiers with zero weights on the features of ``samples``, standardised where the settings
    say so."""
    width = samples.features.shape[1]
    standardise = Standardiser.identity(width)
    if settings.standardise:
        standardise = Standardiser.fit(samples.features, samples.members)
    zeros = [torch.zeros(width, samples.classes, device=device) for _ in range(count)]
    return LinearHeads(standardise, zeros).to(device)


def train_linear(
    heads: LinearHeads, samples: Samples, grid: Sequence[Pair], settings: LinearSettings, seed: int
) -> Iterator[tuple[int, list[float]]]:
    """Train classifiers, each with its pair of a grid.

    Args:
        settings: epochs, batch_size and momentum are used.
        seed: of the order of samples, which is the same for every classifier.
    Yields:
        after each epoch its number from 1, and the mean loss of each classifier.
    Raises:
        NonFiniteLoss: every classifier diverged. A single one that diverges is not chosen.
    """
    batch_size, device = min(settings.batch_size, len(samples)), heads.biases[0].device
    optimizer = sgd([heads], settings, grid, batch_size)
    order = torch.Generator().manual_seed(seed)
    steps = math.ceil(len(samples) / batch_size)
    for epoch in range(settings.epochs):
        losses = torch.zeros(len(grid), device=device)
        indices_of_epoch = torch.randperm(len(samples), generator=order)
        batches = upload(indices_of_epoch, samples.features.device).split(batch_size)
        for step, indices in enumerate(batches):
            inputs, classes = samples.batch(indices, device)
            share = cosine(epoch * steps + step, settings.epochs * steps)
            losses += len(indices) * train_step(heads, optimizer, inputs, classes, share)
        mean = (losses / len(samples)).tolist()
        if not any(map(math.isfinite, mean)):
            raise NonFiniteLoss(
                f"linear: every loss of the grid is not finite in epoch {epoch + 1} of"
                f" {settings.epochs}"
            )
        yield epoch + 1, mean


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


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    settings: LinearSettings = context.settings
    if context.head is not None:
        return score(context, stored_logits(context, context.head))
    train = train_on_random_crops if settings.random_crops else train_on_features
    heads, number, temperature, notes = train(context)
    tensors = {
        "mean": heads.standardise.mean,
        "scale": heads.standardise.scale,
        "weight": heads.weights[number],
        "bias": heads.biases[number],
    }
    columns = heads.columns if settings.random_crops else layer_columns(context)
    encoding = asdict(settings.encoding(context.device.type))
    ends = (columns.start, columns.stop)
    head = Head.of(context, tensors, encoding=encoding, columns=ends, temperature=temperature)
    return score(context, logits_of(context, heads, number), notes, head)


def stored_logits(context: Context, head: Head) -> Tensor:
    """(N, C) logits of ``val`` by a stored head, on the CPU."""
    heads = LinearHeads.of(head).to(context.device)
    if not context.settings.random_crops:
        heads.columns = slice(None)  # only those of its layer are read from the store
    return logits_of(context, heads, 0)


@torch.no_grad()
def logits_of(context: Context, heads: LinearHeads, number: int) -> Tensor:
    """(N, C) logits of ``val`` by one of the classifiers, on the CPU."""
    val = encode_split(context, "val")
    return torch.cat([heads(part.to(context.device))[number].cpu() for part in val.split(4096)])


Trained = tuple[LinearHeads, int, float | None, list[str]]


def train_on_features(context: Context) -> Trained:
    """Train on one embedding of each image, after a choice on a held-out part of train.

    Logs ``select/top1/lr_…`` after each epoch of the choice.

    Returns:
        heads, the number of the one that is chosen, the temperature (``fit_temperature``) of the
        one that was chosen on the held-out part, None if there was no choice, and notes.
    """
    settings, data, device = context.settings, context.data, context.device
    features = on_device_if_small(encode_split(context, "train"), device)
    log_label_free(context, features)
    train = Samples(features, targets(context, "train"), len(data.classes))
    grid, reason, temperature = settings.grid, "fixed", None
    with context.cost.phase("train"):
        if len(grid) > 1:
            split = stratified_split(
                train.labels.cpu(),
                settings.holdout,
                context.seed,
                "give one with --set learning_rates=0.1",
            )
            training, held_out = (replace(train, members=part) for part in split)
            message = f"choosing among {len(grid)} linear classifiers"
            context.progress.start(message, settings.epochs)
            heads = zero_heads(training, len(grid), settings, device)
            for epoch, _ in train_linear(heads, training, grid, settings, context.seed):
                candidates = evaluate_grid(heads, grid, held_out, device)
                log_scores(context.log, "top1", candidates, epoch)
                context.progress.advance()
            best, reason = select_candidate(candidates, "top1", len(held_out))
            temperature = held_out_temperature(heads, candidates.index(best), held_out, device)
            grid = [best.value]
        context.progress.start("training the linear classifier", settings.epochs)
        heads = zero_heads(train, 1, settings, device)
        for epoch, losses in train_linear(heads, train, grid, settings, context.seed):
            context.log.log_metrics({"train/loss": losses[0]}, epoch)
            context.progress.advance()
    rate, decay = grid[0]
    return heads, 0, temperature, [f"learning rate {rate:g}, weight decay {decay:g}: {reason}"]


@torch.no_grad()
def held_out_temperature(
    heads: LinearHeads, number: int, samples: Samples, device: torch.device
) -> float:
    """``fit_temperature`` of one of the classifiers."""
    batches = [(heads(x)[number], y) for x, y in samples.batches(ROWS, device)]
    logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return fit_temperature(logits, labels)


def train_on_random_crops(context: Context) -> Trained:
    """As ``train_on_features``, on the tokens of random crops."""
    settings, device = context.settings, context.device
    grids: Any = create_heads(context).to(device)
    optimizer = sgd(grids, settings, settings.grid, settings.batch_size)
    encode = encoder(context.backbone, settings.encoding(device.type))
    with context.cost.phase("train"):
        advice = "give one with --set random_crops=false --set learning_rates=0.1"
        iterations, held_out = train_heads(context, grids, optimizer, encode, advice)
    features, labels = encode_split(context, "train", held_out), targets(context, "train")
    samples = Samples(features, labels[held_out], len(context.data.classes))
    candidates: list[Candidate[Pair]] = []
    for heads in grids:
        candidates += evaluate_grid(heads, settings.grid, samples, device)
    log_scores(context.log, "top1", candidates, iterations)
    best, reason = select_candidate(candidates, "top1", len(held_out))
    choice, number = divmod(candidates.index(best), len(settings.grid))
    notes = [f"{best.name}: {reason}", "DINOv2 itself chooses the head on val"]
    temperature = held_out_temperature(grids[choice], number, samples, device)
    return grids[choice], number, temperature, notes


class TokenHeads(nn.ModuleList):
    """Grids of ``LinearHeads``, each on its own columns of the tokens."""

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """(N, D) → the logits (N, C) of each head."""
        return [logits for heads in self for logits in heads(tokens)]


def create_heads(context: Context) -> TokenHeads:
    """Untrained heads; the initial weights of each depend on the seed and its own name alone."""
    settings: LinearSettings = context.settings
    encoding, device = settings.encoding(context.device.type), context.device
    size = input_size(encoding.size, context.backbone)
    with torch.inference_mode():
        tokens = context.backbone.encode_tokens(
            torch.zeros(1, 3, *size, device=device), encoding.blocks
        )
    widths = [token.shape[1] for token, _ in tokens]
    grids = TokenHeads()
    for blocks, pooled in product(settings.blocks, settings.average_pool):
        name = f"blocks_{blocks}" + ("_avgpool" if pooled else "")
        start = sum(widths[: encoding.blocks - blocks])
        columns = slice(start, sum(widths) + (widths[-1] if pooled else 0))
        width, weights = columns.stop - start, []
        for pair in settings.grid:
            seed = derive_seed("head", context.seed, name, *map(repr, pair))
            generator = torch.Generator().manual_seed(seed)
            weight = torch.empty(width, len(context.data.classes))
            weights.append(weight.normal_(0, 0.01, generator=generator))
        standardise = Standardiser.identity(width)
        grids.append(LinearHeads(standardise, weights, columns, f"{name}_"))
    return grids
