"""Which layers are read by default, and the tokens of plain ViTs."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from backbones.backbone import Backbone


class TokenBackbone(Backbone):
    """A plain ViT: feature maps are the patch tokens after the blocks read, through the model's own
    final norm, as DINOv2's ``get_intermediate_layers`` does. ``divisor`` is the patch size."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(each for _, each in self.encode_layers(images))

    def encode_image(self, images: Tensor) -> Tensor:
        return self.encode_tokens(images, 1)[0][0]

    @abstractmethod
    def read_tokens(self, images: Tensor, layers: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """See ``Backbone``."""


def with_mean(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Patch tokens with their mean as the class token."""
    return patches.mean(dim=1), patches


def evenly_spaced(depth: int, count: int = 4) -> tuple[int, ...]:
    """Indices of ``count`` evenly spaced blocks of ``depth``, the last one included: depth 12 gives
    (2, 5, 8, 11)."""
    count = min(count, depth)
    return tuple((i + 1) * depth // count - 1 for i in range(count))


def layers_of(strides: Sequence[int]) -> tuple[int, ...]:
    """The last layer of each stride 4, 8, 16, 32 of a pyramid; four evenly spaced blocks if there
    is one stride."""
    if len(set(strides)) == 1:
        return evenly_spaced(len(strides))
    last = {stride: layer for layer, stride in enumerate(strides)}
    return tuple(last[stride] for stride in (4, 8, 16, 32) if stride in last)


def gives_tokens(model: Any) -> bool:
    """Whether a timm model is a plain ViT, whose tokens can be read after each block."""
    strides = {layer["reduction"] for layer in model.feature_info}
    parameters = inspect.signature(model.forward_intermediates).parameters
    return len(strides) == 1 and "return_prefix_tokens" in parameters


def tokens_of(model: Any, images: Tensor, layers: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """``Backbone.read_tokens`` of a timm ViT."""
    outputs = model.forward_intermediates(
        images,
        indices=list(layers),
        return_prefix_tokens=True,
        norm=True,
        output_fmt="NLC",
        intermediates_only=True,
    )
    if getattr(model, "cls_token", None) is None:  # none, or only registers
        return [with_mean(each[0] if isinstance(each, tuple) else each) for each in outputs]
    return [(prefix[:, 0], patches) for patches, prefix in outputs]
