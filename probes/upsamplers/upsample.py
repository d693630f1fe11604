"""Feature maps at a finer resolution, with and without weights.

An upsampler makes an operator of the colours of images and of a map of them. It applies to the map,
and, where it is linear in it, as well to what a linear layer makes of the map: the outputs have
fewer channels.

One with weights is code of torch.hub at a commit, and a file of weights with its sha256. **This
runs the code of their repositories**, see ``backbones.adapters.torch_hub``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from backbones.adapters.torch_hub import load_entry
from backbones.backbone import Backbone
from cliptex_common.errors import UserError, error_summary
from cliptex_common.files import content_key, sha256_file
from probes.upsamplers.names import HUB_SOURCES, HubSource, hub_source

QUERIES = 4096  # pixels that attend at once, of AnyUp


def load_upsampler(name: str, backbone: Backbone) -> HubOperators:
    """A published upsampler, as a ``MakeOperator``.

    Raises:
        UserError: it has none for this backbone; code or weights cannot be fetched, or are not
            those that were published.
    """
    source = hub_source(name, backbone)
    if source is None:
        raise UserError(f"upsampler={name} has no weights for {backbone.weights.source}")
    repository = f"{source.repository}:{source.commit}"
    module, _ = load_entry(repository, source.entry, {}, f"upsampler={name}", False, pinned=True)
    module.load_state_dict(_weights(name, source))
    kind = {"naf": Naf, "loftup": LoftUp}.get(name, AnyUp)
    return kind(module).eval().requires_grad_(False)


def _weights(name: str, source: HubSource) -> dict[str, Tensor]:
    key = source.sha256 or content_key(source.weights, 64)
    path = Path(torch.hub.get_dir(), "checkpoints", f"{name}-{key[:16]}.pth")
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(source.weights, str(path), progress=False)
    except OSError as error:
        raise UserError(
            f"cannot fetch the weights of upsampler={name} ({error_summary(error)}); download"
            f" {source.weights} to {path}"
        ) from error
    if source.sha256 and sha256_file(path) != source.sha256:
        raise UserError(f"{path} is not the published file of upsampler={name}; delete it")
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def add_statistics(module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Give a module ``mean`` and ``std`` of colours, (3, 1, 1), which move with it and are not
    stored."""
    for name, values in (("mean", mean), ("std", std)):
        module.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)


class HubOperators(nn.Module):
    """A ``MakeOperator`` by a published module.

    Attributes:
        is_linear: whether its operators are those of ``UpsampledMaps``; else they upsample the
            given map, whatever they are called with.
    """

    is_linear = False
    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module: Any = module
        add_statistics(self, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)

    def forward(self, colours: Tensor, features: Tensor, size: Any) -> Any:
        """See ``MakeOperator``."""
        return self.operator((colours - self.mean) / self.std, features, size)

    def operator(self, guide: Tensor, features: Tensor, size: tuple[int, ...]) -> Any:
        """``guide``: images with ImageNet's mean and deviation."""
        raise NotImplementedError


class AnyUp(HubOperators):
    """AnyUp (Wimmer et al. 2025): attention over the cells of the map, whose values are the map
    itself. So it takes other values as well, and its weights sum to 1."""

    is_linear = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.attend: Any = self.module.cross_decode
        self.module.cross_decode = _QueriesAndKeys()

    def operator(self, guide: Tensor, features: Tensor, size: tuple[int, ...]) -> Any:
        queries, keys = self.module(guide, features, output_size=size)

        def apply(values: Tensor) -> Tensor:
            upsampled: Tensor = self.attend(queries, keys, values, q_chunk_size=QUERIES)
            # it caches a mask of pixels × cells for each size of an image
            self.attend.forward.__globals__["compute_attention_mask"].cache_clear()
            return upsampled

        return apply


