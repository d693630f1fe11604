"""The interface of a backbone: frozen multi-scale feature maps, an image embedding, perhaps a text
embedding, and its identity. Around it: images as a backbone takes them, and the maps that a probe
needs (a pyramid from one stride, or one stride from several).
"""

from __future__ import annotations

import copy
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from itertools import chain
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from backbones.weights import Weights
from cliptex_common.errors import UserError
from cliptex_common.files import content_key
from cliptex_common.images import to_rgb
from cliptex_common.process import versions
from cliptex_common.settings import one_line_errors, settings_dataclass


@settings_dataclass
class DataConfig:
    """How images are prepared; stored with the weights.

    Attributes:
        size: (height, width) in pixels the weights were trained at; probes may feed other sizes.
        mean, std: per-channel RGB statistics of images scaled to [0, 1].
        interpolation: ``bilinear`` or ``bicubic``, for resizing whole images.
        crop_pct: share of the resized short side that the centre crop keeps when a whole image is
            embedded.
        squash: whole images are resized to ``size`` without keeping their shape (SigLIP), so
            nothing is cropped.
        layers: indices, from 0, of the blocks (ViT) or stages (CNN) that the feature maps are read
            from, shallow to deep. Adapters and ``read_tokens`` count like this; settings and
            ``at_layers`` count from 1.
    """

    size: tuple[PositiveInt, PositiveInt]
    mean: tuple[float, float, float]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    crop_pct: PositiveFloat = 1.0
    squash: bool = False
    layers: tuple[int, ...] = ()

    def with_layers(self, layers: Sequence[int]) -> DataConfig:
        return replace(self, layers=tuple(layers))


DataConfig.__init__ = one_line_errors()(DataConfig.__init__)  # type: ignore[method-assign]


