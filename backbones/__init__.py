"""Frozen image encoders by name, with their weights' identity: ``backbones.create("clip")``."""

from backbones import baselines as baselines  # registers the named ones and the families
from backbones.base import Backbone, DataConfig, Weights
from backbones.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from backbones.errors import UserError
from backbones.registry import BACKBONES, Entry, create, find, names, register

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
