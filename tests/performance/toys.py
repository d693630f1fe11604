"""Datasets for measurements: smooth colour fields that determine labels, depth and normals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from backbones.base import Backbone
from backbones.cliptex.protocols import Silent
from probes.base import Context
from probes.datasets.base import DatasetSpec, PreparedDataset, Sample
from probes.datasets.layouts import mirrored
from probes.registry import DATASETS, register_dataset

CLASSES = ("red", "green", "blue")
list_samples = mirrored("images/{part}", "target/{part}")

for _spec in (
    DatasetSpec("bench-seg", "segmentation", "bench-seg", list_samples, classes=CLASSES),
    DatasetSpec(
        "bench-depth",
        "depth",
        "bench-depth",
        list_samples,
        extra={"depth_scale": 1e-3, "min_depth": 1e-3, "max_depth": 10.0},
    ),
    DatasetSpec(
        "bench-normals",
        "normals",
        "bench-normals",
        list_samples,
        extra={"axes": "x right, y up, z towards the camera"},
    ),
):
    if _spec.name not in DATASETS:
        register_dataset(_spec)


def jpegs(folder: Path, count: int) -> list[Path]:
    """Write ``count`` smooth colour photographs of 320 × 240 px."""
    from PIL import Image

    random, paths = np.random.default_rng(0), [folder / f"{number}.jpg" for number in range(count)]
    for path in paths:
        small = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def dense(folder: Path, name: str, train: int, val: int, side: int) -> PreparedDataset:
    """Write ``bench-seg``, ``bench-depth`` or ``bench-normals``: same images, other targets."""
    import cv2

    spec, random = DATASETS[name], np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for part in ("images", "target"):
            (folder / part / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            fields = cv2.resize(
                random.random((4, 4, 3), np.float32), (side, side), interpolation=cv2.INTER_CUBIC
            )
            cv2.imwrite(
                str(folder / f"images/{split}/{number:04}.png"),
                (255 * fields.clip(0, 1)).astype(np.uint8),
            )
            if spec.kind == "segmentation":
                target = fields.argmax(axis=2).astype(np.uint8)
            elif spec.kind == "depth":
                target = (1000 + 4000 * fields[..., 0].clip(0, 1)).astype(np.uint16)
            else:
                normals = fields.clip(0, 1) * (2, 2, 1) - (1, 1, -0.5)
                normals /= np.linalg.norm(normals, axis=2, keepdims=True)
                target = ((normals + 1) * 127.5).round().astype(np.uint8)
            cv2.imwrite(str(folder / f"target/{split}/{number:04}.png"), target)
    samples: dict[str, list[Sample]] = {
        "train": list_samples(folder, "train"),
        "val": list_samples(folder, "val"),
    }
    return PreparedDataset(spec, folder, samples, fingerprint=f"{name}-{train}-{val}-{side}")


def context(
    backbone: Backbone, config: dict[str, Any], data: PreparedDataset, settings: Any, work: Path
) -> Context:
    """A task of a run, without tracking."""
    work.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Context(
        backbone.to(device),
        config,
        data,
        settings,
        0,
        device,
        work,
        Silent(),
        Silent(),
        num_workers=2,
    )
