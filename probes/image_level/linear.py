"""``linear`` classification: a grid of learning rates and weight decays trained at once, on
features that are encoded once or, with ``random_crops``, on one frozen pass over fresh random
crops, by which ``attentive`` heads are trained as well.

All classifiers of a grid see the same batches in the same order, and one matrix product gives the
scores of all. Each comes out as if it had been trained alone (tested). The best pair is chosen on a
held-out part of train. The labels of ``val`` are used once, to score the classifier that was chosen
without them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from cliptex_common.device import float64_device, upload
from cliptex_common.errors import NonFiniteLoss, report_malformed
from cliptex_common.files import content_key, derive_seed
from cliptex_common.progress import Pace
from probes.base import Context, Head, TaskResult, load_state, save_state
from probes.image_level.classification import (
    fit_temperature,
    on_device_if_small,
    ranks,
    score,
    targets,
)
from probes.image_level.encode import (
    Encode,
    ImageViews,
    encode_split,
    encoder,
    input_size,
    layer_columns,
)
from probes.image_level.multi_label import mean_precision, metric_of, strata
from probes.image_level.settings import LinearSettings
from probes.pictures import log_label_free
from probes.select import Candidate, log_scores, select_candidate, stratified_split

log = logging.getLogger("cliptex.training")
SAVE_EVERY = 300.0  # seconds of training between two states, or more where they take long


def crop_transform(size: tuple[int, int]) -> Callable[[Image.Image], Tensor]:
    """An image → a random crop of it (3, H, W) uint8, by torch's generator."""
    from torchvision import transforms  # slow to import

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )


class RandomCrops(ImageViews):
    """Random crops without end: item k is the k-th crop that training draws.

    The images come in one shuffled order after the other. Order and crops depend on the seed of the
    context and k alone, whatever process loads them and wherever training resumes.
    """

    def __init__(self, context: Context, paths: Sequence[Path], encode: Encode) -> None:
        encoding = context.settings.encoding(context.device.type)
        super().__init__(context, context.backbone, paths, encoding, encode=encode)
        self.seed = context.seed
        self.transform = crop_transform(self.size)
        self._order: tuple[int, list[int]] = (-1, [])

    def index(self, item: int) -> int:
        """The image of an item."""
        epoch, position = divmod(item, len(self.paths))
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(derive_seed("order", self.seed, epoch))
            self._order = epoch, torch.randperm(len(self.paths), generator=generator).tolist()
        return self._order[1][position]

    def load(self, item: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed("crop", self.seed, item))
            return super().load(item)

    def path(self, item: int) -> str:
        return self.paths[self.index(item)]


