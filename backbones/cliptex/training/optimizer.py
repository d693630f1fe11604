"""AdamW with a warm-up and a cosine, gradient clipping, the bound on CLIP's logit scale, and the
moving average of weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from backbones.cliptex.training.models import CLIPWithHeads
from backbones.cliptex.training.recipes import Recipe

MAX_LOGIT_SCALE = math.log(100)


def build_optimizer(towers: CLIPWithHeads, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) in four groups: towers and heads, with and without decay.

    No decay for anything of fewer than two dimensions (norms, biases, logit scale), nor for what a
    part of the model says of itself (``no_weight_decay``: position and class embeddings).
    """
    undecayed = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in towers.named_modules()
        if hasattr(module, "no_weight_decay")
        for name in module.no_weight_decay()
    }
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in towers.named_parameters():
        if not parameter.requires_grad:
            continue
        head = name.startswith("heads.")
        plain = parameter.ndim < 2 or name in undecayed
        groups.setdefault((head, plain), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": 0.0 if plain else recipe.weight_decay,
                "multiple": recipe.head_lr if head else 1.0,
            }
            for (head, plain), parameters in groups.items()
        ],
        lr=recipe.lr,
        betas=(recipe.beta1, recipe.beta2),
        eps=1e-6,
        fused=True if next(towers.parameters()).is_cuda else None,
    )


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Learning rate of ``step`` (0-based) of ``steps``: linear from lr/warm-up steps to lr, then
    half a cosine to 0."""
    warm = round(recipe.warmup * steps)
    if step < warm:
        return recipe.lr * (step + 1) / warm
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def update(
    towers: CLIPWithHeads, optimizer: torch.optim.Optimizer, recipe: Recipe, lr: float
) -> float:
    """Clip the gradient, step unless it is not finite, bound the logit scale at 100 (Radford et al.
    2021, § 2.5; SigLIP's, which has a bias beside it, is free); the gradient's norm before it was
    clipped."""
    parameters = [parameter for parameter in towers.parameters() if parameter.grad is not None]
    norm = nn.utils.clip_grad_norm_(parameters, recipe.grad_clip or math.inf).item()
    if math.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = lr * group["multiple"]
        optimizer.step()
        clip: Any = towers.clip
        if getattr(clip, "logit_bias", None) is None:
            with torch.no_grad():
                clip.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
    optimizer.zero_grad(set_to_none=True)
    return norm


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """A moving average of the model's weights and buffers; at first with a smaller decay, (1 +
    step) / (10 + step), to forget."""

    def average(mean: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
        if not value.is_floating_point():
            return value
        step = int(count)
        moved = torch.lerp(mean, value, 1 - min(decay, (1 + step) / (10 + step)))
        return torch.where(mean == value, value, moved)  # masks of attention hold -inf

    return AveragedModel(model, avg_fn=average, use_buffers=True)
