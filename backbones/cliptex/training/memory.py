"""The most memory that a training takes on its device, counted on fake tensors; see
``cliptex_common.live_bytes``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from backbones.adapters.open_clip import OpenClipBackbone
from backbones.cliptex.data.augment import centre_geometry
from backbones.cliptex.data.dataset import Batch, Labels
from backbones.cliptex.tasks import find_task
from backbones.cliptex.training.models import CLIPWithHeads
from backbones.cliptex.training.optimizer import build_optimizer
from backbones.cliptex.training.recipes import Recipe
from backbones.cliptex.training.step import TrainStep
from backbones.cliptex.training.train import build_heads, label_side
from backbones.cliptex.training.trainer import copy_buffers
from cliptex_common.live_bytes import counting, fake_copy, real_tensors

CPU = torch.device("cpu")


def training_peak(
    recipe: Recipe,
    start: OpenClipBackbone,
    labels: Labels | None,
    device: torch.device,
    processes: int = 1,
) -> int:
    """Bytes of two steps of a process: weights, gradients, optimizer, moving average, activations.

    Args:
        start: the initial weights.
        device: that is planned for; it need not exist.
    """
    recipe = recipe.with_precision(device)
    size = label_side(recipe, start)
    shapes = _target_shapes(recipe, size)
    with counting(device) as counter:
        clip = fake_copy(start.model)
        model = CLIPWithHeads(clip, start.data.layers, build_heads(recipe, start, labels))
        optimizer = build_optimizer(model, recipe.lr, recipe.weight_decay)
        average = ModelEmaV3(clip, recipe.ema) if recipe.ema else None
        step = TrainStep(model, recipe, size, CPU)
        count = recipe.batch_size // processes
        for _ in range(2):
            buffers = copy_buffers(model)
            step.backward(_batch(count, start, shapes), norms=True)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average:
                average.update(clip)
        del buffers
        return counter.peak


def _target_shapes(recipe: Recipe, size: int) -> Mapping[str, Tensor]:
    """Task → the target of one image."""
    geometry = centre_geometry([(size, size)])
    tasks = [find_task(name) for name in recipe.tasks]
    return {task.name: task.warp([task.missing], geometry, size) for task in tasks}


def _batch(count: int, start: OpenClipBackbone, targets: Mapping[str, Tensor]) -> Batch:
    images = torch.empty(count, 3, *start.data.size, dtype=torch.uint8).float()
    with real_tensors():
        length = start.tokenizer(["a photo"]).shape[1]
    return Batch(
        images.sub_(0.5).div_(0.5),
        torch.empty(count, length, dtype=torch.int64),
        {
            name: torch.empty(count, *target.shape[1:], dtype=target.dtype)
            for name, target in targets.items()
        },
    )
