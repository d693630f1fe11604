"""What experts are trained on and measured against: images with truth from the official layouts, in memory.

COCO instances (merged into one class map), NYU-like 16-bit depth and 8-bit normals. Everything is cut to the largest
centred square and brought to one size: a training set of 1,000 images at 384 px is 0.45 GB.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backbones.cliptex.protocols import Progress
from backbones.cliptex.tasks import find_task
from backbones.errors import UserError
from backbones.files import content_key

Split = Literal["train", "val"]
IGNORE = 255
COCO = {"train": "annotations/instances_train2017.json", "val": "annotations/instances_val2017.json"}
NYU = {"train": "train", "val": "test"}


@dataclass(frozen=True)
class ExpertData:
    """A split with truth.

    Attributes:
        task: ``seg``, ``depth`` or ``normal``.
        images: (N, 3, S, S) uint8 RGB.
        target: seg (N, S, S) uint8, 0 background, 1 + category, 255 ignore; depth (N, S, S) float32 inverse depth in
            1/m, NaN unknown; normal (N, 3, S, S) float32 unit vectors (axes: ``augment.AXES``), zero unknown.
        classes: of seg, ``background`` first.
        fingerprint: digest of it all.
        folder, split: where it was read from (``coco`` or ``nyu``).
    """

    task: str
    images: Tensor
    target: Tensor
    classes: tuple[str, ...]
    fingerprint: str
    folder: Path
    split: Split

    def __len__(self) -> int:
        return len(self.images)


def load_data(root: Path, task: str, split: Split, size: int, progress: Progress) -> ExpertData:
    """Read a split for ``task`` from ``root``: ``coco/`` for seg, ``nyu/`` for the others (or such a folder itself).

    Raises:
        UserError: a folder or annotation file is missing or malformed, or an image has no truth.
    """
    root = Path(root)
    if task == "seg":
        folder = _folder(root, "coco", COCO[split])
        classes, samples = _coco(folder, split)
    else:
        maps = {"depth": "annotations", "normal": "normals"}[task]
        folder = _folder(root, "nyu", f"{maps}/{NYU[split]}")
        classes, samples = (), _nyu(folder, maps, NYU[split], task)
    progress.start(f"reading {split} images of {task}", len(samples))
    images: list[np.ndarray] = []
    targets: list[np.ndarray] = []

    def read(sample: tuple[Path, Callable[[], np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        path, truth = sample
        try:
            with Image.open(path) as image:
                picture = square(np.asarray(image.convert("RGB")), size, Image.Resampling.BICUBIC)
            return picture, truth()
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {path} or its truth ({error}); repair or remove it") from error

    with ThreadPoolExecutor(2) as pool:
        for picture, truth in pool.map(read, ((path, _sized(truth, size)) for path, truth in samples)):
            images.append(picture)
            targets.append(truth)
            progress.advance()
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    target = torch.from_numpy(np.stack(targets))
    digest = content_key([task, classes, _digest(stacked), _digest(target)], 32)
    return ExpertData(task, stacked, target, classes, digest, folder, split)


def _folder(root: Path, name: str, inside: str) -> Path:
    for folder in (root / name, root):
        if (folder / inside).exists():
            return folder
    raise UserError(f"{inside} is missing in {root / name}; give a data root in the official layouts")


def _coco(root: Path, split: Split) -> tuple[tuple[str, ...], list[tuple[Path, Callable[[], np.ndarray]]]]:
    """Class names, and (image, reader of its class map) of every image."""
    names, entries = coco_instances(root, split)

    def painter(entry: CocoImage) -> Callable[[], np.ndarray]:
        return lambda: paint(entry)

    return names, [(root / f"{split}2017" / entry.file_name, painter(entry)) for entry in entries]


@dataclass(frozen=True)
class CocoImage:
    """An image of a COCO file with its instances; ``category`` is the place of the class, 1 … (0 is the background)."""

    file_name: str
    height: int
    width: int
    instances: list[dict[str, Any]]

    def mask(self, instance: dict[str, Any]) -> np.ndarray:
        """(H, W) bool of one instance, from polygons or run lengths."""
        from pycocotools import mask as coco_mask

        code = instance["segmentation"]
        if isinstance(code, list):
            code = coco_mask.merge(coco_mask.frPyObjects(code, self.height, self.width)) if code else None
        elif isinstance(code["counts"], list):
            code = coco_mask.frPyObjects(code, self.height, self.width)
        return np.zeros((self.height, self.width), bool) if code is None else coco_mask.decode(code).astype(bool)


def coco_instances(root: Path, split: Split) -> tuple[tuple[str, ...], list[CocoImage]]:
    """Class names (``background`` first) and all images of a COCO folder's split. Raises ``UserError``."""
    path = root / COCO[split]
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        categories = sorted(content["categories"], key=lambda category: category["id"])
        number = {category["id"]: place + 1 for place, category in enumerate(categories)}
        of_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            of_image[annotation["image_id"]].append({**annotation, "category": number[annotation["category_id"]]})
        images = [
            CocoImage(image["file_name"], image["height"], image["width"], of_image[image["id"]])
            for image in content["images"]
        ]
        names = ("background", *(str(category["name"]) for category in categories))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a COCO instance file ({error!r})") from error
    if not images:
        raise UserError(f"{path} lists no images")
    return names, images


def paint(image: CocoImage) -> np.ndarray:
    """Instances merged into one (H, W) uint8 class map, small ones over large ones; crowds become 255."""
    merged = np.zeros((image.height, image.width), np.uint8)
    for instance in sorted(image.instances, key=lambda entry: -entry.get("area", 0)):
        merged[image.mask(instance)] = IGNORE if instance.get("iscrowd") else instance["category"]
    return merged


def _nyu(root: Path, maps: str, folder: str, task: str) -> list[tuple[Path, Callable[[], np.ndarray]]]:
    images = sorted(path for path in (root / "images" / folder).glob("*") if path.suffix in (".jpg", ".png"))
    if not images:
        raise UserError(f"no images in {root / 'images' / folder}")

    def reader(path: Path) -> Callable[[], np.ndarray]:
        return lambda: _channels_last(find_task(task).read(path))

    return [(path, reader(root / maps / folder / f"{path.stem}.png")) for path in images]


def _channels_last(label: np.ndarray) -> np.ndarray:
    return label if label.ndim == 2 else np.moveaxis(label, 0, -1)


def _sized(truth: Callable[[], np.ndarray], size: int) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        target = square(truth(), size, Image.Resampling.NEAREST)
        return target if target.ndim == 2 else np.moveaxis(target, -1, 0).astype(np.float32)

    return read


def square(array: np.ndarray, size: int, how: Image.Resampling) -> np.ndarray:
    """The largest centred square of (H, W[, C]), brought to ``size``; nearest keeps values as they are."""
    height, width = array.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    array = array[top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(array)
    if how == Image.Resampling.NEAREST:
        places = ((np.arange(size) + 0.5) * side / size).astype(int)
        return array[places[:, None], places[None]]
    return np.asarray(Image.fromarray(array).resize((size, size), how))


def _digest(tensor: Tensor) -> str:
    import hashlib

    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