def train_heads(
    context: Context,
    heads: nn.Module,
    optimizer: torch.optim.Optimizer,
    encode: Encode,
    advice: str,
) -> tuple[int, Tensor]:
    """Train heads for ``epochs`` of the settings; returns the number of iterations and the indices
    of the images of train that no head is trained on.

    It resumes from ``work_dir/heads.pt``, a state of the same settings, seed, backbone and data.

    Logs ``train/loss``, the mean of an epoch of the best head.

    Args:
        heads: what ``encode`` gives → the logits (N, C) of each head.
        encode: normalised images → what the heads read.
        advice: see ``stratified_split``.
    Raises:
        NonFiniteLoss: every head diverged. A single one that diverges is not chosen.
    """
    data, settings, labels = context.data, context.settings, targets(context, "train")
    training, held_out = stratified_split(strata(labels), settings.holdout, context.seed, advice)
    labels = labels[training]
    paths = [data.root / data.samples["train"][index].image for index in training]
    backbone, device = context.backbone, context.device
    crops = RandomCrops(context, paths, encode)
    epoch_length = settings.epoch_length or math.ceil(len(paths) / settings.batch_size)
    file, iterations = context.work_dir / "heads.pt", settings.epochs * epoch_length
    warmup = round(getattr(settings, "warmup", 0.0) * iterations)
    iteration, losses = 0, torch.zeros((), device=device)
    key = content_key(
        {
            "settings": asdict(settings),
            "seed": context.seed,
            "backbone": backbone.identity(),
            "data": data.fingerprint,
            "images": [str(path) for path in paths],
        }
    )
    # on the CPU, where AdamW counts its steps: it would wait for a count on the device
    if state := load_state(file, key, log.warning):
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        iteration, losses = state["iteration"], state["losses"].to(device)
    context.progress.start("training heads on random crops", iterations)
    context.progress.advance(iteration)
    size, saving = settings.batch_size, Pace(SAVE_EVERY)
    batches = [range(i * size, (i + 1) * size) for i in range(iteration, iterations)]
    for items, inputs in zip(batches, crops.tensors(batches), strict=True):
        classes = upload(labels[[crops.index(item) for item in items]], device)
        share = cosine(iteration, iterations, warmup)
        losses = losses + train_step(heads, optimizer, inputs, classes, share)
        iteration += 1
        context.progress.advance()
        if epoch_ends := iteration % epoch_length == 0:
            mean = losses / epoch_length
            if not bool(mean.isfinite().any()):
                raise NonFiniteLoss(f"the loss of every head is not finite at {iteration=}")
            best = mean.nan_to_num(torch.inf).min().item()
            context.log.log_metrics({"train/loss": best}, iteration)
            losses = torch.zeros_like(losses)
        if epoch_ends or saving.is_due:
            state = {
                "heads": heads.state_dict(),
                "optimizer": optimizer.state_dict(),
                "iteration": iteration,
                "losses": losses,
            }
            with saving.timed():
                save_state(file, key, state)
    return iterations, held_out


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
        targets: as of ``loss_of``.
        share: of the highest rates, as of ``cosine``.
    Returns:
        (heads,) mean losses before the step.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * share
    optimizer.zero_grad()
    losses = torch.stack([loss_of(logits, targets) for logits in heads(inputs)])
    losses.sum().backward()
    optimizer.step()
    return losses.detach()


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over images of the cross-entropy of their classes (N,) int64; or, of label sets as
    of ``multi_label.label_matrix``, of the sum of the binary cross-entropies: so each class is a
    logistic regression with the rate of the grid."""
    if targets.dim() == 1:
        return F.cross_entropy(logits, targets)
    losses = F.binary_cross_entropy_with_logits(logits, targets.nan_to_num(), reduction="none")
    return losses.masked_fill(targets.isnan(), 0).sum(dim=1).mean()


ROWS = 8192  # samples at once when the statistics of all features are measured
RateAndDecay = tuple[float, float]  # learning rate for a batch of 256, weight decay


@dataclass
class Samples:
    """Features with their classes, or some of them; the others are not copied.

    Attributes:
        features: (N, D) float32, on the CPU or, where it has room, on a GPU.
        labels: (N,) int64, or label sets as of ``loss_of``, on the same device.
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
            if {each.dtype for each in (mean, scale, weight, bias)} != {torch.float32}:
                raise TypeError(f"weights of {weight.dtype}")
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
    grids: Iterable[Any], settings: LinearSettings, pairs: Sequence[RateAndDecay], batch_size: int
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


