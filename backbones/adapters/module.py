"""Any ``nn.Module`` of the user's as a backbone, for scripts and notebooks: its maps, their strides
and widths are measured."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from backbones.base import Backbone, DataConfig, Weights, state_sha256
from backbones.registry import Entry
from common.errors import UserError
from common.files import content_key

IMAGENET = DataConfig((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ModuleBackbone(Backbone):
    """A copy of ``module``, frozen.

    Args:
        module: called with (N, 3, H, W) normalised float images, it returns one feature map (N, C,
            h, w) or several, shallow to deep, each at a whole stride. Its ``encode_image(images)``,
            if it has one, returns the embedding (N, D); else that is the mean of the last map.
            ``encode_text(texts)``, if it has one, returns (len(texts), D).
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
        # what costs are kept by: one class may be built at several widths
        shapes = {name: list(value.shape) for name, value in self.module.state_dict().items()}
        self.model_config = {"shapes": content_key(shapes)}
        with contextlib.suppress(OSError, TypeError):  # written where Python keeps no source
            # the same weights in other code are another backbone
            self.model_config["code"] = content_key({"source": inspect.getsource(kind)})
        self.weights = Weights("a module in memory", state_sha256(self.module.state_dict()))
        self.has_text = hasattr(module, "encode_text")
        maps = self._measured()
        self.channels = tuple(each.shape[1] for each in maps)
        self.strides = tuple(data.size[0] // each.shape[2] for each in maps)
        self.divisor = max(self.strides)
        with torch.inference_mode():
            self.embed_dim = self.encode_image(torch.zeros(1, 3, *data.size)).shape[-1]

    def _measured(self) -> tuple[Tensor, ...]:
        height, width = self.data.size
        with torch.inference_mode():
            maps = self(torch.zeros(1, 3, height, width))
        for each in maps:
            told = tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__
            whole = (
                isinstance(each, Tensor)
                and each.ndim == 4
                and not (height % each.shape[2] or width % each.shape[3])
            )
            if not whole or height // each.shape[2] != width // each.shape[3]:
                raise UserError(
                    f"{self.name!r} must return feature maps (N, C, h, w) at whole strides of"
                    f" {height} × {width} images, not {told}; wrap it in a module that does"
                )
        return maps

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.module(images)
        return (maps,) if isinstance(maps, Tensor) else tuple(maps)

    def encode_image(self, images: Tensor) -> Tensor:
        encode = getattr(self.module, "encode_image", None)
        return encode(images) if encode else self(images)[-1].mean(dim=(2, 3))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return self.module.encode_text(texts) if self.has_text else super().encode_text(texts)  # type: ignore[operator]


def entry_of(module: nn.Module, name: str, data: DataConfig = IMAGENET) -> Entry:
    """A registry's entry that gives ``module`` again and again."""
    made = ModuleBackbone(module, name, data)
    return Entry(name, "a module in memory", "unknown", lambda request: copy.deepcopy(made))
