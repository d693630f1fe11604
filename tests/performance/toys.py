"""Datasets for measurements: smooth coloured fields whose labels, depth and normals follow from the
colours."""

from __future__ import annotations

import json
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
list_samples = mirrored("images/{part}", "truth/{part}")

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
    """Write ``bench-seg``, ``bench-depth`` or ``bench-normals``: the same photographs, another
    truth."""
    import cv2

    spec, random = DATASETS[name], np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for part in ("images", "truth"):
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
                truth = fields.argmax(axis=2).astype(np.uint8)
            elif spec.kind == "depth":
                truth = (1000 + 4000 * fields[..., 0].clip(0, 1)).astype(np.uint16)
            else:
                normals = fields.clip(0, 1) * (2, 2, 1) - (1, 1, -0.5)
                normals /= np.linalg.norm(normals, axis=2, keepdims=True)
                truth = ((normals + 1) * 127.5).round().astype(np.uint8)
            cv2.imwrite(str(folder / f"truth/{split}/{number:04}.png"), truth)
    samples: dict[str, list[Sample]] = {
        "train": list_samples(folder, "train"),
        "val": list_samples(folder, "val"),
    }
    return PreparedDataset(spec, folder, samples, fingerprint=f"{name}-{train}-{val}-{side}")


def instances(folder: Path, train: int, val: int, side: int) -> PreparedDataset:
    """Write a COCO set of bright squares on noise."""
    from PIL import Image

    random = np.random.default_rng(0)
    samples: dict[str, list[Sample]] = {"train": [], "val": []}
    for split, count in (("train", train), ("val", val)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
        content["categories"] = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
        for number in range(1, count + 1):
            pixels = random.integers(90, 130, (side, side, 3), dtype=np.uint8)
            for part in range(3):
                size = int(random.integers(side // 6, side // 3))
                x, y = (int(v) for v in random.integers(0, side - size, 2))
                pixels[y : y + size, x : x + size] = 40
                pixels[y : y + size, x : x + size, part] = 220
                corners = [x, y, x + size, y, x + size, y + size, x, y + size]
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": number,
                        "category_id": part + 1,
                        "iscrowd": 0,
                        "bbox": [x, y, size, size],
                        "area": size * size,
                        "segmentation": [[float(v) for v in corners]],
                    }
                )
            name = f"{number:06}.png"
            Image.fromarray(pixels).save(folder / split / name)
            content["images"].append(
                {"id": number, "file_name": name, "height": side, "width": side}
            )
            samples[split].append(Sample(f"{split}/{name}", number))
        (folder / f"{split}.json").write_text(json.dumps(content))
    spec = DatasetSpec(
        "bench-det",
        "detection",
        "bench-det",
        lambda root, split: [],
        classes=CLASSES,
        annotations={"train": "train.json", "val": "val.json"},
    )
    return PreparedDataset(spec, folder, samples, fingerprint=f"bench-det-{train}-{val}-{side}")


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
