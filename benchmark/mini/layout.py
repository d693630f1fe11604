"""The files of the mini world in official layouts: VOC masks, COCO json, NYU depth and normals,
ImageFolder, Karpathy json and webdataset pairs."""

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from benchmark.mini.render import IGNORE, GroundTruth
from benchmark.mini.scene import Scene
from benchmark.mini.shapes import CLASSES
from cliptex_common.dense_maps.pictures import palette

VOC = "VOCdevkit/VOC2012"
DEPTH_UNITS = 1000  # stored depth is in millimetres, as in mmseg's NYUDataset
_PALETTE = palette(256).ravel().tolist()


def encode_image(values: np.ndarray, labels: bool = False, **settings: Any) -> bytes:
    """An 8-bit grey or RGB or a 16-bit array as PNG, or as its ``settings`` say; a map of
    ``labels`` has VOC's palette."""
    image, buffer = Image.fromarray(values), io.BytesIO()
    if labels:
        image.putpalette(_PALETTE)
    image.save(buffer, **{"format": "PNG", "compress_level": 1, **settings})
    return buffer.getvalue()


def encode_depth(depth: np.ndarray) -> np.ndarray:
    """Metres → uint16 millimetres."""
    return np.clip(np.rint(depth * DEPTH_UNITS), 0, 65535).astype(np.uint16)


def encode_normals(normals: np.ndarray) -> np.ndarray:
    """Unit normals → uint8 with n = png / 127.5 - 1."""
    return np.clip(np.rint((normals + 1) * 127.5), 0, 255).astype(np.uint8)


def dense_files(part: str, stem: str, picture: bytes, target: GroundTruth) -> dict[str, bytes]:
    """A picture and its ground truth in VOC's, COCO's and NYU's layout: name → content."""
    nyu = "test" if part == "val" else part
    return {
        f"{VOC}/JPEGImages/{stem}.jpg": picture,
        f"{VOC}/SegmentationClass/{stem}.png": encode_image(target.semantic, labels=True),
        f"coco/{part}2017/{stem}.jpg": picture,
        f"nyu/images/{nyu}/{stem}.jpg": picture,
        f"nyu/annotations/{nyu}/{stem}.png": encode_image(encode_depth(target.depth)),
        f"nyu/normals/{nyu}/{stem}.png": encode_image(encode_normals(target.normals)),
    }


def instance_annotations(scene: Scene, target: GroundTruth) -> list[dict[str, Any]]:
    """COCO annotations without ids; objects too small to name are crowds, which are not scored."""
    annotations = []
    for number, item in enumerate(scene.objects, start=1):
        mask = target.instance == number
        if not mask.any():
            continue
        encoded: dict[str, Any] = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        annotations.append(
            {
                "category_id": CLASSES.index(item.name) + 1,
                "bbox": [int(value) for value in coco_mask.toBbox(encoded)],
                "area": int(mask.sum()),
                "iscrowd": int((target.semantic[mask] == IGNORE).any()),
                "segmentation": {**encoded, "counts": encoded["counts"].decode()},
            }
        )
    return annotations


def dense_lists(part: str, size: int, records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The list file and the COCO json of a split with dense ground truth: name → text."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, record in enumerate(records, start=1):
        name = f"{record['stem']}.jpg"
        images.append({"id": number, "file_name": name, "width": size, "height": size})
        for annotation in record["annotations"]:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    stems = "".join(f"{record['stem']}\n" for record in records)
    return {
        f"{VOC}/ImageSets/Segmentation/{part}.txt": stems,
        f"coco/annotations/instances_{part}2017.json": json.dumps(coco),
    }


def karpathy_json(records: Sequence[dict[str, Any]]) -> str:
    """Karpathy's caption json; ``records`` have ``filename``, ``split`` and ``captions``."""
    images = []
    for number, record in enumerate(records):
        sentences = [
            {"tokens": text.replace(",", "").split(), "raw": text, "imgid": number, "sentid": key}
            for key, text in enumerate(record["captions"], start=5 * number)
        ]
        entry = {"imgid": number, "filename": record["filename"], "split": record["split"]}
        images.append({**entry, "sentences": sentences})
    return json.dumps({"images": images, "dataset": "mini"})
