"""Training an expert on images with dense ground truth: augmentation and loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.base import state_sha256
from backbones.cliptex.cost import count_flops
from backbones.cliptex.data.augment import random_geometry, warp_images
from backbones.cliptex.data.prefetch import computed_ahead
from backbones.cliptex.experts.base import FitSettings
from backbones.cliptex.experts.data import ExpertData
from backbones.cliptex.tasks import find_task
from backbones.cliptex.training.distributed import DistContext
from backbones.cliptex.training.optimizer import build_optimizer
from backbones.cliptex.training.trainer import (
    TrainContext,
    Trainer,
    TrainPlan,
    copy_buffers,
    restore_buffers,
)
from cliptex_common.device import upload
from cliptex_common.files import content_key

Batch = tuple[Tensor, Tensor]


class ExpertTrainer(Trainer):
    """Trains an expert on dense targets, augmented together with their images.

    Args:
        loss_of: (augmented images (B, 3, S, S) float in [0, 1], their target) → scalar loss.
    """

    advice = "try a lower lr (--set lr=…)"

    def __init__(
        self,
        model: nn.Module,
        loss_of: Callable[[Tensor, Tensor], Tensor],
        data: ExpertData,
        settings: FitSettings,
        context: TrainContext,
        seed: int,
    ) -> None:
        model.to(context.device).train()
        digest = state_sha256(model.state_dict())
        plan = TrainPlan(
            name=f"the {data.task} expert",
            key=content_key([repr(settings), seed, data.fingerprint, digest]),
            seed=seed,
            steps=max(1, round(settings.epochs * len(data) / settings.batch_size)),
            batch_size=settings.batch_size,
            grad_clip=5.0,
        )
        optimizer = build_optimizer(model, settings.lr, settings.weight_decay)
        process = DistContext(0, 1, torch.device(context.device))
        super().__init__(model, optimizer, plan, context, process)
        self.prefix = f"expert/{data.task}"
        self.loss_of, self.data, self.settings = loss_of, data, settings

    def fit(self) -> dict[str, float]:
        """Train to the end; returns the cost, see ``Trainer.cost``."""
        self.run()
        self.model.eval()
        self.states.remove()
        return self.cost()

    def batches(self, start: int) -> Iterator[Batch]:
        def load(step: int) -> Batch:
            return augmented_batch(self.data, self.settings, self.plan.seed, step)

        device, threads = self.process.device, min(1, self.context.workers)
        for images, target in computed_ahead(load, range(start, self.plan.steps), threads):
            yield upload(images, device), upload(target, device)

    def rate(self, step: int) -> float:
        steps = self.plan.steps
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        return self.settings.lr * min((step + 1) / max(1, 0.1 * steps), cosine)

    def backward(self, batch: Batch, norms: bool = False) -> tuple[dict[str, Tensor], dict]:
        loss = self.loss_of(*batch)
        loss.backward()
        return {"loss": loss.detach()}, {}

    def parameters(self) -> Iterator[nn.Parameter]:
        return (p for group in self.optimizer.param_groups for p in group["params"])

    def flops(self, batch: Batch) -> float:
        buffers = copy_buffers(self.model)
        flops = count_flops(lambda: self.backward(batch))
        self.optimizer.zero_grad(set_to_none=True)
        restore_buffers(self.model, buffers)
        return float(flops)


def augmented_batch(data: ExpertData, settings: FitSettings, seed: int, step: int) -> Batch:
    """Images (B, 3, S, S) float in [0, 1] and their targets: a function of seed and step."""
    positions = np.arange(step * settings.batch_size, (step + 1) * settings.batch_size)
    epochs, offsets = np.divmod(positions, len(data))
    orders = {
        epoch: np.random.default_rng([seed, int(epoch)]).permutation(len(data))
        for epoch in np.unique(epochs)
    }
    indices = [int(orders[epoch][at]) for epoch, at in zip(epochs, offsets, strict=True)]
    geometry = random_geometry(
        indices,
        [(data.size, data.size)] * len(indices),
        seed=seed,
        epoch=epochs,
        scale=settings.crop_scale,
    )
    images, targets = data.read(indices)
    images = warp_images(images, geometry, data.size) / 255
    target = find_task(data.task).warp(list(targets), geometry, data.size)
    return jitter(images, settings.color_jitter, np.random.default_rng([seed, 1, step])), target


def jitter(images: Tensor, strength: float, random: np.random.Generator) -> Tensor:
    """Change each image's brightness, contrast, saturation, colour cast, blur and noise.

    ``images``: (N, 3, H, W) in [0, 1].
    """
    if strength == 0:
        return images
    count = len(images)

    def column(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.float32))

    def factor(channels: int) -> Tensor:
        return column(np.exp(strength * random.uniform(-1, 1, (count, channels, 1, 1))))

    images = images * factor(1) * factor(3).sqrt()
    grey = images.mean(1, keepdim=True)
    saturation = column(random.uniform(1 - 2 * strength, 1 + strength, (count, 1, 1, 1)))
    images = grey + (images - grey) * saturation
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * factor(1)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    is_blurred = column(random.random((count, 1, 1, 1)) < 0.3)
    images = images + is_blurred * (blurred - images)
    noise = torch.from_numpy(random.standard_normal(images.shape, np.float32))
    level = column(0.05 * strength * random.random((count, 1, 1, 1)))
    return (images + level * noise).clamp(0, 1)
