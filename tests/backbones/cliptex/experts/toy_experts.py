"""Experts and their data for tests: small random networks, pairs, data sets of COCO and NYU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from backbones.cliptex.experts.base import Expert, find_expert
from cliptex_common.settings import field_names
from tests.probes.datasets.make import encoded, write_tar

SMALL_UNET = {"size": 32, "encoder": "resnet10t", "pretrained": False, "width": 8, "stride": 4}


def make_expert(name: str, **changes) -> Expert:
    torch.manual_seed(0)
    kind = find_expert(name)
    classes = ("background", "cup", "chair") if kind.task == "seg" else ()
    settings = {**SMALL_UNET, **changes}
    allowed = field_names(kind.settings_type)
    chosen = {name: value for name, value in settings.items() if name in allowed}
    return kind.create(kind.settings_type(**chosen), classes).freeze()


def all_experts() -> list[Expert]:
    return [make_expert("unet-seg"), make_expert("unet-depth"), make_expert("unet-normals")]


def picture(seed: int, height: int = 40, width: int = 40) -> np.ndarray:
    random = np.random.default_rng(seed)
    noise = gaussian_filter(random.normal(size=(height, width, 3)), (4, 4, 0))
    return np.clip(128 + 500 * noise, 0, 255).astype(np.uint8)


def write_shards(root: Path, shards: int = 2, each: int = 6, corrupt: tuple[str, ...] = ()) -> str:
    """Tar shards of pairs, every third picture of another size; returns the brace pattern."""
    for shard in range(shards):
        members = {}
        for i in range(each):
            key = f"{shard:05d}{i:04d}"
            image = encoded(picture(shard * 100 + i, 40, 56 if i % 3 == 2 else 40), "JPEG")
            members[f"{key}.jpg"] = image[: len(image) // 2] if key in corrupt else image
            members[f"{key}.txt"] = f"picture {i}".encode()
        write_tar(root / f"{shard:05d}.tar", members)
    return f"{root}/{{00000..{shards - 1:05d}}}.tar"


def write_truth(root: Path, train: int = 24, val: int = 8, side: int = 32) -> Path:
    """Bright squares (cup) and dark discs (chair) on a slanted wall, with depth and normals, as
    COCO and NYU."""
    numbers = {"train": range(train), "val": range(1000, 1000 + val)}
    y, x = np.mgrid[:side, :side]
    for split, seeds in numbers.items():
        images, annotations = [], []
        nyu = "train" if split == "train" else "test"
        pictures = root / f"coco/{split}2017", root / f"nyu/images/{nyu}"
        depths, normals = root / f"nyu/annotations/{nyu}", root / f"nyu/normals/{nyu}"
        for folder in (*pictures, depths, normals):
            folder.mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            random = np.random.default_rng(seed)
            category, (cy, cx), r = random.integers(2), random.integers(8, side - 8, 2), 7
            mask = (
                (abs(y - cy) < r) & (abs(x - cx) < r)
                if category == 0
                else (y - cy) ** 2 + (x - cx) ** 2 < r * r
            )
            image = np.full((side, side, 3), 120) + (x[..., None] * 2)
            image[mask] = (240, 200, 60) if category == 0 else (30, 30, 90)
            image = np.clip(image + random.normal(0, 5, image.shape), 0, 255).astype(np.uint8)
            depth = np.where(mask, 1.5, 2 + x / side * 2)
            normal = np.where(mask[..., None], (0, 0, 1.0), (-0.6, 0, 0.8))
            for folder in pictures:
                Image.fromarray(image).save(folder / f"{seed:06d}.jpg", quality=95)
            millimetres = np.round(depth * 1000).astype(np.uint16)
            Image.fromarray(millimetres).save(depths / f"{seed:06d}.png")
            code = np.round((normal + 1) * 127.5).astype(np.uint8)
            Image.fromarray(code).save(normals / f"{seed:06d}.png")
            images.append(
                {"id": seed, "file_name": f"{seed:06d}.jpg", "height": side, "width": side}
            )
            edges = np.flatnonzero(np.diff(mask.ravel(order="F"))) + 1
            counts = np.diff([0, *edges, mask.size]).tolist()
            annotations.append(
                {
                    "id": seed + 1,
                    "image_id": seed,
                    "category_id": int(category) + 1,
                    "iscrowd": 0,
                    "area": int(mask.sum()),
                    "segmentation": {"size": [side, side], "counts": counts},
                }
            )
        categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "chair"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        path = root / f"coco/annotations/instances_{split}2017.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return root
