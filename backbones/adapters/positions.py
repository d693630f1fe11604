"""Position embeddings of open_clip's towers at other sizes than they were trained at."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.func import functional_call


def grid_of(visual: VisionTransformer, images: Tensor) -> tuple[int, int]:
    """(rows, columns) of patches of ``images``."""
    return images.shape[-2] // visual.patch_size[0], images.shape[-1] // visual.patch_size[1]


def embed_patches(visual: VisionTransformer, images: Tensor) -> Tensor:
    """What enters the transformer: (N, 1 + rows·columns, width), class token first.

    As open_clip's ``_embeds``, with the position embedding interpolated to the size of ``images``.
    """
    tokens = visual.conv1(images).flatten(2).transpose(1, 2)
    first = visual.class_embedding.to(tokens.dtype).expand(len(tokens), 1, -1)
    position = resize_position(
        visual.positional_embedding, visual.grid_size, grid_of(visual, images)
    )
    tokens = torch.cat([first, tokens], dim=1) + position.to(tokens.dtype)
    return visual.ln_pre(visual.patch_dropout(tokens))


def resize_position(embedding: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Position embedding (1 + rows·columns, width) of an ``old`` grid for a ``new`` one, first
    token kept.

    Bicubic with antialiasing, as open_clip's ``resize_pos_embed``; unchanged where the sizes agree.
    """
    if old == new:
        return embedding
    grid = embedding[1:].T.reshape(1, -1, *old).float()
    # one direction at a time, always along the last axis: torch's antialiased bicubic is wrong
    # along the other one when the result is a single column wide
    grid = _resize_width(_resize_width(grid, new[1]).transpose(2, 3), new[0]).transpose(2, 3)
    return torch.cat([embedding[:1], grid[0].flatten(1).T.to(embedding.dtype)])


def _resize_width(grid: Tensor, width: int) -> Tensor:
    size = (grid.shape[-2], width)
    return F.interpolate(
        grid.contiguous(), size=size, mode="bicubic", antialias=True, align_corners=False
    )


def attention_pool(pool: Any, features: Tensor) -> Tensor:
    """CLIP ResNet's attention pooling of (N, C, h, w) features, position embedding interpolated to
    (h, w)."""
    side = math.isqrt(len(pool.positional_embedding) - 1)
    position = resize_position(
        pool.positional_embedding, (side, side), (features.shape[-2], features.shape[-1])
    )
    return functional_call(pool, {"positional_embedding": position}, (features,))
