"""A generated COCO set: coloured shapes on noise, a crowd, an image without objects, categories in
another order, file names with folders."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_api

from probes.datasets.base import DatasetSpec, PreparedDataset, Sample
from probes.datasets.ground_truth import Boxes
from probes.registry import DATASETS, register_dataset

CLASSES = ("tv", "frisbee", "skis")  # three of COCO's, drawn as squares, discs and bars
CATEGORY_IDS = {"frisbee": 1, "skis": 7, "tv": 90}  # in another order than the classes
COLOURS = {"tv": (220, 40, 40), "frisbee": (40, 200, 60), "skis": (50, 80, 230)}
SPEC = DatasetSpec(
    "tiny-coco",
    "detection",
    "shapes",
    lambda root, split: [],
    classes=CLASSES,
    annotations={s: f"annotations/instances_{s}2017.json" for s in ("train", "val")},
)
if SPEC.name not in DATASETS:
    register_dataset(SPEC)


def write(root: Path, train: int = 12, val: int = 6, side: int = 96, seed: int = 0) -> Path:
    """Write the set in COCO's layout and return ``root``. In each split image 1 is empty and image
    2 has a crowd."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        folder = root / f"{split}2017"
        folder.mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for number in range(count):
            height, width = side, side + 16 * (number % 2)
            pixels = rng.integers(90, 130, (height, width, 3), dtype=np.uint8)
            identity = 100 * number + (1 if split == "train" else 2)
            covered = np.zeros((height, width), bool)
            for _ in range(0 if number == 1 else 3):
                name = CLASSES[int(rng.integers(3))]
                mask = _shape(rng, name, height, width)
                if (mask & covered).any() or mask.sum() < 20:
                    continue
                covered |= mask
                pixels[mask] = COLOURS[name]
                annotations.append(
                    _annotation(len(annotations) + 1, identity, name, mask, crowd=False)
                )
            if number == 2:
                crowd = np.zeros((height, width), bool)
                crowd[: height // 4] = True
                annotations.append(
                    _annotation(
                        len(annotations) + 1, identity, "frisbee", crowd & ~covered, crowd=True
                    )
                )
            file = f"{number % 2}/{identity:06d}.png"  # names may have folders
            (folder / file).parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / file)
            images.append({"id": identity, "file_name": file, "height": height, "width": width})
        categories = [{"id": identity, "name": name} for name, identity in CATEGORY_IDS.items()]
        (root / "annotations").mkdir(exist_ok=True)
        path = root / "annotations" / f"instances_{split}2017.json"
        path.write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": categories})
        )
    return root


def prepared(root: Path, skip: int = 0) -> PreparedDataset:
    """The set as a probe gets it; without the last ``skip`` training images."""
    samples = {}
    for split, file in SPEC.annotations.items():
        images = json.loads((root / file).read_text())["images"]
        samples[split] = [
            Sample(f"{split}2017/{image['file_name']}", Boxes(image["id"])) for image in images
        ]
    samples["train"] = samples["train"][: len(samples["train"]) - skip]
    return PreparedDataset(SPEC.name, root, samples)


def _shape(rng: np.random.Generator, name: str, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    size = int(rng.integers(height // 5, height // 2))
    top, x0 = int(rng.integers(0, height - size)), int(rng.integers(0, width - size))
    if name == "frisbee":
        return (y - top - size / 2) ** 2 + (x - x0 - size / 2) ** 2 <= (size / 2) ** 2
    tall = size if name == "tv" else size // 3
    return (y >= top) & (y < top + tall) & (x >= x0) & (x < x0 + size)


def _annotation(identity: int, image: int, name: str, mask: np.ndarray, crowd: bool) -> dict:
    code = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
    if crowd:  # uncompressed run-length code, as in COCO's files
        flat = mask.flatten(order="F").astype(np.int8)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
        counts = np.diff(np.concatenate([[0], edges, [flat.size]]))
        segmentation: object = {"size": list(mask.shape), "counts": [int(c) for c in counts]}
    else:
        segmentation = {"size": list(mask.shape), "counts": code["counts"].decode()}
    return {
        "id": identity,
        "image_id": image,
        "category_id": CATEGORY_IDS[name],
        "bbox": [float(v) for v in mask_api.toBbox(code)],
        "area": float(mask_api.area(code)),
        "iscrowd": int(crowd),
        "segmentation": segmentation,
    }