class _QueriesAndKeys(nn.Module):
    def forward(self, queries: Tensor, keys: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return queries, keys


class Naf(HubOperators):
    """NAF (2025): neighbourhood attention, each head over its own channels."""

    def operator(self, guide: Tensor, features: Tensor, size: tuple[int, ...]) -> Any:
        return lambda _: self.module(guide, features, size)


class LoftUp(HubOperators):
    """LoftUp (Huang et al. 2025), which normalises channels first. One image at a time: it scales
    its guide, whose size is that of the result, over the batch."""

    def operator(self, guide: Tensor, features: Tensor, size: tuple[int, ...]) -> Any:
        guide = F.interpolate(guide, size, mode="bilinear")
        pairs = list(zip(features.split(1), guide.split(1), strict=True))
        return lambda _: torch.cat([self.module(*pair) for pair in pairs])


Size = tuple[int, int]  # height, width
Encode = Callable[[Tensor], Sequence[Tensor]]  # images → maps
Operator = Callable[[Tensor], Tensor]  # (N, K, h, w) → (N, K, H, W)
# colours (N, 3, height, width) in [0, 1], map (N, C, h, w), (H, W) → operator
MakeOperator = Callable[[Tensor, Tensor, Size], Operator]

KERNEL, COLOUR, SPACE = 5, 0.1, 1.5  # of ``joint_bilateral``, as NAF's authors compare with


def interpolation(mode: str, colours: Tensor, features: Tensor, size: Size) -> Operator:
    """``F.interpolate``, without corner alignment."""
    return partial(F.interpolate, size=size, mode=mode)


def joint_bilateral(colours: Tensor, features: Tensor, size: Size) -> Operator:
    """Joint bilateral upsampling (Kopf, Cohen, Lischinski, Uyttendaele, SIGGRAPH 2007).

    A pixel is the mean of the ``KERNEL`` × ``KERNEL`` nearest cells with weights exp(−d² / (2
    ``SPACE``²) − c² / (2 ``COLOUR``²)): d is the distance in cells, c that of the mean colours.
    Cells at the edge stand for those beyond it.
    """
    low: Size = features.shape[2], features.shape[3]
    fine, coarse = (F.adaptive_avg_pool2d(colours, each) for each in (size, low))
    (rows, down), (columns, across) = (
        _taps(*sides, colours.device) for sides in zip(low, size, strict=True)
    )
    # (N, KERNEL rows, H, KERNEL columns, W)
    differences = fine[:, :, None, :, None] - coarse[:, :, rows][..., columns]
    exponents = differences.square().sum(dim=1) / (-2 * COLOUR**2)
    exponents += (down[:, :, None, None] + across) / (-2 * SPACE**2)
    weights = (exponents - exponents.amax(dim=(1, 3), keepdim=True)).exp()
    weights /= weights.sum(dim=(1, 3), keepdim=True)
    # of each row of pixels, products with a matrix of all columns are faster than 25 sums
    matrix = weights.new_zeros(*weights.shape[:3], low[1], size[1])
    matrix.scatter_add_(3, columns.expand_as(weights), weights)
    return lambda values: torch.einsum("nkrhw,nrhwx->nkhx", values[:, :, rows], matrix)


def _taps(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each of ``new`` pixels its nearest cells, (KERNEL, new), and their squared distances."""
    position = (torch.arange(new, device=device) + 0.5) * (old / new) - 0.5
    offsets = torch.arange(KERNEL, device=device)[:, None] - KERNEL // 2
    cells = position.round() + offsets
    return cells.long().clamp(0, old - 1), (position - cells).square()


OPERATORS: Mapping[str, MakeOperator] = {
    "nearest": partial(interpolation, "nearest-exact"),
    "bicubic": partial(interpolation, "bicubic"),
    "jbu": joint_bilateral,
    "tile2": partial(interpolation, "bilinear"),  # of the maps of ``encode_tiles``
}


class UpsampledMaps:
    """Maps of images, to be upsampled by operators that are linear in them and leave constants as
    they are."""

    def __init__(self, maps: Sequence[Tensor], operators: Sequence[Operator]) -> None:
        self.maps, self.operators = maps, operators

    @cached_property
    def features(self) -> Tensor:
        """(N, Σ channels, H, W)."""
        pairs = zip(self.operators, self.maps, strict=True)
        return torch.cat([operator(each) for operator, each in pairs], dim=1)

    def project(self, weight: Tensor, bias: Tensor, mean: Tensor) -> Tensor:
        """``weight @ (features - mean) + bias``, (N, K, H, W), of which only the K channels are
        upsampled. ``weight``: (K, Σ channels)."""
        widths = [each.shape[1] for each in self.maps]
        parts = zip(self.maps, weight.split(widths, dim=1), mean.split(widths), strict=True)
        projected = [
            F.conv2d(each - centre[:, None, None], own[:, :, None, None])
            for each, own, centre in parts
        ]
        pairs = zip(self.operators, projected, strict=True)
        outputs = torch.stack([operator(each) for operator, each in pairs])
        return outputs.sum(dim=0) + bias[:, None, None]


class Upsampler(nn.Module):
    """Encodes images, and brings their maps to one stride: coarser ones are upsampled, finer ones
    resized (bilinear).

    Args:
        name: see ``probes.upsamplers.names``; not ``bilinear``.
        stride: in pixels.
        unit_length: features of each map get unit length first.
        deferred: whether what reads the maps may upsample its outputs in place of them.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        name: str,
        stride: float,
        unit_length: bool = False,
        deferred: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.stride, self.unit_length = name, stride, unit_length
        self.divisor = backbone.divisor
        add_statistics(self, backbone.data.mean, backbone.data.std)
        is_hub = name in HUB_SOURCES
        self.make_operator: Any = load_upsampler(name, backbone) if is_hub else OPERATORS[name]
        self.deferred = deferred and getattr(self.make_operator, "is_linear", True)

    def forward(self, encode: Encode, images: Tensor) -> UpsampledMaps | Tensor:
        """Normalised images (N, 3, height, width) → (N, Σ channels, height / stride, width /
        stride), or what makes it."""
        is_tiled = self.name == "tile2"
        maps = encode_tiles(encode, images, self.divisor) if is_tiled else encode(images)
        maps = [each.float() for each in maps]
        colours = images * self.std + self.mean
        height, width = (round(side / self.stride) for side in images.shape[2:])
        operators = []
        for each in maps:
            is_coarser = each.shape[2] < height
            make = self.make_operator if is_coarser else partial(interpolation, "bilinear")
            operators.append(make(colours, each, (height, width)))
        if self.unit_length:
            maps = [F.normalize(each, dim=1) for each in maps]
        upsampled = UpsampledMaps(maps, operators)
        return upsampled if self.deferred else upsampled.features


def encode_tiles(encode: Encode, images: Tensor, divisor: int) -> list[Tensor]:
    """Maps of twice the resolution, of images that are enlarged to twice their size (bilinear).

    They are encoded in windows as large as the images, at steps of half of it, rounded down to
    multiples of ``divisor``; where windows overlap, maps are averaged.
    """
    sides = images.shape[2:]
    large = F.interpolate(images, scale_factor=2, mode="bilinear")
    starts = [sorted({0, side // 2 // divisor * divisor, side}) for side in sides]
    totals: list[Tensor] = []
    counts: list[Tensor] = []
    for y, x in product(*starts):
        window = large[:, :, y : y + sides[0], x : x + sides[1]]
        for level, part in enumerate(encode(window)):
            height, width = part.shape[2:]
            if level == len(totals):
                totals.append(part.new_zeros(*part.shape[:2], 2 * height, 2 * width))
                counts.append(part.new_zeros(2 * height, 2 * width))
            top, left = y * height // sides[0], x * width // sides[1]
            cells = slice(top, top + height), slice(left, left + width)
            totals[level][:, :, *cells] += part
            counts[level][*cells] += 1
    return [total / count for total, count in zip(totals, counts, strict=True)]
