"""The heads of dense probes by name: one entry of ``SHIPPED`` each. Those that mmseg has need no
class of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

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

    def load(self) -> Any:
        """The class."""
        return self.module if isinstance(self.module, type) else resolve_name(self.module)


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
