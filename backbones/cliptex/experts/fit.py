"""One training loop for all experts that are trained here: a function of (seed, step), resumable,
guarded."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.base import state_sha256
from backbones.cliptex.cost import count_flops
from backbones.cliptex.data.augment import (
    random_geometry,
    warp_classes,
    warp_depth,
    warp_images,
    warp_normals,
)
from backbones.cliptex.experts.data import ExpertData
from backbones.cliptex.protocols import Progress, RunLog
from backbones.cliptex.training.states import States
from common.errors import UserError
from common.files import content_key

SAVE_STEPS, SAVE_SECONDS = 500, 60.0
_WARP = {"seg": warp_classes, "depth": warp_depth, "normal": warp_normals}


@dataclass(frozen=True)
class FitSettings:
    """How an expert is trained.

    Attributes:
        epochs: passes over the training set.
        batch_size: images a step.
        lr: peak learning rate of AdamW; warmed up over the first tenth, then a cosine to 0.
        weight_decay: of AdamW.
        crop_scale: share of the image that a random crop keeps, by area.
        color_jitter: strength of the colour augmentation (0: none): what carries an expert over to
            another domain.
    """

    epochs: float = 30.0
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 1e-4
    crop_scale: tuple[float, float] = (0.5, 1.0)
    color_jitter: float = 0.4

    def __post_init__(self) -> None:
        if self.epochs <= 0 or self.batch_size < 1 or self.lr <= 0:
            raise UserError("epochs, batch_size and lr of an expert must be above 0")
        for name in (
            "size",
            "width",
            "fusion",
            "out_channels",
            "fc_out_channels",
        ):  # of those that have them
            if isinstance(value := getattr(self, name, 1), int) and value < 1:
                raise UserError(f"{name} of an expert must be at least 1")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise UserError("crop_scale must be low,high with 0 < low <= high <= 1")


@dataclass
class Spent:
    """What a training took, over all its processes if it was resumed (FLOPs: see ``cost``)."""

    steps: int = 0
    seconds: float = 0.0
    flops_per_step: float = 0.0

    @property
    def flops(self) -> float:
        return self.steps * self.flops_per_step


@dataclass(frozen=True)
class FitRun:
    """One training: where curves and progress go, its seed, its device, and the folder that its
    state is saved to every ``SAVE_STEPS`` steps and every minute, and resumed from."""

    log: RunLog
    progress: Progress
    seed: int = 0
    device: torch.device | str = "cpu"
    state: Path | None = None


def fit(
    model: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    data: ExpertData,
    settings: FitSettings,
    run: FitRun,
) -> Spent:
    """``optimise`` on dense targets, augmented together with their images. ``loss_of``: (augmented
    images (B, 3, S, S) float in [0, 1], their target) → scalar loss."""

    def loss_at(step: int) -> Tensor:
        images, target = batch(data, settings, run.seed, step)
        return loss_of(images.to(run.device), target.to(run.device))

    return optimise(model, loss_at, data, settings, run)


def optimise(
    model: nn.Module,
    loss_at: Callable[[int], Tensor],
    data: ExpertData,
    settings: FitSettings,
    run: FitRun,
) -> Spent:
    """Train ``model`` in place and return what it took: AdamW with warm-up and cosine, clipped
    gradients. ``loss_at``: step → scalar loss of that step's batch, a function of the seed and the
    step.

    Raises:
        UserError: the loss became NaN or infinite; says at which step.
    """
    model.to(run.device).train()
    steps = max(1, round(settings.epochs * len(data) / settings.batch_size))
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay)
    states, spent = None, Spent()
    if run.state is not None:
        key = content_key(
            [repr(settings), run.seed, data.fingerprint, state_sha256(model.state_dict())]
        )
        states = States(run.state, key)
        if found := states.newest():
            model.load_state_dict(found["model"])
            optimizer.load_state_dict(found["optimizer"])
            spent = Spent(**found["spent"])
    began, earlier = time.monotonic(), spent.seconds
    saved = began

    value = math.nan

    def backward(step: int) -> None:
        nonlocal value
        loss = loss_at(step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UserError(
                f"the loss of the {data.task} expert is not finite at step {step + 1}; try a lower"
                " lr (--set lr=…)"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()

    run.progress.start(f"training the {data.task} expert", steps)
    run.progress.advance(spent.steps)
    try:
        for step in range(spent.steps, steps):
            rate = settings.lr * min(
                (step + 1) / max(1, 0.1 * steps), 0.5 * (1 + math.cos(math.pi * step / steps))
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(
                run.seed * 1_000_003 + step
            )  # dropout, sampling and the like: the same after a resume
            if spent.flops_per_step:
                backward(step)
            else:
                spent.flops_per_step = float(count_flops(partial(backward, step)))
            nn.utils.clip_grad_norm_([*decayed, *others], 5.0)
            optimizer.step()
            spent.steps, spent.seconds = step + 1, earlier + time.monotonic() - began
            run.progress.advance()
            if (step + 1) % max(1, steps // 200) == 0:
                run.log.log_metrics(
                    {f"expert/{data.task}/loss": value, f"expert/{data.task}/lr": rate}, step + 1
                )
            if states and ((step + 1) % SAVE_STEPS == 0 or time.monotonic() - saved > SAVE_SECONDS):
                saved = time.monotonic()
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "spent": vars(spent),
                }
                states.save(step + 1, state)
    finally:
        if states:
            states.finish()
    model.eval()
    if states:
        states.remove()
    return spent


def draw(count: int, settings: FitSettings, seed: int, step: int) -> tuple[np.ndarray, int]:
    """Indices of a step's batch out of ``count``, and the epoch it begins in: each epoch is one
    shuffle."""
    draws = np.arange(step * settings.batch_size, (step + 1) * settings.batch_size)
    epochs, places = np.divmod(draws, count)
    orders = {
        epoch: np.random.default_rng([seed, int(epoch)]).permutation(count)
        for epoch in np.unique(epochs)
    }
    return np.array(
        [orders[epoch][place] for epoch, place in zip(epochs, places, strict=True)]
    ), int(epochs[0])


def batch(data: ExpertData, settings: FitSettings, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """The augmented batch of a step: images (B, 3, S, S) float in [0, 1] and their targets, a
    function of the seed."""
    indices, epoch = draw(len(data), settings, seed, step)
    geometry = random_geometry(
        indices.tolist(),
        [(data.size, data.size)] * len(indices),
        seed=seed,
        epoch=epoch,
        scale=settings.crop_scale,
    )
    read, truth = data.read(indices.tolist())
    images = warp_images(read, geometry, data.size) / 255
    target = _WARP[data.task](list(truth), geometry, data.size)
    return jitter(images, settings.color_jitter, np.random.default_rng([seed, 1, step])), target


def jitter(images: Tensor, strength: float, random: np.random.Generator) -> Tensor:
    """Random brightness, contrast, saturation, colour cast, blur and noise for each of (N, 3, H, W)
    in [0, 1]."""
    if strength == 0:
        return images
    count = len(images)

    def factor(*shape: int) -> Tensor:
        return torch.from_numpy(
            np.exp(strength * random.uniform(-1, 1, (count, *shape, 1, 1))).astype(np.float32)
        )

    images = images * factor(1) * factor(3).sqrt()
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * torch.from_numpy(
        random.uniform(1 - 2 * strength, 1 + strength, (count, 1, 1, 1)).astype(np.float32)
    )
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * factor(1)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = torch.from_numpy((random.random((count, 1, 1, 1)) < 0.3).astype(np.float32))
    images = images + share * (blurred - images)
    noise = torch.from_numpy(random.standard_normal(images.shape, np.float32))
    level = torch.from_numpy((0.05 * strength * random.random((count, 1, 1, 1))).astype(np.float32))
    return (images + level * noise).clamp(0, 1)
