"""Poses and depth of NAVI, by its code and by this suite."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import probes.catalog  # noqa: F401
from probes.matching.views import angle_of, listed_pairs, object_view, relative_pose
from probes.registry import DATASETS
from tests.probes.matching.layouts import make_navi
from tests.protocols.nearest import importing

PROBE = "object-views/view-matching"
OBJECT = "bottle/wild_set"


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    stubs = {"trimesh": mock.MagicMock(), "mediapy": mock.MagicMock()}
    with importing(checkout), mock.patch.dict(sys.modules, stubs):
        import data_util  # type: ignore[import-not-found]
    with tempfile.TemporaryDirectory() as name:
        folder = make_navi(Path(name)) / OBJECT
        annotations = json.loads((folder / "annotations.json").read_text())
        poses = [data_util.camera_matrices_from_annotation(each)[0] for each in annotations]
        depth = data_util.read_depth_from_png(str(folder / "depth/000.png"))
    return {
        PROBE: {
            "rotation": [pose[:3, :3].tolist() for pose in poses],
            "translation": [(pose[:3, 3] / 1000).tolist() for pose in poses],
            "depth": float(depth.max()) / 1000,
            "pair": ["images/000.jpg", "images/001.jpg", 20.0],
        }
    }


def suite() -> dict[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        samples = DATASETS["navi"].list_samples(make_navi(Path(name)), "val")
        views = [sample for sample in samples if sample.image.startswith(OBJECT)]
        points = object_view(Path(name), views[0], 512).points
    pair = listed_pairs(samples)[0]
    images = [sample.image.removeprefix(f"{OBJECT}/") for sample in pair]
    return {
        PROBE: {
            "rotation": [view.target.rotation for view in views],
            "translation": [view.target.translation for view in views],
            "depth": float(points[2].max()),
            "pair": [*images, round(angle_of(relative_pose(*pair)), 3)],
        }
    }
