"""The files of the mini world in official layouts.

VOC masks, COCO json, NYU depth and normals, ImageFolder, Karpathy json and webdataset pairs. A
chunk writes its own files and returns records; the lists and annotation files that span a split are
made from all records at the end.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from benchmark.mini.config import Split
from benchmark.mini.render import GroundTruth
from benchmark.mini.scene import Scene
from benchmark.mini.shapes import CLASSES
from probes.pictures import palette

VOC = "VOCdevkit/VOC2012"
DEPTH_UNITS = 1000  # stored depth is in millimetres, as in mmseg's NYUDataset
_PALETTE = palette(256).ravel().tolist()


def jpeg(picture: np.ndarray) -> bytes:
    """A (H, W, 3) uint8 picture as JPEG, with full colour resolution (pictures are small)."""
    return _encoded(Image.fromarray(picture), "JPEG", quality=92, subsampling=0)


def png(values: np.ndarray, labels: bool = False) -> bytes:
    """An 8-bit grey, 8-bit RGB or 16-bit array as PNG; a map of ``labels`` has VOC's palette."""
    image = Image.fromarray(values)
    if labels:
        image.putpalette(_PALETTE)
    return _encoded(image, "PNG", compress_level=4)


def _encoded(image: Image.Image, format: str, **settings: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **settings)
    return buffer.getvalue()


def encode_depth(depth: np.ndarray) -> np.ndarray:
    """Metres → uint16 millimetres."""
    return np.clip(np.rint(depth * DEPTH_UNITS), 0, 65535).astype(np.uint16)


def encode_normals(normals: np.ndarray) -> np.ndarray:
    """Unit normals → uint8 with n = png / 127.5 - 1."""
    return np.clip(np.rint((normals + 1) * 127.5), 0, 255).astype(np.uint8)


def instances(scene: Scene, ground_truth: GroundTruth) -> list[dict[str, Any]]:
    """COCO annotations without ids; objects too small to name are crowds, which are not scored."""
    annotations = []
    for number, placed in enumerate(scene.objects, start=1):
        mask = ground_truth.instance == number
        if not mask.any():
            continue
        encoded: dict[str, Any] = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        annotations.append(
            {
                "category_id": CLASSES.index(placed.name) + 1,
                "bbox": [int(value) for value in coco_mask.toBbox(encoded)],
                "area": int(mask.sum()),
                "iscrowd": int(number in ground_truth.too_small),
                "segmentation": {**encoded, "counts": encoded["counts"].decode()},
            }
        )
    return annotations


class Files:
    """Writes files below ``root`` and records the fingerprint of each, by relative path."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.written: dict[str, list[Any]] = {}

    def write(self, name: str, content: bytes) -> None:
        """Write a file, without flushing it: a chunk's record, written last, verifies its files."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.written[name] = fingerprint(content)


def fingerprint(content: bytes) -> list[Any]:
    """Size and a short digest, to detect damage."""
    return [len(content), hashlib.blake2b(content, digest_size=8).hexdigest()]


def write_dense(
    files: Files, split: Split, stem: str, picture: bytes, scene: Scene, ground_truth: GroundTruth
) -> dict[str, Any]:
    """Write a JPEG and its ground truth in VOC's, COCO's and NYU's layout; returns its record."""
    prefix, nyu = split.layout, "train" if split.part == "train" else "test"
    files.write(f"{prefix}{VOC}/JPEGImages/{stem}.jpg", picture)
    files.write(
        f"{prefix}{VOC}/SegmentationClass/{stem}.png", png(ground_truth.semantic, labels=True)
    )
    files.write(f"{prefix}coco/{split.part}2017/{stem}.jpg", picture)
    files.write(f"{prefix}nyu/images/{nyu}/{stem}.jpg", picture)
    files.write(f"{prefix}nyu/annotations/{nyu}/{stem}.png", png(encode_depth(ground_truth.depth)))
    files.write(f"{prefix}nyu/normals/{nyu}/{stem}.png", png(encode_normals(ground_truth.normals)))
    return {"stem": stem, "annotations": instances(scene, ground_truth)}


def dense_lists(split: Split, size: int, records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The list file and the COCO json of a split with dense ground truth: name → text."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in records:
        number, file_name = int(record["stem"]), f"{record['stem']}.jpg"
        images.append({"id": number, "file_name": file_name, "width": size, "height": size})
        for annotation in record["annotations"]:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation})
    coco = {
        "info": {"description": "mini world"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)],
    }
    return {
        f"{split.layout}{VOC}/ImageSets/Segmentation/{split.part}.txt": "".join(
            f"{record['stem']}\n" for record in records
        ),
        f"{split.layout}coco/annotations/instances_{split.part}2017.json": json.dumps(coco),
    }


def karpathy_json(records: Sequence[dict[str, Any]]) -> str:
    """Karpathy's caption json; ``records`` have ``filename``, ``split`` and ``captions``."""
    images, numbers = [], count()
    for number, record in enumerate(records):
        sentences = []
        for text in record["captions"]:
            tokens = re.findall(r"[^\W_]+", text.lower())
            sentence = {"tokens": tokens, "raw": text, "imgid": number, "sentid": next(numbers)}
            sentences.append(sentence)
        image = {
            "sentids": [sentence["sentid"] for sentence in sentences],
            "imgid": number,
            "sentences": sentences,
        }
        images.append({**image, "split": record["split"], "filename": record["filename"]})
    return json.dumps({"images": images, "dataset": "mini"}, indent=1)


def shard(samples: Sequence[dict[str, Any]]) -> bytes:
    """A webdataset shard; the same samples give the same bytes."""
    from webdataset import TarWriter

    content = io.BytesIO()
    with TarWriter(content, mtime=0) as writer:
        for sample in samples:
            writer.write(sample)
    return content.getvalue()


def pair_sample(key: str, picture: bytes, caption: str, size: int) -> dict[str, Any]:
    """The three members of a pair, with the main fields that img2dataset writes."""
    metadata = {
        "caption": caption,
        "url": f"mini://{key}.jpg",
        "key": key,
        "status": "success",
        "width": size,
        "height": size,
        "sha256": hashlib.sha256(picture).hexdigest(),
    }
    return {"__key__": key, "jpg": picture, "txt": caption, "json": metadata}
