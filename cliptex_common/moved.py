"""Modules that plugins import by a path of before: their names stand elsewhere now."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


class _Moved(ModuleType):
    """A module in place of one that has moved; what it has is imported when it is asked for."""

    def __init__(self, old: str, new: str) -> None:
        super().__init__(old)
        self.__dict__["_new"] = new

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(import_module(self._new), name)


def keep_importable(moved: Mapping[str, str]) -> None:
    """Let ``from OLD import name`` go on: old path of a module → where its names are."""
    sys.modules.update((old, _Moved(old, new)) for old, new in moved.items())
