"""Datasets of real images that scikit-learn ships: handwritten digits, alone and on parts of two
photographs, with masks and boxes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = {"photograph": "", "closed": "0689", "straight": "147", "open": "235"}
SIDE, SCALE = 96, 4  # pixels of a scene, and of a digit's pixel
COUNTS = {"train": 30, "val": 20}
ANNOTATIONS = {"train": "train.json", "val": "val.json"}


def write(folder: Path) -> None:
    """``digits/{train,val}/0…9/*.png`` and ``scenes`` with images, masks and COCO's files."""
    from sklearn.datasets import load_digits, load_sample_images

    digits = load_digits()
    strokes = np.kron(digits.images / 16, np.ones((SCALE, SCALE)))
    for number, (stroke, label) in enumerate(zip(strokes[:300], digits.target, strict=False)):
        split = "train" if number < 200 else "val"
        save(np.uint8(255 * stroke), folder / f"digits/{split}/{label}/{number:03}.png")
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        content: dict[str, list[dict[str, Any]]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": n, "name": name} for n, name in enumerate(CLASSES) if n],
        }
        for number in range(count):
            photograph = load_sample_images().images[number % 2]
            name = f"{split}/{number:02}.png"
            top, left = (int(rng.integers(0, extent - SIDE)) for extent in photograph.shape[:2])
            scene = photograph[top : top + SIDE, left : left + SIDE].astype(float)
            mask = np.zeros((SIDE, SIDE), np.uint8)
            chosen = rng.choice(len(strokes), 3, replace=False)
            for place, (label, box) in enumerate(draw(scene, mask, strokes, digits.target, chosen)):
                x, y, right, bottom = box
                content["annotations"].append(
                    {
                        "id": 10 * number + place + 1,
                        "image_id": number,
                        "category_id": label,
                        "bbox": [x, y, right - x, bottom - y],
                        "area": (right - x) * (bottom - y),
                        "segmentation": [[x, y, right, y, right, bottom, x, bottom]],
                        "iscrowd": 0,
                    }
                )
            content["images"].append(
                {"id": number, "file_name": name, "width": SIDE, "height": SIDE}
            )
            save(np.uint8(scene), folder / "scenes/images" / name)
            save(mask, folder / "scenes/masks" / name)
        (folder / "scenes" / ANNOTATIONS[split]).write_text(json.dumps(content))


def draw(
    scene: np.ndarray, mask: np.ndarray, strokes: np.ndarray, digits: np.ndarray, chosen: np.ndarray
) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """Draw digits into a scene and its mask; yields the class and the box of each."""
    places = ((2, 2), (2, SIDE // 2), (SIDE // 2 + 4, SIDE // 4))
    for index, (top, left) in zip(chosen, places, strict=True):
        (label,) = (n for n, each in enumerate(CLASSES.values()) if str(digits[index]) in each)
        stroke = strokes[index]
        area = np.s_[top : top + len(stroke), left : left + len(stroke)]
        scene[area] += (255 - scene[area]) * stroke[..., None]
        mask[area][stroke > 0.3] = label
        rows, columns = (np.flatnonzero((stroke > 0.3).any(axis)) for axis in (1, 0))
        yield (
            label,
            (
                left + int(columns[0]),
                top + int(rows[0]),
                left + int(columns[-1]) + 1,
                top + int(rows[-1]) + 1,
            ),
        )


def save(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).convert("L" if image.ndim == 2 else "RGB").save(path)
