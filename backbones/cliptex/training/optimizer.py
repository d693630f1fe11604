"""AdamW whose norms, biases and embeddings are not decayed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def build_optimizer(
    model: nn.Module, lr: float, weight_decay: float, *, head_multiple: float = 1.0, **adamw: Any
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) in up to four groups: with and without decay, heads apart.

    No decay for anything of fewer than two dimensions (norms, biases, logit scale), nor for what a
    part of the model names in ``no_weight_decay`` (position and class embeddings).

    Args:
        head_multiple: the heads' learning rate as a multiple of ``lr``; each group has its own as
            ``multiple``.
        adamw: further arguments of ``torch.optim.AdamW``.
    """
    undecayed = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if hasattr(module, "no_weight_decay")
        for name in module.no_weight_decay()
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            multiple = head_multiple if name.startswith("heads.") else 1.0
            decay = 0.0 if parameter.ndim < 2 or name in undecayed else weight_decay
            groups.setdefault((multiple, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "multiple": multiple}
            for (multiple, decay), parameters in groups.items()
        ],
        lr=lr,
        fused=True,
        **adamw,
    )
