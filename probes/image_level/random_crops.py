"""Training of several heads at once on one frozen pass over fresh random crops; and ``linear``
classification by it: linear heads on the tokens of a frozen backbone.

DINOv2's linear classification of ImageNet (Oquab et al. 2024; ``dinov2/eval/linear.py`` of
facebookresearch/dinov2): heads on the class tokens of the last n blocks, without and with the mean
of the last patch tokens, one for each learning rate; ``RandomResizedCrop`` and a flip, SGD with
momentum, a cosine to zero, no weight decay. Weights start from N(0, 0.01²).

DINOv2 chooses the best head on the validation set. Here a part of train decides that no head was
trained on, so that ``val`` is used once. The chosen head is not trained again on that part, which
would cost another pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import (
    Compose,
    InterpolationMode,
    PILToTensor,
    RandomHorizontalFlip,
    RandomResizedCrop,
)

from backbones.base import DataConfig
from common.device import upload
from common.errors import NonFiniteLoss
from common.files import atomic_write, derive_seed
from common.pacing import Pace
from probes.base import Context, TaskResult
from probes.image_level.classification import score, targets
from probes.image_level.embeddings import encode_split
from probes.image_level.encode import Encode, Images, encode_batches, encoder, input_size
from probes.image_level.linear import (
    LinearHeads,
    Pair,
    Samples,
    Standardiser,
    cosine,
    evaluate_grid,
    sgd,
    train_step,
)
from probes.image_level.settings import LinearSettings
from probes.predictor import linear_head
from probes.selection import Candidate, log_scores, select, stratified_split

SAVE_EVERY = 300.0  # seconds of training between two states, or more where they take long


class RandomCrops(Images):
    """Random crops (3, H, W) uint8 without end: item k is the k-th crop that training draws.

    The images come in one shuffled order after the other. Order and crops depend on the seed and k
    alone, whatever process loads them and wherever training resumes.
    """

    def __init__(
        self, paths: Sequence[Path], size: tuple[int, int], data: DataConfig, seed: int
    ) -> None:
        super().__init__(paths, size, data)
        self.seed = seed
        self.transform = Compose(
            [
                RandomResizedCrop(size, interpolation=InterpolationMode.BICUBIC),
                RandomHorizontalFlip(),
                PILToTensor(),
            ]
        )
        self._order: tuple[int, list[int]] = (-1, [])

    def index(self, item: int) -> int:
        """The image of an item."""
        epoch, position = divmod(item, len(self.paths))
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(derive_seed("order", self.seed, epoch))
            self._order = epoch, torch.randperm(len(self.paths), generator=generator).tolist()
        return self._order[1][position]

    def __getitem__(self, item: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("crop", self.seed, item))
            return super().__getitem__(item)

    def path(self, item: int) -> str:
        return self.paths[self.index(item)]


def train_on_crops(
    context: Context,
    heads: nn.Module,
    optimizer: torch.optim.Optimizer,
    encode: Encode,
    training: Tensor,
) -> int:
    """Train heads for ``epochs`` of the settings, resuming from ``work_dir/heads.pt``; returns the
    number of iterations.

    Logs ``train/loss``, the mean of an epoch of the best head.

    Args:
        heads: what ``encode`` gives → the logits (N, C) of each head.
        encode: normalised images → what the heads read.
        training: indices of the images of train that they are trained on.
    Raises:
        NonFiniteLoss: every head diverged. A single one that diverges is not chosen.
    """
    data, labels = context.data, targets(context, "train")[training]
    paths = [data.root / data.samples["train"][index].image for index in training]
    settings, backbone, device = context.settings, context.backbone, context.device
    encoding = settings.encoding(device.type)
    crops = RandomCrops(paths, input_size(encoding.size, backbone), backbone.data, context.seed)
    epoch_length = settings.epoch_length or math.ceil(len(paths) / settings.batch_size)
    file, iterations = context.work_dir / "heads.pt", settings.epochs * epoch_length
    warmup = round(getattr(settings, "warmup", 0.0) * iterations)
    iteration, losses = 0, torch.zeros((), device=device)
    if file.is_file():
        # on the CPU, where AdamW counts its steps: it would wait for a count on the device
        state = torch.load(file, map_location="cpu", weights_only=True)
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        iteration, losses = state["iteration"], state["losses"].to(device)
    context.progress.start("training heads on random crops", iterations)
    context.progress.advance(iteration)
    size, saving = settings.batch_size, Pace(SAVE_EVERY)
    batches = [range(i * size, (i + 1) * size) for i in range(iteration, iterations)]
    features = encode_batches(crops, batches, backbone, encode, context, encoding)
    for items, inputs in zip(batches, features, strict=True):
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
            state = {"heads": heads.state_dict(), "optimizer": optimizer.state_dict()}
            with saving.timed(), atomic_write(file) as temporary:
                torch.save({**state, "iteration": iteration, "losses": losses}, temporary)
    return iterations


class TokenHeads(nn.ModuleList):
    """Grids of ``LinearHeads``, each on its own columns of the tokens."""

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """(N, D) → the logits (N, C) of each head."""
        return [logits for heads in self for logits in heads(tokens)]


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    settings: LinearSettings = context.settings
    device, labels = context.device, targets(context, "train")
    training, held_out = stratified_split(
        labels, settings.holdout, context.seed, "random_crops=false"
    )
    grids: Any = create_heads(context).to(device)
    with context.cost.phase("train"):
        iterations = train_on_crops(
            context,
            grids,
            sgd(grids, settings, settings.grid, settings.batch_size),
            encoder(context.backbone, settings.encoding(device.type)),
            training,
        )
    features = encode_split(context, "train", held_out)
    samples = Samples(features, labels[held_out], len(context.data.classes))
    candidates: list[Candidate[Pair]] = []
    for heads in grids:
        candidates += evaluate_grid(heads, settings.grid, samples, device)
    log_scores(context.log, "top1", candidates, iterations)
    best, reason = select(candidates, "top1", len(held_out))
    choice, number = divmod(candidates.index(best), len(settings.grid))
    val = encode_split(context, "val")
    with torch.no_grad():
        logits = [grids[choice](part.to(device))[number].cpu() for part in val.split(1024)]
    result = score(context, torch.cat(logits))
    result.head = linear_head(grids[choice], number, context)
    result.notes = [f"{best.name}: {reason}", "DINOv2 itself chooses the head on val"]
    return result


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
