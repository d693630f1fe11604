"""The official layouts: VOC masks, COCO json, NYU depth and normals, ImageFolder, Karpathy json, webdataset pairs.

A chunk of pictures writes its own files and hands back what it knows of them (``records``); the texts of the lists and
annotation files that span a split are made from all records at the end.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backbones.errors import UserError
from benchmark.mini.render import Truth
from benchmark.mini.scene import Scene
from benchmark.mini.shapes import CLASSES

VOC = "VOCdevkit/VOC2012"
CATEGORIES = [{"id": index + 1, "name": name, "supercategory": "object"} for index, name in enumerate(CLASSES)]
DEPTH_UNITS = 1000  # stored depth is in millimetres, as mmseg's NYUDataset has it


def voc_palette() -> list[int]:
    """The 256 colours of PASCAL VOC's label maps (VOCdevkit's ``VOClabelcolormap``)."""
    palette = []
    for label in range(256):
        red = green = blue = 0
        for bit in range(8):
            red |= (label >> (3 * bit) & 1) << (7 - bit)
            green |= (label >> (3 * bit + 1) & 1) << (7 - bit)
            blue |= (label >> (3 * bit + 2) & 1) << (7 - bit)
        palette += [red, green, blue]
    return palette


_PALETTE = voc_palette()


def jpeg(picture: np.ndarray) -> bytes:
    """A (H, W, 3) uint8 picture as JPEG, with full colour resolution (pictures are small)."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def png(values: np.ndarray, palette: bool = False) -> bytes:
    """An 8-bit grey, 8-bit RGB or 16-bit array as PNG."""
    image = Image.fromarray(values)
    if palette:
        image = image.convert("P") if image.mode != "L" else image
        image.putpalette(_PALETTE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def encode_depth(depth: np.ndarray) -> np.ndarray:
    """Metres → uint16 millimetres; 0 stays 0 (nothing there)."""
    return np.clip(np.rint(depth * DEPTH_UNITS), 0, 65535).astype(np.uint16)


def encode_normals(normals: np.ndarray) -> np.ndarray:
    """Unit normals → uint8 with n = png / 127.5 - 1; a normal of length 0 becomes (0, 0, 0), the code of 'none'."""
    coded = np.clip(np.rint((normals + 1) * 127.5), 0, 255).astype(np.uint8)
    coded[~normals.any(axis=-1)] = 0
    return coded


def instances(scene: Scene, truth: Truth) -> list[dict[str, Any]]:
    """COCO annotations (without ids): exact masks as uncompressed RLE; objects too small to name are crowds, not
    scored."""
    size = truth.instance.shape[0]
    found = []
    for number, thing in enumerate(scene.objects, start=1):
        mask = truth.instance == number
        if not mask.any():
            continue
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        found.append(
            {
                "category_id": CLASSES.index(thing.name) + 1,
                "bbox": [int(value) for value in box],
                "area": int(mask.sum()),
                "iscrowd": int(number in truth.too_small),
                "segmentation": {"size": [size, size], "counts": run_lengths(mask)},
            }
        )
    return found


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed RLE: run lengths column by column, beginning with a run of zeros (perhaps empty)."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
    return [int(count) for count in (counts[:-1] if counts[-1] == 0 else counts)]


class Files:
    """Writes files below ``root`` and remembers the size and digest of each, by relative path."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.written: dict[str, tuple[int, str]] = {}

    def write(self, name: str, content: bytes) -> None:
        """Raises ``UserError`` when the disk is full or the folder cannot be written."""
        path = self.root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # not flushed one by one: a chunk's record, written last, is what says that its files are whole
            path.write_bytes(content)
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror or error}; free some space or set CLIPTEX_HOME to another folder"
            ) from error
        self.written[name] = (len(content), digest(content))


def digest(content: bytes) -> str:
    """A short digest that tells damage, not malice."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def write_dense(
    files: Files, prefix: str, split: str, stem: str, picture: np.ndarray, scene: Scene, truth: Truth
) -> dict[str, Any]:
    """One picture with all its truth in the VOC, COCO and NYU trees below ``prefix`` (``""`` or ``expert/``)."""
    image, nyu = jpeg(picture), {"train": "train", "val": "test"}[split]
    files.write(f"{prefix}{VOC}/JPEGImages/{stem}.jpg", image)
    files.write(f"{prefix}{VOC}/SegmentationClass/{stem}.png", png(truth.semantic, palette=True))
    files.write(f"{prefix}coco/{split}2017/{stem}.jpg", image)
    files.write(f"{prefix}nyu/images/{nyu}/{stem}.jpg", image)
    files.write(f"{prefix}nyu/annotations/{nyu}/{stem}.png", png(encode_depth(truth.depth)))
    files.write(f"{prefix}nyu/normals/{nyu}/{stem}.png", png(encode_normals(truth.normals)))
    return {"stem": stem, "annotations": instances(scene, truth)}


def dense_lists(prefix: str, split: str, size: int, records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The list file and the COCO json of a split: name → text."""
    listing = f"{prefix}{VOC}/ImageSets/Segmentation/{split}.txt"
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in records:
        number = int(record["stem"])
        images.append({"id": number, "file_name": f"{record['stem']}.jpg", "width": size, "height": size})
        for annotation in record["annotations"]:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation})
    coco = f"{prefix}coco/annotations/instances_{split}2017.json"
    content = {"info": {"description": "mini world"}, "licenses": [], "images": images, "annotations": annotations}
    return {
        listing: "".join(f"{record['stem']}\n" for record in records),
        coco: json.dumps({**content, "categories": CATEGORIES}, separators=(",", ":")),
    }


def karpathy_json(records: Sequence[dict[str, Any]]) -> str:
    """Karpathy's caption json; ``records`` have ``filename``, ``split`` and ``captions``."""
    images, sentence = [], 0
    for number, record in enumerate(records):
        sentences = []
        for text in record["captions"]:
            tokens = "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()
            sentences.append({"tokens": tokens, "raw": text, "imgid": number, "sentid": sentence})
            sentence += 1
        images.append(
            {
                "sentids": [entry["sentid"] for entry in sentences],
                "imgid": number,
                "sentences": sentences,
                "split": record["split"],
                "filename": record["filename"],
            }
        )
    return json.dumps({"images": images, "dataset": "mini"}, indent=1)


def write_tar(files: Files, name: str, members: Sequence[tuple[str, bytes]]) -> None:
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
        "caption": caption, "url": f"mini://{key}.jpg", "key": key, "status": "success", "error_message": None,
        "width": size, "height": size, "original_width": size, "original_height": size, "exif": "{}",
        "sha256": hashlib.sha256(image).hexdigest(),
    }  # fmt: skip
    return [
        (f"{key}.jpg", image),
        (f"{key}.txt", caption.encode()),
        (f"{key}.json", json.dumps(about, indent=4).encode()),
    ]
