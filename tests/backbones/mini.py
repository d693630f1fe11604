"""A small CLIP of an invented architecture, as the mini suite trains one."""

from __future__ import annotations

import copy
from typing import Any

import torch

from backbones.adapters.open_clip import build_model
from backbones.backbone import DataConfig

CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
DATA = DataConfig(
    size=(64, 64),
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.4),
    interpolation="bilinear",
    layers=(0, 1),
)


def mini_clip(seed: int = 0, **changes: Any) -> torch.nn.Module:
    """An open_clip model of ``CONFIG``, randomly initialised, frozen."""
    torch.manual_seed(seed)
    return build_model(copy.deepcopy(CONFIG) | changes).eval().requires_grad_(False)
