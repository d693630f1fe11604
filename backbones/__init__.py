"""Frozen image encoders by name, with their weights' identity: ``backbones.create("clip")``.

What needs torch is imported when it is asked for: commands that only list names, and drivers of
other processes, do without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cliptex_common.errors import UserError
from cliptex_common.registry import keep_importable

if TYPE_CHECKING:
    from backbones.backbone import Backbone, DataConfig
    from backbones.bridges import as_eva, as_mteb, as_torchgeo_bench
    from backbones.checkpoint import Checkpoint, load_checkpoint, save_backbone, save_checkpoint
    from backbones.registry import BACKBONES, Entry, create, find, names, register
    from backbones.weights import Weights

__all__ = [
    "BACKBONES",
    "Backbone",
    "Checkpoint",
    "DataConfig",
    "Entry",
    "UserError",
    "Weights",
    "as_eva",
    "as_mteb",
    "as_torchgeo_bench",
    "create",
    "find",
    "load_checkpoint",
    "names",
    "register",
    "save_backbone",
    "save_checkpoint",
]


# modules with the names of ``__all__``, imported in this order until one has the requested name:
# those without torch first
MODULES = ("registry", "weights", "bridges", "backbone", "checkpoint")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    modules = map(import_module, (f"backbones.{each}" for each in MODULES))
    return next(getattr(module, name) for module in modules if hasattr(module, name))


keep_importable(
    {
        "backbones.base": "backbones.backbone",
        "backbones.adapters.hf_hub": "backbones.adapters.common",
        "backbones.cliptex.tasks.base": "backbones.cliptex.targets",
        "backbones.cliptex.tasks.shapes": "backbones.cliptex.targets",
        "backbones.cliptex.training.recipes": "backbones.cliptex.recipes",
    }
)
