"""Frozen image encoders by name, with their weights' identity: ``backbones.create("clip")``.

The names below are read when they are first used: a process that only wants the lighter modules here (``errors``, ``files``,
``locks``) must not wait for torch, and a worker starts for each task.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from backbones.errors import UserError

if TYPE_CHECKING:
    from backbones.base import Backbone, DataConfig, Weights
    from backbones.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from backbones.registry import BACKBONES, Entry, create, find, names, register

_HOMES = {
    "base": ("Backbone", "DataConfig", "Weights"),
    "checkpoint": ("Checkpoint", "load_checkpoint", "save_checkpoint"),
    "registry": ("BACKBONES", "Entry", "create", "find", "names", "register"),
}

__all__ = [
    "BACKBONES",
    "Backbone",
    "Checkpoint",
    "DataConfig",
    "Entry",
    "UserError",
    "Weights",
    "create",
    "find",
    "load_checkpoint",
    "names",
    "register",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    for module, its_names in _HOMES.items():
        if name in its_names:
            import_module("backbones.baselines")  # registers the named ones and the families
            return getattr(import_module(f"backbones.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