class Backbone(nn.Module, ABC):
    """A frozen image encoder, always in eval mode and without gradients. Construct it through
    ``backbones.create``.

    Attributes:
        name: its name in the registry (``clip``, ``timm/resnet18`` …).
        model: the network; its state dict is what weights files hold.
        architecture: the library's own name of the architecture (``timm/resnet18``,
            ``open_clip/ViT-B-16-quickgelu``).
        channels: channels of each feature map, shallow to deep.
        strides: stride of each feature map with respect to the input, in pixels.
        divisor: the caller of ``forward`` pads heights and widths to a multiple of this.
        fixed_size: (height, width) in pixels of the only images it takes; None for any size.
        depth: number of layers (blocks of a ViT, stages of a CNN) that ``at_layers`` can read; 0 if
            it has only its own maps.
        embed_dim: length of the image embedding.
        has_text: whether ``encode_text`` works; ``has_dense_text``: whether ``encode_dense`` does.
        data: how images are prepared.
        weights: identity of the weights.
        model_config: what the architecture was built with, JSON-able, beyond its name.
        libraries: import names of the libraries that compute it; their versions are part of its
            identity.
        version: of the adapter's code; raise it if the same weights and settings give other
            numbers.
        token_blocks: number of blocks whose tokens ``read_tokens`` gives, of a plain ViT; else 0.
        origin: the plugin that it came from, if any, as of ``Registry.origin``.
        files: path → sha256 of those that decided its weights: the user's, one of a package, the
            revision of a repository in the hub's cache.
        summary: one line about what was found of a module that declares nothing; else ''.
    """

    name: str
    model: nn.Module
    architecture: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    divisor: int
    fixed_size: tuple[int, int] | None = None
    embed_dim: int
    depth: int = 0
    has_text: bool = False
    data: DataConfig
    weights: Weights
    model_config: Mapping[str, Any] = MappingProxyType({})
    libraries: tuple[str, ...] = ()
    version: int = 2
    token_blocks: int = 0
    origin: Mapping[str, str] = MappingProxyType({})
    files: Mapping[str, str] = MappingProxyType({})
    summary: str = ""

    @cached_property
    def is_plain(self) -> bool:
        """Whether all of its own layers have one stride, as those of a plain ViT; of views with
        other layers, too."""
        return len(set(self.strides)) == 1

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of ``images`` (N, 3, H, W; normalised RGB float; H and W multiples of
        ``divisor``).

        Returns one (N, channels[i], H / strides[i], W / strides[i]) float map for each i.
        """

    @abstractmethod
    def encode_image(self, images: Tensor) -> Tensor:
        """The global embedding, (N, embed_dim), not normalised to unit length."""

    def encode_features(self, images: Tensor) -> Tensor:
        """The image's features before they are projected to the space of texts, (N, D): what CLIP's
        authors trained linear classifiers on (Radford et al. 2021, appendix A.2). Without such a
        projection the embedding itself."""
        return self.encode_image(images)

    def encode_tokens(self, images: Tensor, blocks: int) -> list[tuple[Tensor, Tensor]]:
        """(class token (N, C), patch tokens (N, L, C)) after each of the last ``blocks`` blocks,
        through the final norm, as DINOv2's ``get_intermediate_layers``. Without a class token the
        mean of the patches is returned; without blocks the last feature maps are read.

        Raises:
            UserError: there are fewer blocks.
        """
        if self.token_blocks:
            self._check_blocks(blocks, self.token_blocks)
            return self.read_tokens(images, range(self.token_blocks - blocks, self.token_blocks))
        maps = self(images)
        self._check_blocks(blocks, len(maps))
        patches = [each.flatten(2).transpose(1, 2) for each in maps[len(maps) - blocks :]]
        return [(each.mean(dim=1), each) for each in patches]

    def encode_layers(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(class token (N, C), feature map) of each layer that ``forward`` reads; without a class
        token the mean of the map."""
        if not self.token_blocks:
            return [(each.mean(dim=(2, 3)), each) for each in self(images)]
        grid = [side // self.divisor for side in images.shape[-2:]]
        return [
            (token, patches.transpose(1, 2).unflatten(2, grid).contiguous())
            for token, patches in self.read_tokens(images, self.data.layers)
        ]

    def read_tokens(self, images: Tensor, layers: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """(class token (N, C) or the mean of the patches, patch tokens (N, L, C)) after each of
        these blocks, through the final norm; where ``token_blocks`` is not 0. What an adapter
        implements: ``encode_tokens`` and ``encode_layers`` call it."""
        raise NotImplementedError

    def at_layers(self, layers: Sequence[int]) -> Backbone:
        """This backbone with the feature maps of other layers, by their numbers from 1 to
        ``depth``, shallow to deep. Weights are shared.

        Raises:
            UserError: there is no such layer.
        """
        # a view, as a copy, has this dictionary too: views of views are the backbone's own
        views: dict[tuple[int, ...], Backbone] = self.__dict__.setdefault("_views", {})
        layers = tuple(layers)
        if layers not in views:
            if min(layers) < 1:
                raise UserError(f"layer {min(layers)}: layers are numbered from 1 to {self.depth}")
            self._check_blocks(max(layers), self.depth)
            _ = self.is_plain  # cached before the copy, which keeps it whatever its own strides are
            view = copy.copy(self)
            view.data = self.data.with_layers([layer - 1 for layer in layers])
            device = next(chain(self.parameters(), self.buffers())).device
            # of sides that all maps divide, so that their strides are exact
            step = max(self.divisor, *self.strides)
            size = self.fixed_size or tuple(-(-side // step) * step for side in self.data.size)
            with torch.inference_mode():
                images = torch.zeros(1, 3, *size, device=device)
                maps = view(images)
            view.channels = tuple(each.shape[1] for each in maps)
            view.strides = tuple(images.shape[-1] // each.shape[-1] for each in maps)
            view.divisor = max(self.divisor, *view.strides)
            views[layers] = view
        return views[layers]

    def _check_blocks(self, requested: int, available: int) -> None:
        if requested > available:
            raise UserError(
                f"backbone {self.name!r} has {available} blocks or feature maps to read, not"
                f" {requested}; ask for fewer"
            )

    def check_size(self, images: Tensor) -> None:
        """Raises ``UserError`` if it does not take images (N, 3, H, W) of this size."""
        height, width = images.shape[-2:]
        if self.fixed_size is not None and self.fixed_size != (height, width):
            only_height, only_width = self.fixed_size
            raise UserError(
                f"{self.architecture} takes images of {only_height}×{only_width} only, not"
                f" {height}×{width}; set the task's image size to that, or choose another"
                " architecture"
            )

    @property
    def has_dense_text(self) -> bool:
        return False

    def encode_dense(self, images: Tensor) -> Tensor:
        """Each patch in the space of texts, (N, embed_dim, h, w), comparable with ``encode_text``
        by cosine.

        Raises:
            UserError: ``has_dense_text`` is False.
        """
        raise UserError(
            f"patch features of backbone {self.name!r} are not aligned with texts; choose one such"
            " as clip"
        )

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Text embeddings, (len(texts), embed_dim), comparable with ``encode_image`` by cosine.

        Raises:
            UserError: ``has_text`` is False.
        """
        raise UserError(f"backbone {self.name!r} has no text tower; choose one such as clip")

    def forget_copies(self) -> None:
        """Drop the copies of the network for other sizes of images; they are made again when they
        are needed, of its present weights."""
        if copies := vars(self).get("_sized"):
            copies.clear()

    def model_state(self) -> dict[str, Tensor]:
        """The network's own state dict, as ``save_checkpoint`` writes it; the identity has its
        digest."""
        return self.model.state_dict()

    def train(self, mode: bool = True) -> Backbone:
        """The backbone stays in eval mode whatever ``mode`` is."""
        return super().train(False)

    def freeze(self) -> Backbone:
        """Switch gradients off and go to eval mode; called once by ``backbones.create``."""
        self.requires_grad_(False)
        return self.eval()

    def identity(self) -> dict[str, Any]:
        """What determines its numbers: digest of the weights, configuration and version of the
        adapter, and versions of the libraries (not its name)."""
        return {
            # the weights do not show activations
            "architecture": self.architecture,
            "model_config": dict(self.model_config),
            "sha256": self.weights.sha256,
            "data": asdict(self.data),
            "adapter": {"version": self.version, **versions(*self.libraries)},
            **self.origin,
        }

    def key(self) -> str:
        """A short hash of ``identity()``."""
        return content_key(self.identity())


class DeferredBackbone:
    """Stands for a ``Backbone`` of which attributes are known: it is built when anything else is
    asked of it, so that a task whose features are stored imports and loads no model.

    Args:
        known: attribute → value, as of ``Backbone``.
        identity: as ``Backbone.identity`` gives it.
        build: builds it, on any device.
        device: where it computes.

    Raises (when it is built):
        UserError: from ``build``; or its identity is another one.
    """

    def __init__(
        self,
        known: Mapping[str, Any],
        identity: Mapping[str, Any],
        build: Callable[[], Backbone],
        device: torch.device,
    ) -> None:
        self._known, self._identity, self._build, self._device = known, identity, build, device

    def identity(self) -> dict[str, Any]:
        return dict(self._identity)

    @cached_property
    def built(self) -> Backbone:
        backbone = self._build()
        if content_key(backbone.identity()) != content_key(self._identity):
            raise UserError(
                f"the weights of {backbone.name} have changed since the run began; run the command"
                " again"
            )
        return backbone.to(self._device)

    def to(self, device: torch.device) -> DeferredBackbone:
        self._device = device
        if "built" in vars(self):
            self.built.to(device)
        return self

    def __getattr__(self, name: str) -> Any:
        known = self.__dict__.get("_known")
        if known is None or name.startswith("__"):  # of copies and pickles, which have nothing yet
            raise AttributeError(name)
        return known[name] if name in known else getattr(self.built, name)

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.built(images)


def state_sha256(state: dict[str, Tensor]) -> str:
    """Digest of a state dict: names, dtypes, shapes and bytes, in name order; the same on every
    device."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Preprocessing:
    """An image → (3, H, W) float32 at the backbone's own size, normalised.

    Args:
        device: of the pixels that ``normalise`` is given, usually.

    Attributes:
        resize: an RGB image → (3, H, W) uint8, resized and cropped.
    """

    def __init__(self, data: DataConfig, device: torch.device | None = None) -> None:
        self.data = data
        self.mean, self.std = (
            255 * torch.tensor(values, device=device).view(3, 1, 1)
            for values in (data.mean, data.std)
        )

    @cached_property
    def resize(self) -> Callable[[Image.Image], Tensor]:
        return resizing(self.data, self.data.interpolation)

    def __call__(self, image: Image.Image) -> Tensor:
        return self.normalise(self.resize(to_rgb(image)))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels (…, 3, H, W) from 0 to 255, of any type, as the backbone takes them."""
        centred = pixels.float() - self.mean.to(pixels.device)
        return centred.div_(self.std.to(pixels.device))


def resizing(data: DataConfig, interpolation: str) -> Callable[[Image.Image], Tensor]:
    """timm's evaluation transform: an image → its channels (C, H, W), in the image's own type.

    The image is resized so that the centre crop of ``data.size`` keeps the share ``crop_pct`` of
    the side that fits tighter. With ``squash`` it is resized to that size and changes its shape.
    """
    method, (height, width) = Image.Resampling[interpolation.upper()], data.size
    if data.squash:
        return lambda image: channels_first(image.resize((width, height), method))
    if height == width and data.crop_pct <= 1:
        short = math.floor(height / data.crop_pct)

        def crop(image: Image.Image) -> Tensor:
            sides = [int(short * side / min(image.size)) for side in image.size]
            left, top = (round((side - width) / 2) for side in sides)
            resized = image.resize((sides[0], sides[1]), method)
            return channels_first(resized.crop((left, top, left + width, top + height)))

        return crop
    from timm.data import create_transform  # slow to import

    return create_transform(
        (3, *data.size), interpolation=interpolation, crop_pct=data.crop_pct, normalize=False
    )


def channels_first(image: Image.Image) -> Tensor:
    """(C, H, W), in the image's own type."""
    return torch.from_numpy(np.array(image).reshape(image.height, image.width, -1)).permute(2, 0, 1)


def in_memory_format(images: Tensor, backbone: Backbone) -> Tensor:
    """``images`` as they are computed fastest: channels last, unless it is a plain ViT."""
    return images.contiguous(
        memory_format=torch.contiguous_format if backbone.is_plain else torch.channels_last
    )


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of NCHW maps."""

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SimpleFeaturePyramid(nn.Module):
    """The simple feature pyramid of ViTDet: every level from the backbone's last map alone.
    Trainable, part of a probe.

    Li, Mao, Girshick and He, "Exploring Plain Vision Transformer Backbones for Object Detection",
    ECCV 2022, section 3. For ``stride`` 16: stride 4 by two 2×2 deconvolutions of stride 2 with
    norm and GELU between, 8 by one, 16 as it is, 32 by 2×2 max-pooling; each then goes through a
    1×1 and a 3×3 convolution, each with norm.

    Args:
        in_channels: channels of the last map.
        out_channels: channels of every level.
        stride: of the last map, in pixels; levels lie at the powers of two of it that are nearest
            to ``out_strides``: a stride of 14 gives 3.5, 7, 14 and 28 for 4, 8, 16 and 32.
        out_strides: nominal strides of the levels, fine to coarse.
        norm: channels → normalisation layer for NCHW maps; the paper's is LayerNorm.

    Attributes:
        strides: the true strides of the levels, in pixels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        out_strides: Sequence[int] = (4, 8, 16, 32),
        norm: Callable[[int], nn.Module] = LayerNorm2d,
    ) -> None:
        super().__init__()
        steps = [round(math.log2(target / stride)) for target in out_strides]
        self.strides: tuple[float, ...] = tuple(stride * 2**step for step in steps)
        self.levels = nn.ModuleList(_level(in_channels, out_channels, step, norm) for step in steps)

    def forward(self, last: Tensor) -> tuple[Tensor, ...]:
        """(N, in_channels, h, w) → one (N, out_channels, h · stride / strides[i], w · stride /
        strides[i]) for each i.

        Levels coarser than the map round down, as max-pooling does.
        """
        return tuple(level(last) for level in self.levels)


def _level(
    in_channels: int, out_channels: int, step: int, norm: Callable[[int], nn.Module]
) -> nn.Sequential:
    """One level, ``2 ** step`` times coarser than the map."""
    layers: list[nn.Module] = []
    channels = in_channels
    for i in range(-step):
        if i:
            layers += [norm(channels), nn.GELU()]
        half = max(channels // 2, 1)
        layers.append(nn.ConvTranspose2d(channels, half, 2, stride=2))
        channels = half
    layers += [nn.MaxPool2d(2, stride=2) for _ in range(step)]
    layers += [
        nn.Conv2d(channels, out_channels, 1, bias=False),
        norm(out_channels),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        norm(out_channels),
    ]
    return nn.Sequential(*layers)


def resize_concat(maps: Sequence[Tensor], strides: Sequence[float], stride: float) -> Tensor:
    """Bring maps of several strides to one and stack their channels: (N, Σ channels, H / stride, W
    / stride).

    Bilinear without corner alignment. The target size is that of the map at ``stride`` where there
    is one, else the first map's size times ``strides[0] / stride``, rounded.
    """
    if stride in strides:
        height, width = maps[list(strides).index(stride)].shape[-2:]
    else:
        height, width = (round(side * strides[0] / stride) for side in maps[0].shape[-2:])
    size = (height, width)
    resized = [
        each
        if each.shape[-2:] == size
        else F.interpolate(each, size=size, mode="bilinear", align_corners=False)
        for each in maps
    ]
    return torch.cat(resized, dim=1)
