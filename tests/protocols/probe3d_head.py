"""probe3d's head on depth and normals of NYU Depth v2, by its mended code and by this suite."""

from __future__ import annotations

from typing import Any

from tests.protocols import probe3d
from tests.protocols.probe3d_source import source  # noqa: F401

TOLERANCE = probe3d.TOLERANCE


def suite() -> dict[str, dict[str, Any]]:
    return probe3d.heads("probe3d-head")
