"""NAVI (Jampani et al. 2023): photographs of 36 objects with cameras and depth, paired within the
``wild_set`` of each object.

``OBJECT/wild_set/annotations.json``, ``images/NAME.jpg`` and ``depth/NAME.png`` (or
``downsampled_NAME``), as its authors lay them (github.com/google/navi). A camera maps a point of
the object to X = R x + t (mm; right, down, into the camera), the principal point is the image's
centre; depth is 1 / (value / 65535 / 10) mm. Points of the source's object that the target's depth
shows too are what is matched. probe3d, whose views are turned by at most 120° as well, scores its
own matches in space (recall within 2 cm).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from scipy.spatial.transform import Rotation

from common.errors import UserError, well_formed
from common.images import BROKEN
from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import read_json
from probes.registry import register_dataset

MOST_DEGREES = 120.0  # between the two views of a pair
POINTS = 100  # of the object that are matched in a pair, evenly spread
VISIBLE = 10.0  # mm that a point may lie off the surface that the target shows there
PREFIXES = ("", "downsampled_")


def list_samples(root: Path, split: Split) -> list[Sample]:
    """Every photograph of a wild set, with one other that is turned by at most ``MOST_DEGREES``:
    the one at the middle of those angles. There is nothing to train on."""
    found = []
    for path in sorted(Path(root).glob("*/wild_set/annotations.json")) if split == "val" else []:
        with well_formed(f"{path} is no annotation file of NAVI"):
            there = (_view(path.parent, root, each) for each in read_json(path))
            views = sorted(
                (view for view in there if view is not None), key=lambda view: view["image"]
            )
            turns = [Rotation.from_quat(view["q"], scalar_first=True) for view in views]
            np.array([view["t"] for view in views], np.float64).reshape(len(views), 3)
        for view, turn in zip(views, turns, strict=True):
            angles = [math.degrees((other * turn.inv()).magnitude()) for other in turns]
            near = sorted((a, i) for i, a in enumerate(angles) if 0 < a <= MOST_DEGREES)
            others = [views[i] for _, i in near[len(near) // 2 : len(near) // 2 + 1]]
            pairs = [{"image": other["image"], "views": [view, other]} for other in others]
            found.append(Sample(view["image"], pairs))
    return found


def _view(folder: Path, root: Path, told: Mapping[str, Any]) -> dict[str, Any] | None:
    """Image, depth and camera of an annotation; None where its files are not there."""
    name = Path(told["filename"]).stem
    for prefix in PREFIXES:
        image, depth = folder / f"images/{prefix}{name}.jpg", folder / f"depth/{prefix}{name}.png"
        if image.is_file() and depth.is_file():
            camera = told["camera"]
            return {
                "image": image.relative_to(root).as_posix(),
                "depth": depth.relative_to(root).as_posix(),
                "q": camera["q"],
                "t": camera["t"],
                "focal": camera["focal_length"] / min(told["image_size"]),
            }
    return None


def keypoints(root: Path, pair: Mapping[str, Any]) -> dict[str, Any]:
    """``source`` and ``target`` points (x, y in pixels) that show the same place of the object, and
    the object's ``box`` in the target; none where the views share nothing."""
    (source, one), (target, two) = (
        (view, _depth(Path(root) / view["depth"])) for view in pair["views"]
    )
    rows, columns = np.nonzero(one)
    picked = np.unique(np.linspace(0, len(rows) - 1, min(POINTS, len(rows))).round().astype(int))
    rows, columns = rows[picked], columns[picked]
    seen = _unproject(columns + 0.5, rows + 0.5, one[rows, columns], source, one.shape)
    there = _turn(target).apply(_turn(source).inv().apply(seen - np.array(source["t"]))) + np.array(
        target["t"]
    )
    places = _project(there, target, two.shape)
    inside = ((places >= 0) & (places < np.array(two.shape[::-1]))).all(axis=1) & (there[:, 2] > 0)
    at = np.where(inside[:, None], places, 0).astype(int)
    shown = inside & (np.abs(two[at[:, 1], at[:, 0]] - there[:, 2]) < VISIBLE)
    high, wide = np.nonzero(two)
    box = [wide.min(), high.min(), wide.max() + 1, high.max() + 1] if len(wide) else [0, 0, 1, 1]
    points = np.stack([columns + 0.5, rows + 0.5], axis=1)[shown]
    return {
        "source": points.tolist(),
        "target": places[shown].tolist(),
        "box": [int(each) for each in box],
    }


def _depth(path: Path) -> np.ndarray:
    """(H, W) float64 mm, 0 where there is no object. Raises ``UserError``."""
    try:
        with Image.open(path) as image:
            value = np.asarray(ImageOps.exif_transpose(image)).astype(np.float64)
    except BROKEN as error:
        raise UserError(f"cannot read depth map {path} ({error}); get it again") from error
    return np.divide(65535 * 10.0, value, out=np.zeros_like(value), where=value > 0)


def _turn(view: Mapping[str, Any]) -> Rotation:
    return Rotation.from_quat(view["q"], scalar_first=True)


def _unproject(
    x: np.ndarray, y: np.ndarray, depth: np.ndarray, view: Mapping[str, Any], shape: Any
) -> np.ndarray:
    focal = view["focal"] * min(shape)
    return np.stack(
        [(x - shape[1] / 2) * depth / focal, (y - shape[0] / 2) * depth / focal, depth], axis=1
    )


def _project(points: np.ndarray, view: Mapping[str, Any], shape: Any) -> np.ndarray:
    focal = view["focal"] * min(shape)
    return (
        points[:, :2] / np.maximum(points[:, 2:], 1e-6) * focal + np.array([shape[1], shape[0]]) / 2
    )


register_dataset(
    DatasetSpec(
        name="navi",
        kind="correspondence",
        folder="navi",
        list_samples=list_samples,
        keypoints=keypoints,
        extra={
            "pairs": f"wild sets, up to {MOST_DEGREES:g} degrees",
            "points": POINTS,
            "visible_mm": VISIBLE,
        },
        about=(
            "NAVI's wild sets: the same place of an object in two photographs"
            " (github.com/google/navi)"
        ),
    )
)
