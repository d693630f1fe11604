"""A package beside this one that adds to it by entry points, as pip leaves it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmark.executor import EXECUTORS
from benchmark.suites import SUITES
from probes.registry import PROBES


@contextmanager
def registries() -> Iterator[pytest.MonkeyPatch]:
    """What is registered in the block is gone after it."""
    with pytest.MonkeyPatch.context() as patch:
        for registry in (EXECUTORS, SUITES, PROBES):
            patch.setattr(registry, "data", dict(registry))
            patch.setattr(registry, "broken", {})
        yield patch


@contextmanager
def installed(folder: Path, source: str, entry_points: str) -> Iterator[None]:
    """The module ``other_package`` with this source, seen by this process and those that it
    starts."""
    info = folder / "other_package-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "other_package.py").write_text(source)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    with registries() as patch:
        patch.syspath_prepend(str(folder))
        yield
    sys.modules.pop("other_package", None)
