"""Which layers are read, when nobody says, and the tokens of a timm ViT."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor


def evenly_spaced(depth: int, count: int = 4) -> tuple[int, ...]:
    """Indices of ``count`` evenly spaced blocks of ``depth``, the last one included: depth 12 gives
    (2, 5, 8, 11)."""
    count = min(count, depth)
    return tuple((i + 1) * depth // count - 1 for i in range(count))


def layers_of(strides: Sequence[int]) -> tuple[int, ...]:
    """The last layer of each stride 4, 8, 16, 32 of a pyramid; four evenly spaced blocks where
    there is one stride."""
    if len(set(strides)) == 1:
        return evenly_spaced(len(strides))
    return tuple(
        max(i for i, s in enumerate(strides) if s == stride)
        for stride in (4, 8, 16, 32)
        if stride in strides
    )


def gives_tokens(model: Any) -> bool:
    """Whether a timm model is a plain ViT, whose tokens can be read after each block."""
    one_stride = len({layer["reduction"] for layer in model.feature_info}) == 1
    return (
        one_stride
        and "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters
    )


def tokens_of(model: Any, images: Tensor, blocks: int) -> list[tuple[Tensor, Tensor]]:
    """``Backbone.encode_tokens`` of a timm ViT."""
    layers = model.forward_intermediates(
        images,
        indices=blocks,
        return_prefix_tokens=True,
        norm=True,
        output_fmt="NLC",
        intermediates_only=True,
    )
    if getattr(model, "cls_token", None) is None:  # there is none, or only registers
        patches = [layer[0] if isinstance(layer, tuple) else layer for layer in layers]
        return [(each.mean(dim=1), each) for each in patches]
    return [(prefix[:, 0], patches) for patches, prefix in layers]
