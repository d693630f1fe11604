"""MMSegmentation without MMDetection, which takes 240 MB and two seconds to import: of its heads
only those that predict masks import it, if it is installed, and no probe has these."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

LIBRARY = "mmdet"
NAMES = tuple(f"mmseg.models.decode_heads.{name}_head" for name in ("mask2former", "maskformer"))


class MaskHeadLoader(SourceFileLoader):
    """Loads a module as if ``LIBRARY`` were not installed, unless it was imported before."""

    def exec_module(self, module: ModuleType) -> None:
        if LIBRARY in sys.modules:
            super().exec_module(module)
            return
        sys.modules[LIBRARY] = None  # type: ignore[assignment]
        try:
            super().exec_module(module)
        finally:
            del sys.modules[LIBRARY]


class MaskHeadFinder(MetaPathFinder):
    """Finds the modules of heads that predict masks; Python asks it first."""

    def find_spec(self, name: str, path: Sequence[str] | None, *_: Any) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in NAMES else None
        if spec is not None and spec.origin is not None:
            spec.loader = MaskHeadLoader(name, spec.origin)
        return spec
