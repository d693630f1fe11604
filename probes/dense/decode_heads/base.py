"""The heads of dense probes by name: one file, and one entry of ``SHIPPED``, each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
            mmseg with a static method ``options(settings, maps)``, its config for settings and
            ``FeatureMaps``; with ``config`` see ``probes.dense.probe.register_head``.
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

    def load(self) -> Any:
        """The class."""
        return self.module if isinstance(self.module, type) else resolve_name(self.module)


SHIPPED = (
    DenseHead("linear", f"{FOLDER}.linear:LinearHead", version=5),  # 4 rounded otherwise on a CPU
    DenseHead("deeplabv3", f"{FOLDER}.deeplabv3:DeepLabV3Head", version=4, min_batch=2),
    DenseHead("pspnet", f"{FOLDER}.pspnet:PSPNetHead", version=4, min_batch=2),
    # dpt 4 was probe3d's head
    DenseHead("dpt", f"{FOLDER}.dpt:DPTHead", version=5, maps=4),
    DenseHead(
        "dpt-probe3d",
        f"{FOLDER}.probe3d:Probe3dHead",
        version=4,
        kinds=("depth", "normals"),
        maps=4,
    ),
)


def convolutional(settings: Any) -> dict[str, Any]:
    """Width, dropout (unless it is set) and batch normalisation of mmseg's convolutional heads."""
    return {
        "channels": settings.channels,
        "dropout_ratio": 0.1 if settings.dropout is None else settings.dropout,
        "norm_cfg": {"type": "BN", "requires_grad": True},  # not SyncBN: one process
    }
