"""Position embeddings of open_clip's towers at other sizes than they were trained at."""

from __future__ import annotations

import math
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from torch import Tensor, nn
from torch.nn.functional import interpolate


def set_image_size(visual: Any, size: tuple[int, int]) -> None:
    """Make an image tower take images of ``size`` (height, width), as open_clip's
    ``force_image_size`` does when it loads weights."""
    if isinstance(visual, TimmModel):
        visual.set_input_size(size)
    elif isinstance(visual, ModifiedResNet):
        pool = visual.attnpool
        side = math.isqrt(len(pool.positional_embedding) - 1)
        grid = (size[0] // 32, size[1] // 32)
        pool.positional_embedding = _resized(pool.positional_embedding, (side, side), grid)
    else:
        grid = (size[0] // visual.patch_size[0], size[1] // visual.patch_size[1])
        visual.positional_embedding = _resized(visual.positional_embedding, visual.grid_size, grid)
        visual.grid_size = grid


def _resized(embedding: Tensor, old: tuple[int, int], new: tuple[int, int]) -> nn.Parameter:
    return nn.Parameter(resize_position(embedding, old, new), requires_grad=False)


def resize_position(embedding: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Position embedding (1 + rows·columns, width) of an ``old`` grid for a ``new`` one; the first
    token stays.

    Bicubic with antialiasing, as open_clip's ``resize_pos_embed``.
    """
    if old == new:
        return embedding
    grid = embedding[1:].T.reshape(1, -1, *old).float()
    grid = interpolate(grid, size=new, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([embedding[:1], grid[0].flatten(1).T.to(embedding.dtype)])
