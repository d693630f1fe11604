"""The official layouts: VOC masks, COCO json, NYU depth and normals, ImageFolder, Karpathy json,
webdataset pairs.

A chunk of pictures writes its own files and hands back what it knows of them (``records``); the
texts of the lists and annotation files that span a split are made from all records at the end.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmark.mini.render import Truth
from benchmark.mini.scene import Scene
from benchmark.mini.shapes import CLASSES
from probes.pictures import palette

VOC = "VOCdevkit/VOC2012"
DEPTH_UNITS = 1000  # stored depth is in millimetres, as mmseg's NYUDataset has it


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
    """Metres → uint16 millimetres; 0 stays 0 (nothing there)."""
    return np.clip(np.rint(depth * DEPTH_UNITS), 0, 65535).astype(np.uint16)


def encode_normals(normals: np.ndarray) -> np.ndarray:
    """Unit normals → uint8 with n = png / 127.5 - 1; a normal of length 0 becomes (0, 0, 0), the
    code of 'none'."""
    coded = np.clip(np.rint((normals + 1) * 127.5), 0, 255).astype(np.uint8)
    coded[~normals.any(axis=-1)] = 0
    return coded


def instances(scene: Scene, truth: Truth) -> list[dict[str, Any]]:
    """COCO annotations (without ids): exact masks as uncompressed RLE; objects too small to name
    are crowds, not scored."""
    found = []
    for number, thing in enumerate(scene.objects, start=1):
        mask = truth.instance == number
        if (box := Image.fromarray(mask).getbbox()) is None:
            continue
        left, top, right, bottom = box
        found.append(
            {
                "category_id": CLASSES.index(thing.name) + 1,
                "bbox": [left, top, right - left, bottom - top],
                "area": int(mask.sum()),
                "iscrowd": int(number in truth.too_small),
                "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
            }
        )
    return found


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed RLE: run lengths column by column, beginning with a run of zeros (perhaps
    empty)."""
    edges = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=False))
    return np.diff(edges, prepend=0, append=mask.size).tolist()


class Files:
    """Writes files below ``root`` and remembers the fingerprint of each, by relative path."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.written: dict[str, list[Any]] = {}

    def write(self, name: str, content: bytes) -> None:
        """Raises ``UserError`` when the disk is full or the folder cannot be written."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # not flushed one by one: a chunk's record, written last, says that its files are complete
        path.write_bytes(content)
        self.written[name] = fingerprint(content)


def fingerprint(content: bytes) -> list[Any]:
    """Size and a short digest, which tells damage, not malice."""
    return [len(content), hashlib.blake2b(content, digest_size=8).hexdigest()]


def write_dense(
    files: Files,
    prefix: str,
    split: str,
    stem: str,
    picture: np.ndarray,
    scene: Scene,
    truth: Truth,
) -> dict[str, Any]:
    """One picture with all its truth in the VOC, COCO and NYU trees below ``prefix`` (``""`` or
    ``expert/``)."""
    image, nyu = jpeg(picture), {"train": "train", "val": "test"}[split]
    files.write(f"{prefix}{VOC}/JPEGImages/{stem}.jpg", image)
    files.write(f"{prefix}{VOC}/SegmentationClass/{stem}.png", png(truth.semantic, labels=True))
    files.write(f"{prefix}coco/{split}2017/{stem}.jpg", image)
    files.write(f"{prefix}nyu/images/{nyu}/{stem}.jpg", image)
    files.write(f"{prefix}nyu/annotations/{nyu}/{stem}.png", png(encode_depth(truth.depth)))
    files.write(f"{prefix}nyu/normals/{nyu}/{stem}.png", png(encode_normals(truth.normals)))
    return {"stem": stem, "annotations": instances(scene, truth)}


def dense_lists(
    prefix: str, split: str, size: int, records: Sequence[dict[str, Any]]
) -> dict[str, str]:
    """The list file and the COCO json of a split: name → text."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in records:
        number = int(record["stem"])
        images.append(
            {"id": number, "file_name": f"{record['stem']}.jpg", "width": size, "height": size}
        )
        for annotation in record["annotations"]:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation})
    coco = {
        "info": {"description": "mini world"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": n, "name": name, "supercategory": "object"}
            for n, name in enumerate(CLASSES, start=1)
        ],
    }
    return {
        f"{prefix}{VOC}/ImageSets/Segmentation/{split}.txt": "".join(
            f"{record['stem']}\n" for record in records
        ),
        f"{prefix}coco/annotations/instances_{split}2017.json": json.dumps(
            coco, separators=(",", ":")
        ),
    }


def karpathy_json(records: Sequence[dict[str, Any]]) -> str:
    """Karpathy's caption json; ``records`` have ``filename``, ``split`` and ``captions``."""
    images, numbers = [], count()
    for number, record in enumerate(records):
        sentences = []
        for text in record["captions"]:
            tokens = "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()
            sentences.append(
                {"tokens": tokens, "raw": text, "imgid": number, "sentid": next(numbers)}
            )
        image = {
            "sentids": [sentence["sentid"] for sentence in sentences],
            "imgid": number,
            "sentences": sentences,
        }
        images.append({**image, "split": record["split"], "filename": record["filename"]})
    return json.dumps({"images": images, "dataset": "mini"}, indent=1)


def write_shard(files: Files, name: str, members: Sequence[tuple[str, bytes]]) -> None:
    """A webdataset shard; the same members give the same bytes."""
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for member, content in members:
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    files.write(name, shard.getvalue())


def pair_members(key: str, image: bytes, caption: str, size: int) -> list[tuple[str, bytes]]:
    """The three members of a pair, as img2dataset writes them."""
    about = {
        "caption": caption,
        "url": f"mini://{key}.jpg",
        "key": key,
        "status": "success",
        "error_message": None,
        "width": size,
        "height": size,
        "original_width": size,
        "original_height": size,
        "exif": "{}",
        "sha256": hashlib.sha256(image).hexdigest(),
    }
    text = json.dumps(about, indent=4)
    return [(f"{key}.jpg", image), (f"{key}.txt", caption.encode()), (f"{key}.json", text.encode())]