def adamw(heads: LinearHeads, pairs: Sequence[RateAndDecay]) -> torch.optim.AdamW:
    """Likewise, of one grid; rates are not scaled, and biases decay too."""
    groups = [
        {"params": [weight, bias], "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for weight, bias, (rate, decay) in zip(heads.weights, heads.biases, pairs, strict=True)
    ]
    return torch.optim.AdamW(groups)


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
    heads: LinearHeads,
    samples: Samples,
    grid: Sequence[RateAndDecay],
    settings: LinearSettings,
    seed: int,
) -> Iterator[tuple[int, list[float]]]:
    """Train classifiers, each with its pair of a grid.

    Args:
        settings: epochs, batch_size, solver and momentum are used.
        seed: of the order of samples, which is the same for every classifier.
    Yields:
        after each epoch its number from 1, and the mean loss of each classifier.
    Raises:
        NonFiniteLoss: every classifier diverged. A single one that diverges is not chosen.
    """
    batch_size, device = min(settings.batch_size, len(samples)), heads.biases[0].device
    by_sgd = settings.solver == "sgd"
    optimizer: torch.optim.Optimizer = (
        sgd([heads], settings, grid, batch_size) if by_sgd else adamw(heads, grid)
    )
    order = torch.Generator().manual_seed(seed)
    steps = math.ceil(len(samples) / batch_size)
    for epoch in range(settings.epochs):
        losses = torch.zeros(len(grid), device=device)
        indices_of_epoch = torch.randperm(len(samples), generator=order)
        batches = upload(indices_of_epoch, samples.features.device).split(batch_size)
        for step, indices in enumerate(batches):
            inputs, classes = samples.batch(indices, device)
            share = cosine(epoch * steps + step, settings.epochs * steps) if by_sgd else 1.0
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
    heads: LinearHeads, grid: Sequence[RateAndDecay], samples: Samples, device: torch.device
) -> list[Candidate[RateAndDecay]]:
    """Top-1, or mAP, and mean loss of each head on held-out samples."""
    count, exact = len(grid), float64_device(device)
    names = [heads.name + pair_name(pair) for pair in grid]
    if samples.labels.dim() == 2:
        batches = [
            (heads(inputs).cpu(), labels.cpu()) for inputs, labels in samples.batches(ROWS, device)
        ]
        logits, labels = (torch.cat(parts, dim=-2) for parts in zip(*batches, strict=True))
        return [
            Candidate(
                pair, name, mean_precision(each, labels), loss_of(each, labels).item(), pair[0]
            )
            for pair, name, each in zip(grid, names, logits, strict=True)
        ]
    hits, total = (torch.zeros(count, dtype=torch.float64, device=exact) for _ in range(2))
    rows = max(1, 2**23 // (count * samples.classes))  # 64 MiB of logits in float64
    for features, labels in samples.batches(rows, device):
        logits = heads(features).to(exact)
        labels = labels.to(exact)
        hits += (ranks(logits, labels) == 0).sum(dim=1)
        index = labels.expand(count, -1)[..., None]
        total -= logits.double().log_softmax(dim=2).gather(2, index).sum(dim=(1, 2))
    top1, losses = (100 * hits / len(samples)).tolist(), (total / len(samples)).tolist()
    return [
        Candidate(pair, name, accuracy, loss, pair[0])
        for pair, name, accuracy, loss in zip(grid, names, top1, losses, strict=True)
    ]


def pair_name(pair: RateAndDecay) -> str:
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
    context = context.with_head_weights()
    heads = LinearHeads.of(head).to(context.device)
    if not context.settings.random_crops:
        # stored are the columns of its layer among those of all; ``encode_split`` reads them alone
        heads.columns = slice(None)
    return logits_of(context, heads, 0)


@torch.no_grad()
def logits_of(context: Context, heads: LinearHeads, number: int) -> Tensor:
    """(N, C) logits of ``val`` by one of the classifiers, on the CPU."""
    val = encode_split(context, "val")
    return torch.cat([heads(part.to(context.device))[number].cpu() for part in val.split(4096)])


# heads, number of the chosen one, temperature, notes; see ``train_on_features``
Trained = tuple[LinearHeads, int, float | None, list[str]]


def train_on_features(context: Context) -> Trained:
    """Train on one embedding of each image, after a choice on a held-out part of train.

    Logs ``select/top1/lr_…`` (of label sets ``select/mAP/lr_…``) after each epoch of the choice.

    Returns:
        heads, the number of the one that is chosen, the temperature (``fit_temperature``) of the
        one that was chosen on the held-out part, None if there was no choice, and notes.
    """
    settings, data, device = context.settings, context.data, context.device
    features = on_device_if_small(encode_split(context, "train"), device)
    log_label_free(context, features)
    train = Samples(features, targets(context, "train"), len(data.classes))
    grid, reason, temperature = settings.grid, "fixed", None
    metric = metric_of(train.labels)
    with context.cost.phase("train"):
        if len(grid) > 1:
            split = stratified_split(
                strata(train.labels.cpu()),
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
                log_scores(context.log, metric, candidates, epoch)
                context.progress.advance()
            best, reason = select_candidate(candidates, metric, len(held_out))
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
) -> float | None:
    """``fit_temperature`` of one of the classifiers; None of label sets."""
    if samples.labels.dim() == 2:
        return None
    batches = [(heads(x)[number], y) for x, y in samples.batches(ROWS, device)]
    logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return fit_temperature(logits, labels)


def train_on_random_crops(context: Context) -> Trained:
    """As ``train_on_features``, on the tokens of random crops, as in DINOv2's linear classification
    of ImageNet (Oquab et al. 2024; ``dinov2/eval/linear.py`` of facebookresearch/dinov2): the class
    tokens of the last n blocks, without and with the mean of the last patch tokens, one head for
    each learning rate; ``RandomResizedCrop`` and a flip, SGD with momentum, a cosine to zero, no
    weight decay.

    DINOv2 chooses the best head on the validation set. Here no head is trained on the part of train
    that decides; the chosen one is not trained again on it, which would cost another pass.
    """
    settings, device = context.settings, context.device
    grids: Any = create_heads(context).to(device)  # a grid of heads for each choice of tokens
    optimizer = sgd(grids, settings, settings.grid, settings.batch_size)
    encode = encoder(context.backbone, settings.encoding(device.type))
    with context.cost.phase("train"):
        advice = "give one with --set random_crops=false --set learning_rates=0.1"
        iterations, held_out = train_heads(context, grids, optimizer, encode, advice)
    features, labels = encode_split(context, "train", held_out), targets(context, "train")
    samples = Samples(features, labels[held_out], len(context.data.classes))
    candidates: list[Candidate[RateAndDecay]] = []
    for heads in grids:
        candidates += evaluate_grid(heads, settings.grid, samples, device)
    metric = metric_of(labels)
    log_scores(context.log, metric, candidates, iterations)
    best, reason = select_candidate(candidates, metric, len(held_out))
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
    """Untrained heads; the initial weights of each, from N(0, 0.01²), depend on the seed and its
    own name alone."""
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
