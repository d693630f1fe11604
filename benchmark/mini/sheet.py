"""Contact sheets of a world on disk: what a person looks at before trusting it. Read back from the layouts, not from
the renderer."""

from __future__ import annotations

import io
import json
import tarfile
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from backbones.files import replacing
from benchmark.mini.layout import DEPTH_UNITS, VOC, voc_palette

TILE = 128


def dense_sheet(
    root: Path, path: Path, *, split: str = "val", prefix: str = "", count: int = 8, first: int = 0
) -> Path:
    """Write a PNG with ``count`` rows: picture, semantic map, instances with boxes, depth (near is bright), normals.

    Args:
        root: a world as ``build_world`` gives it.
        split, prefix: ``train`` or ``val``; ``""`` or ``expert/``.
    """
    part = {"train": "train", "val": "test"}[split]
    coco = json.loads((root / f"{prefix}coco/annotations/instances_{split}2017.json").read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in coco["categories"]}
    rows = []
    for image in coco["images"][first : first + count]:
        stem = image["file_name"].removesuffix(".jpg")
        picture = Image.open(root / f"{prefix}{VOC}/JPEGImages/{stem}.jpg")
        found = [annotation for annotation in coco["annotations"] if annotation["image_id"] == image["id"]]
        depth = np.asarray(Image.open(root / f"{prefix}nyu/annotations/{part}/{stem}.png")) / DEPTH_UNITS
        near = (np.clip(depth.min() / np.maximum(depth, 1e-3), 0, 1) * 255).astype(np.uint8)
        tiles = [
            _tile(picture),
            _tile(Image.open(root / f"{prefix}{VOC}/SegmentationClass/{stem}.png").convert("RGB")),
            _instances(image["height"], found, names),
            _tile(Image.fromarray(near).convert("RGB")),
            _tile(Image.open(root / f"{prefix}nyu/normals/{part}/{stem}.png")),
        ]
        rows.append(np.concatenate([np.asarray(tile) for tile in tiles], axis=1))
    return _save(np.concatenate(rows), path)


def caption_sheet(root: Path, path: Path, *, shard: int = 0, count: int = 24, columns: int = 3) -> Path:
    """Write a PNG with the first ``count`` pairs of a shard and their captions."""
    with tarfile.open(root / f"pairs/{shard:05d}.tar") as tar:
        members = tar.getmembers()[: 3 * count]
        contents = {member.name: file.read() for member in members if (file := tar.extractfile(member))}
    keys = [name.removesuffix(".jpg") for name in contents if name.endswith(".jpg")]
    cells = [(Image.open(io.BytesIO(contents[f"{key}.jpg"])), contents[f"{key}.txt"].decode()) for key in keys]
    rows = []
    for start in range(0, len(cells), columns):
        line = Image.new("RGB", (columns * 3 * TILE, TILE), "white")
        for column, (picture, text) in enumerate(cells[start : start + columns]):
            line.paste(_tile(picture), (column * 3 * TILE, 0))
            ImageDraw.Draw(line).text((column * 3 * TILE + TILE + 8, 8), textwrap.fill(text, 36), fill="black")
        rows.append(np.asarray(line))
    return _save(np.concatenate(rows), path)


def _tile(picture: Image.Image) -> Image.Image:
    return picture.convert("RGB").resize((TILE, TILE), Image.Resampling.NEAREST)


def _instances(size: int, annotations: list[dict], names: dict[int, str]) -> Image.Image:
    palette = np.array(voc_palette(), np.uint8).reshape(-1, 3)
    canvas = np.full((size, size, 3), 40, np.uint8)
    for number, annotation in enumerate(annotations, start=1):
        counts = annotation["segmentation"]["counts"]
        values = np.repeat(np.arange(len(counts)) % 2, counts).reshape(size, size).T
        canvas[values == 1] = palette[number + 8] if not annotation["iscrowd"] else (120, 120, 120)
    tile = _tile(Image.fromarray(canvas))
    draw, scale = ImageDraw.Draw(tile), TILE / size
    for annotation in annotations:
        x, y, wide, tall = (value * scale for value in annotation["bbox"])
        draw.rectangle((x, y, x + wide - 1, y + tall - 1), outline="white")
        draw.text((x + 2, y), names[annotation["category_id"]], fill="yellow")
    return tile


def _save(pixels: np.ndarray, path: Path) -> Path:
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, "PNG")
    return path
