"""The heads of dense probes by name, one entry of ``SHIPPED`` each, and the maps that a backbone
gives them. Heads that mmseg has need no class of their own."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cliptex_common.errors import UserError
from probes.datasets.base import PreparedDataset
from probes.dense.settings import DenseSettings
from probes.dense.tasks import DENSE_TASKS
from probes.layers import position

FOLDER = "probes.dense.decode_heads"


@dataclass(frozen=True)
class FeatureMaps:
    """The maps of a backbone that a head reads.

    Attributes:
        channels, strides: of each map, shallow to deep.
        stride: that they are brought to where a head reads them concatenated.
        crop: height and width of a training crop in pixels.
        index: of the only map that is read of those of the backbone, where a layer is named.
    """

    channels: tuple[int, ...]
    strides: tuple[float, ...]
    stride: float
    crop: tuple[int, int]
    index: int | None = None


def feature_maps(settings: DenseSettings, backbone: Any) -> FeatureMaps:
    """The maps that a head reads of training crops.

    Args:
        backbone: a ``Backbone``, or a record with its names, weights, channels, strides and
            divisor.
    """
    index = position(settings, backbone)
    layer = -1 if settings.layers == "last" else index
    channels, strides = backbone.channels, backbone.strides
    if layer is not None:
        channels, strides = (channels[layer],), (strides[layer],)
    if reads_class_token(settings, backbone):
        channels = tuple(2 * width for width in channels)
    stride = settings.feature_stride or native_stride(strides)
    height, width = settings.crop or (settings.size,) * 2
    crop = round_up(height, backbone.divisor), round_up(width, backbone.divisor)
    return FeatureMaps(tuple(channels), tuple(strides), stride, crop, index)


def native_stride(strides: Sequence[float]) -> float:
    """The finest of ``strides`` that is 8 or more (at 4, of CNNs, a head costs four times what it
    does at 8); else the coarsest."""
    return min((stride for stride in strides if stride >= 8), default=max(strides))


def reads_class_token(settings: DenseSettings, backbone: Any) -> bool:
    """Whether maps have class tokens, by the setting ``class_token``."""
    if settings.class_token == "concat-dino":
        names = f"{backbone.name} {backbone.architecture} {backbone.weights.source}"
        return bool(re.search(r"(?<![a-z0-9])dino(v2)?(?![a-z0-9])", names))
    return settings.class_token != "none"


def round_up(side: int, divisor: int) -> int:
    """``side``, rounded up to a multiple of ``divisor``."""
    return math.ceil(side / divisor) * divisor


@dataclass(frozen=True)
class DenseHead:
    """A head, which is the probe of its name on datasets of some dense tasks.

    Attributes:
        module: ``MODULE:CLASS``, imported when the head is built, or the class: a decode head of
            mmseg; with ``config`` see ``probes.dense.probe.register_head``.
        options: its config for settings and ``FeatureMaps``.
        version: of the probe.
        kinds: names of dense tasks; empty for all.
        maps: number of maps that it fuses; None for any.
        min_batch: images of a batch at least.
        config: of a head that is configured by the setting ``head``: its default.
        declared_in: importing this module registers the head.
    """

    name: str
    module: str | type = ""
    version: int = 1
    kinds: Sequence[str] = ()
    maps: int | None = None
    min_batch: int = 1
    config: Mapping[str, Any] | None = None
    declared_in: str = ""
    options: Callable[[Any, FeatureMaps], dict[str, Any]] | None = None

    def check(self, settings: DenseSettings, data: PreparedDataset, backbone: Any) -> None:
        """Raise ``UserError`` where dataset, settings or backbone do not fit it.

        Args:
            backbone: see ``feature_maps``.
        """
        if settings.batch_size < self.min_batch:
            raise UserError(
                f"{self.name} normalises pooled features over the batch: batch_size must be"
                f" {self.min_batch} or more"
            )
        if settings.class_token == "project" and self.name != "dpt":
            raise UserError(f"class_token=project is of dpt, not of {self.name}; use concat")
        maps = feature_maps(settings, backbone)
        if self.maps not in (None, len(maps.channels)):
            raise UserError(
                f"{self.name} fuses {self.maps} feature maps, and {backbone.name!r} gives"
                f" {len(maps.channels)} (layers={settings.layers}); choose another probe or"
                " backbone"
            )
        DENSE_TASKS.find(data.spec.kind).check_dataset(data)


# what each of the shipped heads has as its ``options``
def linear(settings: Any, maps: FeatureMaps) -> dict[str, Any]:
    return {"dropout_ratio": settings.dropout or 0.0, "dropout_first": settings.dropout_first}


def convolutional(settings: Any, maps: FeatureMaps) -> dict[str, Any]:
    """Width, dropout (unless it is set) and batch normalisation of mmseg's convolutional heads."""
    return {
        "channels": settings.channels,
        "dropout_ratio": 0.1 if settings.dropout is None else settings.dropout,
        "norm_cfg": {"type": "BN", "requires_grad": True},  # not SyncBN: one process
    }


def deeplabv3(settings: Any, maps: FeatureMaps) -> dict[str, Any]:
    dilations = aspp_dilations(min(maps.crop), maps.stride)
    return {**convolutional(settings, maps), "dilations": dilations}


def aspp_dilations(size: int, stride: float) -> tuple[int, int, int, int]:
    """Dilation rates of DeepLabv3 for feature maps of ``size / stride``.

    Chen et al. 2017 use (1, 12, 24, 36) on 64×64 maps (512 px at stride 8). A rate beyond the map
    only sees padding, so the rates keep their share of the map's side at other sizes: 12/64, 24/64
    and 36/64.
    """
    side = size / stride
    first = max(2, round(side * 12 / 64))
    second = max(first + 1, round(side * 24 / 64))
    return 1, first, second, max(second + 1, round(side * 36 / 64))


def dpt(settings: Any, maps: FeatureMaps) -> dict[str, Any]:
    return {
        **convolutional(settings, maps),
        **({} if settings.dpt_norm else {"norm_cfg": None}),
        "map_channels": maps.channels,
        "widths": settings.dpt_widths,
        "readout_type": "project" if settings.class_token == "project" else "ignore",
    }


def probe3d(settings: Any, maps: FeatureMaps) -> dict[str, Any]:
    return {
        "channels": settings.channels,
        "dropout_ratio": settings.dropout or 0.0,
        "map_channels": maps.channels,
    }


MMSEG = "mmseg.models.decode_heads"
SHIPPED = (
    # 4 rounded otherwise on a CPU
    DenseHead("linear", f"{FOLDER}.linear:LinearHead", version=5, options=linear),
    # Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017
    DenseHead("deeplabv3", f"{MMSEG}:ASPPHead", version=4, min_batch=2, options=deeplabv3),
    # Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017
    DenseHead("pspnet", f"{MMSEG}:PSPHead", version=4, min_batch=2, options=convolutional),
    # dpt 4 was probe3d's head
    DenseHead("dpt", f"{FOLDER}.dpt:DPTHead", version=5, maps=4, options=dpt),
    DenseHead(
        "dpt-probe3d",
        f"{FOLDER}.probe3d:Probe3dHead",
        version=4,
        kinds=("depth", "normals"),
        maps=4,
        options=probe3d,
    ),
)
