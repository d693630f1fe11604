"""Any ``nn.Module`` as a backbone, for scripts and notebooks: strides and widths of its maps are
measured."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backbones.backbone import Backbone, DataConfig, Weights, state_sha256
from backbones.registry import Entry
from cliptex_common.errors import UserError
from cliptex_common.files import content_key

IMAGENET = DataConfig((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ModuleBackbone(Backbone):
    """A copy of ``module``, frozen.

    Args:
        module: called with (N, 3, H, W) normalised float images, it returns one feature map (N, C,
            h, w) or several, shallow to deep, each at an integer stride. Optional methods:
            ``encode_image(images)`` returns the embedding (N, D), else the mean of the last map;
            ``encode_text(texts)`` returns (len(texts), D).
        data: how images are prepared; by default 224 × 224 with ImageNet's mean and deviation.

    Raises:
        UserError: it returns anything else.
    """

    libraries = ("torch", "torchvision")

    def __init__(self, module: nn.Module, name: str, data: DataConfig = IMAGENET) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).cpu().float().eval()
        self.name, self.data = name, data
        kind = type(module)
        self.architecture = f"module/{kind.__module__}.{kind.__qualname__}"
        # one class may be built at several widths
        shapes = {name: list(value.shape) for name, value in self.module.state_dict().items()}
        self.model_config = {"shapes": content_key(shapes)}
        with contextlib.suppress(OSError, TypeError):  # no source, as in a REPL
            # the same weights in other code are another backbone
            self.model_config["code"] = content_key({"source": inspect.getsource(kind)})
        self.weights = Weights("a module in memory", state_sha256(self.module.state_dict()))
        self.has_text = hasattr(module, "encode_text")
        with torch.inference_mode():
            images = torch.zeros(1, 3, *data.size)
            maps = self(images)
            self.depth = len(maps)
            self.strides = tuple(self._stride(each) for each in maps)
            self.channels = tuple(each.shape[1] for each in maps)
            self.divisor = max(self.strides)
            self.embed_dim = self.encode_image(images).shape[-1]

    def _stride(self, feature_map: Any) -> int:
        height, width = self.data.size
        shape: Any = type(feature_map).__name__
        if isinstance(feature_map, Tensor):
            shape = tuple(feature_map.shape)
            if len(shape) == 4:
                stride = height // shape[2]
                if (shape[2] * stride, shape[3] * stride) == (height, width):
                    return stride
        raise UserError(
            f"{self.name!r} must return feature maps (N, C, h, w) at integer strides of {height} ×"
            f" {width} images, not {shape}; wrap it in a module that does"
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.module(images)
        maps = (maps,) if isinstance(maps, Tensor) else tuple(maps)
        return tuple(maps[layer] for layer in self.data.layers) if self.data.layers else maps

    def encode_image(self, images: Tensor) -> Tensor:
        encode = getattr(self.module, "encode_image", None)
        return encode(images) if encode else self(images)[-1].mean(dim=(2, 3))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return self.module.encode_text(texts) if self.has_text else super().encode_text(texts)  # type: ignore[operator]


def entry_of(module: nn.Module, name: str, data: DataConfig = IMAGENET) -> Entry:
    """A registry entry that builds copies of ``module``."""
    backbone = ModuleBackbone(module, name, data)
    return Entry(name, "a module in memory", "unknown", lambda request: copy.deepcopy(backbone))
