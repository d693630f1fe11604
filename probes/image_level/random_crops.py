"""Training of several heads at once, each with its own rates, on one frozen pass over fresh random
crops."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import (
    Compose,
    InterpolationMode,
    PILToTensor,
    RandomHorizontalFlip,
    RandomResizedCrop,
)

from cliptex_common.device import upload
from cliptex_common.errors import NonFiniteLoss
from cliptex_common.files import content_key, derive_seed
from cliptex_common.pacing import Pace
from probes.base import Context
from probes.image_level.classification import targets
from probes.image_level.encode import Encode, ImageViews
from probes.selection import stratified_split
from probes.training_state import load_state, save_state

log = logging.getLogger("cliptex.training")
SAVE_EVERY = 300.0  # seconds of training between two states, or more where they take long


def crop_transform(size: tuple[int, int]) -> Compose:
    """An image → a random crop of it (3, H, W) uint8, by torch's generator."""
    return Compose(
        [
            RandomResizedCrop(size, interpolation=InterpolationMode.BICUBIC),
            RandomHorizontalFlip(),
            PILToTensor(),
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
    training, held_out = stratified_split(labels, settings.holdout, context.seed, advice)
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
