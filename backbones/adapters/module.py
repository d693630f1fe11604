"""Any ``nn.Module`` as a backbone: in memory, for scripts and notebooks, or of a file
(``--backbone net.py:Net``). What it returns is found, and checked, by a trial."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backbones.backbone import Backbone, DataConfig, Weights, state_sha256
from backbones.checkpoint import check_architecture, fit_state
from backbones.registry import Entry, Request
from cliptex_common.errors import UserError, error_summary
from cliptex_common.files import content_key

IMAGENET = DataConfig((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# number of axes of what cannot be read → what to do
ADVICE = {
    2: "return what it pools, and the pooled embedding beside it or by encode_image(images)",
    3: "leave registers out, or return maps",
}
# The share of their norm by which outputs of an image may differ, by rounding, between two passes,
# and between batches: networks that compute in bfloat16 sum in another order.
ANOTHER_PASS, ANOTHER_BATCH = 1e-4, 2e-2


class ModuleBackbone(Backbone):
    """A module, frozen.

    Args:
        module: called with (N, 3, H, W) normalised float images, it returns one feature map (N, C,
            h, w) or several, shallow to deep, each at an integer stride. Patch tokens (N, L, C),
            alone or after one class token, are a map, too. Beside the maps it may return the
            embedding (N, D); otherwise that is the class token, or the mean of the last map.
            Optional methods: ``encode_image(images)`` returns the embedding, ``encode_text(texts)``
            (len(texts), D).
        data: how images are prepared; by default the module's own attribute ``data``, else 224 ×
            224 with ImageNet's mean and deviation.

    Raises:
        UserError: it returns anything else, or no finite number; or its outputs depend on chance or
            on the other images of a batch, so that numbers would not be reproducible.
    """

    libraries = ("torch", "torchvision")

    def __init__(self, module: nn.Module, name: str, data: DataConfig | None = None) -> None:
        super().__init__()
        self.model: Any = module.cpu().float().eval()
        own = getattr(module, "data", None)
        self.name, self.data = name, data or (own if isinstance(own, DataConfig) else IMAGENET)
        kind = type(module)
        self.architecture = f"module/{kind.__module__}.{kind.__qualname__}"
        # one class may be built at several widths
        shapes = {name: list(value.shape) for name, value in self.model.state_dict().items()}
        self.model_config = {"shapes": content_key(shapes)}
        with contextlib.suppress(OSError, TypeError):  # no source, as in a REPL
            # the same weights in other code are another backbone
            self.model_config["code"] = content_key({"source": inspect.getsource(kind)})
        self.weights = Weights("a module in memory", state_sha256(self.model.state_dict()))
        self.has_text = hasattr(module, "encode_text")
        with torch.inference_mode():
            images = _trial_images(self.data.size)
            levels, embeddings = _split(self.model(images[:1]))
            # ``None`` where nothing is returned
            self.strides = tuple(map(self._stride, levels or embeddings or [None]))
            self.level_strides = self.strides  # those of a view with other layers stay all
            _, embedding = self._read(images[:1])
            source = "the mean of the last map" if embedding is None else "the class token"
            if hasattr(module, "encode_image"):
                source = "by its encode_image"
            elif len(embeddings) > 1:
                raise UserError(
                    f"{name!r} returns {len(embeddings)} tensors (N, D); define"
                    " encode_image(images), which returns the embedding"
                )
            elif embeddings:
                source = "returned beside them"
            *maps, embedding = self._try(images)
        self.depth, self.divisor = len(maps), max(self.strides)
        self.channels, self.embed_dim = tuple(each.shape[1] for each in maps), embedding.shape[1]
        channels, strides = (", ".join(map(str, each)) for each in (self.channels, self.strides))
        self.summary = (
            f"{name}: {self.depth} feature map{'s'[: self.depth > 1]} (channels {channels}; strides"
            f" {strides}), embedding of {self.embed_dim} ({source})"
        )

    def _stride(self, level: Any) -> int:
        """The stride of a feature map or of patch tokens, in pixels."""
        height, width = self.data.size
        shape: Any = tuple(level.shape) if isinstance(level, Tensor) else ()
        for stride in range(1, min(height, width) + 1):
            grid = (height // stride, width // stride)
            is_map = shape[2:] == grid
            is_tokens = len(shape) == 3 and shape[1] - math.prod(grid) in (0, 1)
            if (is_map or is_tokens) and height % stride == width % stride == 0:
                return stride
        advice = ADVICE.get(len(shape), "wrap it in a module that does")
        raise UserError(
            f"{self.name!r} must return feature maps (N, C, h, w), or patch tokens (N, L, C) alone"
            f" or after one class token, at integer strides of {height} × {width} images, not"
            f" {shape or type(level).__name__}; {advice}"
        )

    def _try(self, images: Tensor) -> list[Tensor]:
        """The outputs of the first of two images, if they can be used and reproduced."""
        alone, batch = self._outputs(images[:1]), self._outputs(images)
        difference = _difference(alone, [each[:1] for each in batch])
        if difference <= ANOTHER_PASS:
            return alone
        by_chance = _difference(batch, self._outputs(images))
        if by_chance > ANOTHER_PASS:
            raise UserError(
                f"{self.name!r} returns something else for the same images at another pass (by"
                f" {by_chance:.2g} of its norm), so its numbers could not be reproduced; switch off"
                " dropout or noise in eval mode"
            )
        if difference > ANOTHER_BATCH:
            raise UserError(
                f"{self.name!r} returns something else for an image in a batch than alone (by"
                f" {difference:.2g} of its norm), so its numbers would depend on the batch; let"
                " BatchNorm use its running statistics, and no image see the others"
            )
        return alone

    def _outputs(self, images: Tensor) -> list[Tensor]:
        """All maps, and the embedding. Raises ``UserError`` if one cannot be used."""
        maps, embedding = self._read(images)
        for level in maps:
            self._check(level, len(images))
        if hasattr(self.model, "encode_image"):
            embedding = self.model.encode_image(images)
            if not isinstance(embedding, Tensor) or embedding.ndim != 2:
                raise UserError(
                    f"{self.name!r}: encode_image must return vectors (N, D), not"
                    f" {_describe(embedding)}"
                )
        embedding = self._embed(maps, embedding)
        self._check(embedding, len(images))
        return [*maps, embedding]

    def _check(self, output: Tensor, count: int) -> None:
        if len(output) != count or not output.is_floating_point():
            raise UserError(
                f"{self.name!r} must return floating-point numbers of each image, not"
                f" {_describe(output)} of {count} image{'s'[: count > 1]}"
            )
        if not output.isfinite().any():
            raise UserError(
                f"{self.name!r} returns NaN or infinity alone, in {_describe(output)}; check its"
                " weights"
            )

    def _read(self, images: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Feature maps, and the embedding that is returned beside them, else the class token."""
        levels, embeddings = _split(self.model(images))
        maps, token = [], None
        for level, stride in zip(levels, self.level_strides, strict=True):
            if level.ndim == 3:
                grid = [side // stride for side in images.shape[-2:]]
                count = math.prod(grid)
                token = level[:, 0] if level.shape[1] > count else None
                level = level[:, -count:].transpose(1, 2).unflatten(2, grid).contiguous()
            maps.append(level)
        return maps, embeddings[0] if embeddings else token

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps, _ = self._read(images)
        return tuple(maps[layer] for layer in self.data.layers or range(len(maps)))

    def encode_image(self, images: Tensor) -> Tensor:
        if hasattr(self.model, "encode_image"):
            return self.model.encode_image(images)
        return self._embed(*self._read(images))

    def _embed(self, maps: Sequence[Tensor], embedding: Tensor | None) -> Tensor:
        if embedding is not None:
            return embedding
        return maps[self.data.layers[-1] if self.data.layers else -1].mean(dim=(2, 3))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return self.model.encode_text(texts) if self.has_text else super().encode_text(texts)


def _trial_images(size: tuple[int, int]) -> Tensor:
    """Two images, normalised, of different means and contrasts, as batch statistics see them."""
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    contrast, mean = torch.tensor([[1.0, 0.3], [0.0, 1.0]]).view(2, 2, 1, 1, 1)
    return images * contrast + mean


def _difference(outputs: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The largest difference of two outputs, as a share of the norm of the first."""
    shares = []
    for pair in zip(outputs, others, strict=True):
        one, other = (torch.nan_to_num(each.float(), 0.0, 0.0, 0.0) for each in pair)
        shares.append(float((one - other).norm() / one.norm().clamp_min(1e-12)))
    return max(shares)


def _describe(value: Any) -> str:
    """Shape and type of a tensor; the class of anything else."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"


def _split(outputs: Any) -> tuple[list[Any], list[Tensor]]:
    """Maps or tokens, and embeddings (N, D), of what a forward pass returned."""
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    elif not isinstance(outputs, list | tuple):
        outputs = [outputs]
    embeddings = [each for each in outputs if isinstance(each, Tensor) and each.ndim == 2]
    levels = [each for each in outputs if each is not None and getattr(each, "ndim", 0) != 2]
    return levels, embeddings


def entry_of(module: nn.Module, name: str, data: DataConfig | None = None) -> Entry:
    """A registry entry that builds copies of ``module``."""
    backbone = ModuleBackbone(copy.deepcopy(module), name, data)
    return Entry(name, "a module in memory", "unknown", lambda request: copy.deepcopy(backbone))


def build(request: Request) -> Backbone:
    """What a class or function of a file builds: a ``Backbone``, or another module. Without weights
    it is the same network in all runs, unless the name begins with ``random/``.

    Raises:
        UserError: it cannot be built or is no module, or the weights do not fit it.
    """
    plugin, checkpoint = request.settings["plugin"], request.checkpoint
    architecture = f"module/{request.settings['call']}"
    if not request.random:
        torch.manual_seed(0)
    try:
        module = request.settings["build"]()
        if not isinstance(module, nn.Module):
            raise UserError(
                f"{request.name} is of type {type(module).__name__}; name what builds an nn.Module"
            )
        is_backbone = isinstance(module, Backbone)
        model: Any = module.model if is_backbone else module
        if checkpoint is not None:
            check_architecture(checkpoint, architecture)
            fit_state(model, checkpoint, request.name)
        backbone: Any = module if is_backbone else ModuleBackbone(module, request.name)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{plugin.path}{plugin.line_of(error)}: {error_summary(error)}") from error
    if not is_backbone:
        backbone.data = backbone.data.with_layers(range(backbone.depth))
    backbone.architecture = architecture
    backbone.model_config = {**backbone.model_config, "code": plugin.sha256}
    backbone.libraries += request.settings["libraries"]
    backbone.weights = request.weights(backbone.model_state(), request.name)
    return backbone
