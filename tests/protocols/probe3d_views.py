"""probe3d's correspondence of views (NAVI and ScanNet), by its code and by this suite.

The source's search on a GPU is replaced by the same library's on a CPU, and albumentations' resize
by OpenCV, which it calls.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

import probes.catalog  # noqa: F401
from cliptex_common.settings import with_changes
from probes.matching.probe import ANGLES, view_pairs
from probes.matching.views import (
    VIEW_LOADERS,
    angle_of,
    listed_pairs,
    match_views,
    pad_to,
    reduced,
    relative_pose,
    sampled_pairs,
)
from probes.registry import DATASETS, find_preset, find_task
from tests.probes.matching.layouts import make_navi, make_scannet
from tests.protocols.dense import random, summary

OBJECTS, SCENES = "object-views/view-matching", "scene-views/view-matching"
PAIRS = 12
RECALLS, DEGREES = torch.rand(PAIRS, generator=torch.Generator().manual_seed(1)), 9.0
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
PATHS = {"navi": "navi_v1", "scannet": "data/scannet_test_1500"}


@contextlib.contextmanager
def copies() -> Iterator[Path]:
    """A folder, which is the current one, with small copies of both datasets."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        for dataset, make in (("navi", make_navi), ("scannet", make_scannet)):
            make(Path(name, PATHS[dataset]))
        yield Path(name)


def feature_maps(kind: str) -> list[Tensor]:
    """Of two views."""
    size = (32, 32) if kind == OBJECTS else (30, 40)
    first = random(48, *size, seed=3)
    return [first, first + 0.5 * random(48, *size, seed=4)]


def pixels(image: Tensor, mean: Tensor, std: Tensor) -> list[float]:
    return summary((255 * (image * std[:, None, None] + mean[:, None, None])).round())


class Index:
    """faiss' exact index, of tensors."""

    def __init__(self, _: Any, width: int) -> None:
        import faiss

        self.index = faiss.IndexFlatL2(width)

    def add(self, target: Tensor) -> None:
        self.index.add(target.numpy())

    def search(self, query: Tensor, count: int) -> tuple[Tensor, Tensor]:
        distances, indices = self.index.search(query.numpy(), count)
        return torch.from_numpy(distances), torch.from_numpy(indices)


class Resize:
    """albumentations' nearest."""

    def __init__(self, height: int, width: int, interpolation: int) -> None:
        self.size, self.interpolation = (width, height), interpolation

    def __call__(self, image: np.ndarray) -> np.ndarray:
        resized = cv2.resize(image, self.size, interpolation=self.interpolation)
        return resized.reshape(*resized.shape[:2], -1)


class Compose:
    def __init__(self, parts: Sequence[Resize], additional_targets: Any) -> None:
        self.parts = parts

    def __call__(self, **images: np.ndarray) -> dict[str, np.ndarray]:
        (part,) = self.parts
        return {name: part(image) for name, image in images.items()}


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    search: Any = ModuleType("faiss")
    search.StandardGpuResources, search.GpuIndexFlatL2 = lambda: None, Index
    utils = {name: ModuleType(name) for name in ("faiss.contrib", "faiss.contrib.torch_utils")}
    resizing = SimpleNamespace(Resize=Resize, Compose=Compose)
    modules = {"faiss": search, "albumentations": resizing, **utils}
    with patch.dict(sys.modules, modules):  # type: ignore[arg-type]
        from evals.datasets import navi, scannet_pairs
        from evals.utils import correspondence
    sys.path.insert(0, str(checkout / "data_processing"))
    with copies():
        import resize_navi

        listed, found = os.listdir, navi.glob.glob
        for path in found("navi_v1/*/wild_set/*/*"):
            resize_navi.resize_image(path, 0 if path.endswith(".png") else 2)
        photo = "navi_v1/bottle/wild_set/images/000.jpg"
        Image.open(photo).save("photo.png")
        resize_navi.resize_image("./photo.png", 2)
        with (
            patch.object(navi.os, "listdir", lambda path: sorted(listed(path))),
            patch.object(navi.glob, "glob", lambda path: sorted(found(path))),
        ):
            objects = navi.NAVI("navi_v1", "test", pair_dataset=True)
        fields = {
            OBJECTS: _source_objects(objects, correspondence),
            SCENES: _source_scenes(scannet_pairs.ScanNetPairsDataset(), correspondence),
        }
        fields[OBJECTS]["reduced image"] = summary(np.asarray(Image.open("downsampled_photo.png")))
    return fields


