"""The heads of dense probes by name, and the maps that a backbone gives them. What a head of
``SHIPPED`` is, its config files say: ``probes/configs/KIND/NAME.py``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cliptex_common.errors import UserError
from probes.dense.settings import DenseSettings
from probes.layers import requested_map


@dataclass(frozen=True)
class HeadInput:
    """The shapes of what a head reads.

    Attributes:
        channels, strides: of each map, shallow to deep.
        stride: that they are brought to where a head reads them concatenated.
        crop: height and width in pixels of a training crop, as the backbone gets it.
        index: of the only map that is read of those of the backbone, where the settings name a
            layer.
    """

    channels: tuple[int, ...]
    strides: tuple[float, ...]
    stride: float
    crop: tuple[int, int]
    index: int | None = None


def head_input(settings: DenseSettings, backbone: Any) -> HeadInput:
    """What a head reads of training crops.

    Args:
        backbone: a ``Backbone``, or a record with its names, weights, channels, strides and
            divisor.
    """
    index = requested_map(settings, backbone)
    channels, strides = backbone.channels, backbone.strides
    only = -1 if settings.layers == "last" else index
    if only is not None:
        channels, strides = (channels[only],), (strides[only],)
    if reads_class_token(settings, backbone):
        channels = tuple(2 * width for width in channels)
    stride = settings.feature_stride or native_stride(strides)
    height, width = settings.crop or (settings.size,) * 2
    crop = round_up(height, backbone.divisor), round_up(width, backbone.divisor)
    return HeadInput(tuple(channels), tuple(strides), stride, crop, index)


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
        module: of a plugin's head, see ``probes.dense.probe.register_head``.
        version: of the probe.
        kinds: names of dense tasks; empty for all.
        maps: number of maps that it fuses; None for any.
        min_batch: images of a batch at least.
        config: of a head that is configured by the setting ``head``: its default.
        declared_in: importing this module registers the head.
    """

    name: str
    module: type | None = None
    version: int = 1
    kinds: Sequence[str] = ()
    maps: int | None = None
    min_batch: int = 1
    config: Mapping[str, Any] | None = None
    declared_in: str = ""

    def check(self, settings: DenseSettings, backbone: Any) -> None:
        """Raise ``UserError`` where settings or backbone do not fit it.

        Args:
            backbone: see ``head_input``.
        """
        if settings.batch_size < self.min_batch:
            raise UserError(
                f"{self.name} normalises pooled features over the batch: batch_size must be"
                f" {self.min_batch} or more"
            )
        if settings.class_token == "project" and self.name != "dpt":
            raise UserError(f"class_token=project is of dpt, not of {self.name}; use concat")
        if self.maps and settings.upsampler != "bilinear":
            raise UserError(
                f"upsampler={settings.upsampler} is of heads that read the maps concatenated;"
                f" {self.name} reads each at its own stride: set upsampler=bilinear"
            )
        maps = len(head_input(settings, backbone).channels)
        if self.maps not in (None, maps):
            raise UserError(
                f"{self.name} fuses {self.maps} feature maps, and {backbone.name!r} gives {maps}"
                f" (layers={settings.layers}); choose another probe or backbone"
            )


def aspp_dilations(
    size: int, stride: float, rates: Sequence[int] = (1, 12, 24, 36)
) -> tuple[int, int, int, int]:
    """Dilation rates of DeepLabv3 for feature maps of ``size / stride``.

    Chen et al. 2017 use (1, 12, 24, 36) on 64×64 maps (512 px at stride 8). A rate beyond the map
    only sees padding, so the ``rates`` keep their share of the map's side at other sizes; the
    three are at least 2, and differ.
    """
    share = size / stride / 64
    first = max(2, round(share * rates[1]))
    second = max(first + 1, round(share * rates[2]))
    return rates[0], first, second, max(second + 1, round(share * rates[3]))


SHIPPED = (
    DenseHead("linear", version=5),
    DenseHead("deeplabv3", version=4, min_batch=2),
    DenseHead("pspnet", version=4, min_batch=2),
    DenseHead("dpt", version=5, maps=4),
    DenseHead("dpt-probe3d", version=4, kinds=("depth", "normals"), maps=4),
)
