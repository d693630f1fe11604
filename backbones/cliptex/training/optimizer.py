"""AdamW with a warm-up and a cosine, gradient clipping, the bound on CLIP's logit scale, and the moving average."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from backbones.cliptex.recipes import Recipe
from backbones.cliptex.training.models import Towers

MAX_LOGIT_SCALE = math.log(100)


def build_optimizer(towers: Towers, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) in four groups: towers and heads, with and without decay.

    No decay for anything of fewer than two dimensions (norms, biases, logit scale), position and class embeddings.
    """
    clip: Any = towers.clip
    undecayed = clip.no_weight_decay() if hasattr(clip, "no_weight_decay") else set()
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in towers.named_parameters():
        if not parameter.requires_grad:
            continue
        head = name.startswith("heads.")
        plain = parameter.ndim < 2 or name.removeprefix("clip.") in undecayed
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
    )


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Learning rate of ``step`` (0-based) of ``steps``: linear from lr/warm-up steps to lr, then half a cosine to 0."""
    warm = round(recipe.warmup * steps)
    if step < warm:
        return recipe.lr * (step + 1) / warm
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def update(towers: Towers, optimizer: torch.optim.Optimizer, recipe: Recipe, lr: float) -> float:
    """Clip the gradient, step unless it is not finite, bound the logit scale at 100 (Radford et al. 2021, § 2.5).

    Returns:
        the gradient's norm before it was clipped.
    """
    parameters = [parameter for parameter in towers.parameters() if parameter.grad is not None]
    norm = nn.utils.clip_grad_norm_(parameters, recipe.grad_clip or math.inf).item()
    if math.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = lr * group["multiple"]
        optimizer.step()
        clip: Any = towers.clip
        with torch.no_grad():
            clip.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
    optimizer.zero_grad(set_to_none=True)
    return norm


@torch.no_grad()
def average(ema: dict[str, Tensor], model: nn.Module, decay: float, step: int) -> None:
    """Move the average towards the model; at first with a smaller decay, (1 + step) / (10 + step), to forget."""
    decay = min(decay, (1 + step) / (10 + step))
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            ema[name].lerp_(value, 1 - decay)
        else:
            ema[name].copy_(value)