def _source_objects(dataset: Any, code: Any) -> dict[str, Any]:
    from evals.models.utils import center_padding

    pair, maps = dataset[0], feature_maps(OBJECTS)
    points = [
        torch.nn.functional.interpolate(pair[f"xyz_grid_{i}"][None], scale_factor=0.25)[0]
        for i in (0, 1)
    ]
    xyz0, xyz1, *_ = code.estimate_correspondence_xyz(*maps, *points, 1000)
    padded = center_padding(torch.ones(1, 1, 512, 512), 14)[0, 0]
    images = [f"{name}/{scene}/images/{image}.jpg" for name, scene, image in dataset.instances]
    partners = [
        f"{name}/{scene}/images/{dataset.pair_indices[name][scene][image]}.jpg"
        for name, scene, image in dataset.instances
    ]
    return {
        "pairs": [list(each) for each in zip(images, partners, strict=True)],
        "image": pixels(pair["image_0"], MEAN, STD),
        "points": summary(points[0]),
        "camera": pair["intrinsics_1"],
        **_source_errors(code, xyz0, xyz1, pair["Rt_01"], pair["intrinsics_1"]),
        "recalls by angle": _source_bins(code, ANGLES["object-views"]),
        "padding": padded.nonzero().amin(dim=0).tolist() + list(padded.shape),
    }


def _source_scenes(dataset: Any, code: Any) -> dict[str, Any]:
    pair, maps = dataset[0], feature_maps(SCENES)
    depths = [
        torch.nn.functional.interpolate(pair[f"depth_{i}"][None], scale_factor=0.25)[0]
        for i in (0, 1)
    ]
    camera = pair["K"].clone()
    camera[:2] *= 0.25
    xyz0, xyz1, _ = code.estimate_correspondence_depth(*maps, *depths, camera.clone(), 1000)
    half = torch.full((3,), 0.5)
    names = [
        [f"{scene}/color/{number}.jpg" for number in numbers]
        for scene, *numbers, _ in dataset.instances
    ]
    points = code.grid_to_pointcloud(camera.inverse(), depths[0]).T
    return {
        "pairs": names,
        "image": pixels(pair["rgb_0"], half, half),
        "points": summary(points),
        "camera": camera,
        **_source_errors(code, xyz0, xyz1, pair["Rt_1"], camera),
        "recalls by angle": _source_bins(code, ANGLES["scene-views"]),
    }


def _source_errors(code: Any, first: Tensor, second: Tensor, pose: Tensor, camera: Tensor) -> Any:
    from evals.utils.transformations import so3_rotation_angle, transform_points_Rt

    reached = transform_points_Rt(first, pose[:3, :4].float())
    aim = code.project_3dto2d(second, camera)
    return {
        "errors in space": summary((reached - second).norm(dim=1).sort().values),
        "errors in the image": summary(
            (code.project_3dto2d(reached, camera) - aim).norm(dim=1).sort().values
        ),
        "angle": float(so3_rotation_angle(pose[None, :3, :3].float()).rad2deg()),
    }


def _source_bins(code: Any, edges: Sequence[int]) -> list[float]:
    degrees = DEGREES * torch.arange(PAIRS)
    return [100 * float(each) for each in code.compute_binned_performance(RECALLS, degrees, edges)]


def suite() -> dict[str, dict[str, Any]]:
    with copies() as folder:
        fields = {OBJECTS: _suite(folder, "navi"), SCENES: _suite(folder, "scannet")}
        photo = folder / "navi_v1/bottle/wild_set/images/000.jpg"
        fields[OBJECTS]["reduced image"] = summary(np.asarray(reduced(photo, "BILINEAR")))
    padded = pad_to(torch.ones(1, 1, 512, 512), 14)[0, 0]
    fields[OBJECTS]["padding"] = padded.nonzero().amin(dim=0).tolist() + list(padded.shape)
    return fields


def _suite(folder: Path, name: str) -> dict[str, Any]:
    root, spec = folder / PATHS[name], DATASETS[name]
    preset = find_preset("probe3d", *find_task(f"{name}/view-matching")).settings
    settings: Any = with_changes(find_task(f"{name}/view-matching")[1].settings_type(), preset)
    samples = spec.list_samples(root, "val")
    pairs = sampled_pairs(samples) if name == "navi" else listed_pairs(samples)
    views = [VIEW_LOADERS[spec.kind](root, sample, settings.size) for sample in pairs[0]]
    maps = feature_maps(f"{spec.kind}/view-matching")
    transform = relative_pose(*pairs[0])
    encoded = tuple(zip(maps, views, strict=True))
    errors = match_views(*encoded, transform, settings.matches, spec.kind).errors
    angles = DEGREES * np.arange(PAIRS)
    recall = next(iter(find_task(f"{name}/view-matching")[1].metrics))
    scores = view_pairs(
        spec.kind,
        tuple(map(str, range(PAIRS))),
        {**dict.fromkeys(_names(spec.kind), RECALLS.numpy()), "angle": angles},
    )
    return {
        "pairs": [[first.image, second.image] for first, second in pairs],
        "image": summary(views[0].pixels),
        "points": summary(views[0].points),
        "camera": views[1].camera,
        "errors in space": summary(errors["m"].sort().values),
        "errors in the image": summary(errors["px"].sort().values),
        "angle": angle_of(transform),
        "recalls by angle": [
            value for name, value in scores.values().items() if name.startswith(f"{recall}_")
        ],
    }


def _names(kind: str) -> list[str]:
    from probes.matching.probe import RECALLS as DECLARED

    return [name for name, _, _ in DECLARED[kind]]
