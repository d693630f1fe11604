"""Backbones as encoders of other evaluation suites, with the embeddings that they have here. A
suite's package is imported when its function is called."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cliptex_common.errors import UserError

if TYPE_CHECKING:
    from torch import nn


def as_mteb(name: str, device: str | None = None, **options: Any) -> Any:
    """An encoder for MTEB's image tasks (MIEB), and for those with texts if there is a text tower:
    ``mteb.evaluate(as_mteb("clip"), tasks)``.

    Args:
        name: of ``backbones.create``.
        device: by default the accelerator, if there is one.
        **options: of ``backbones.create``.
    """
    return _load("mteb", "mteb").MtebEncoder(name, device, **options)


def as_eva(name: str, maps: bool = False, **options: Any) -> nn.Module:
    """A module for kaiko-eva: normalised images (N, 3, H, W) → embeddings (N, D). Its attribute
    ``transform`` prepares the images of a dataset (and masks, alike).

    Args:
        name: of ``backbones.create``.
        maps: return the list of feature maps instead, for decoders of segmentation.
        **options: of ``backbones.create``.
    """
    return _load("eva", "kaiko-eva").EvaEncoder(name, maps, **options)


def as_torchgeo_bench(name: str, bands: Any = None, eval: Any = None, **options: Any) -> Any:
    """A ``BenchModel`` of torchgeo-bench: images of three bands (N, 3, H, W) → embeddings (N, D).
    Its modules ``maps.0``, ``maps.1`` … have the feature maps, for segmentation.

    Args:
        name: of ``backbones.create``.
        bands: ``BandSpec`` of red, green and blue; by default 8 bits each.
        eval: settings of the suite in the model's file, which are not for the model.
        **options: of ``backbones.create``, and ``normalization`` of ``BenchModel``, by default
            ``model_native``, which is the backbone's own.
    """
    package = "torchgeo-bench (Python 3.12 or later)"
    return _load("torchgeo_bench", package).TorchgeoBenchModel(name, bands, **options)


def _load(module: str, package: str) -> ModuleType:
    """The bridge to a suite. Raises ``UserError`` if its package is not installed."""
    try:
        return import_module(f"{__name__}.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module:
            raise
        raise UserError(f"as_{module} needs {package}: pip install -e '.[bridges]'") from error
