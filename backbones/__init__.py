"""Frozen image encoders by name, with their weights' identity: ``backbones.create("clip")``.

What needs torch is imported when it is asked for: commands that only list names, and drivers of
other processes, do without.
"""

from typing import TYPE_CHECKING, Any

from cliptex_common.errors import UserError

if TYPE_CHECKING:
    from backbones.backbone import Backbone, DataConfig, Weights
    from backbones.bridges import as_eva, as_mteb, as_torchgeo_bench
    from backbones.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from backbones.registry import BACKBONES, Entry, create, find, names, register

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
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    modules = [
        import_module(f"backbones.{each}")
        for each in ("named", "registry", "backbone", "checkpoint", "bridges")
    ]
    return next(getattr(module, name) for module in modules if hasattr(module, name))
