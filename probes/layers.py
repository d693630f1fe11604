"""The setting that says which layer of a backbone a probe reads, and one pass for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator

from cliptex_common.errors import UserError
from cliptex_common.settings import Axis, axes_of

if TYPE_CHECKING:  # settings are read without torch
    from backbones.backbone import Backbone

Layer = int | str  # a number from 1 on, or a share of the depth such as ``50%``


def _read_layer(value: Any, names: Sequence[str]) -> Layer:
    text = str(value)
    if text in names:
        return text
    if text.isdecimal() and int(text) > 0:
        return int(text)
    if text.endswith("%") and text[:-1].isdecimal() and 0 < int(text[:-1]) <= 100:
        return text
    raise ValueError(
        f"must be {', '.join(names)}, the number of a layer from 1 on, or a share of the depth such"
        " as 50%"
    )


def _layer_or(*names: str) -> Any:
    """The type of a setting that is one layer, or one of some words."""
    return Annotated[Layer, BeforeValidator(partial(_read_layer, names=names)), Axis("layers")]


# ``all`` or the ``last`` of the backbone's own maps, or one layer
DenseLayers: Any = _layer_or("all", "last")
PatchLayers: Any = _layer_or("auto", "last", "all")
KeypointLayers: Any = _layer_or("last")
# of a whole image: an embedding, or the class token of one layer
ImageFeatures: Any = _layer_or("projected", "pre_projection")


def requested_layer(settings: Any) -> Layer | None:
    """The layer that a task's settings name by number or share; None if they name none."""
    field = axes_of(type(settings)).get("layers")  # type: ignore[arg-type]
    value = getattr(settings, field) if field else None
    return value if isinstance(value, int) or str(value).endswith("%") else None


def layer_number(layer: Layer, depth: int, backbone: str) -> int:
    """The number, from 1, of a layer in a backbone of this depth. Shares are rounded down.

    Raises:
        UserError: there is no such layer, or the backbone gives its own maps alone.
    """
    if not depth:
        raise UserError(
            f"layers={layer}: backbone {backbone!r} has only its own feature maps; set layers=last"
        )
    number = layer if isinstance(layer, int) else max(depth * int(layer[:-1]) // 100, 1)
    if number > depth:
        raise UserError(
            f"layers={layer}: backbone {backbone!r} has {depth} layers; choose 1 to {depth}"
        )
    return number


def requested_map(settings: Any, backbone: Backbone) -> int | None:
    """The index of the map that a task reads, of those of a backbone of ``at_layers``; None if it
    names no layer."""
    layer = requested_layer(settings)
    if layer is None:
        return None
    number = layer_number(layer, backbone.depth, backbone.name)
    return backbone.data.layers.index(number - 1)  # these count from 0


def map_index(settings: Any, backbone: Backbone) -> int:
    """The index of the map that a task reads where it reads one: ``requested_map``, or the last."""
    index = requested_map(settings, backbone)
    return -1 if index is None else index
