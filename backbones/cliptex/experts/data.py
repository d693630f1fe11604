"""What experts are trained on and measured against: images with truth from the official layouts,
read as they are needed.

COCO instances (merged into one class map), NYU-like 16-bit depth and 8-bit normals. Everything is
cut to the largest centred square and brought to one size.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backbones.cliptex.protocols import Progress
from backbones.cliptex.tasks import find_task
from common.coco_masks import mask_error
from common.errors import UserError, report_malformed
from common.files import content_key, read_json
from common.images import IMAGE_ERRORS, to_rgb

Split = Literal["train", "val"]
IGNORE = 255
MEMORY = 2 * 2**30
COCO = {
    "train": "annotations/instances_train2017.json",
    "val": "annotations/instances_val2017.json",
}
NYU = {"train": "train", "val": "test"}


@dataclass(frozen=True)
class CocoImage:
    """An image of a COCO file with its instances; ``category`` is the place of the class, 1 … (0 is
    the background)."""

    file_name: str
    height: int
    width: int
    instances: list[dict[str, Any]]

    def mask(self, instance: dict[str, Any]) -> np.ndarray:
        """(H, W) bool of one instance, from polygons or run lengths."""
        from pycocotools import mask as coco_mask

        code = instance["segmentation"]
        if isinstance(code, list):
            code = (
                coco_mask.merge(coco_mask.frPyObjects(code, self.height, self.width))
                if code
                else None
            )
        elif isinstance(code["counts"], list):
            code = coco_mask.frPyObjects(code, self.height, self.width)
        return (
            np.zeros((self.height, self.width), bool)
            if code is None
            else coco_mask.decode(code).astype(bool)
        )


@dataclass(frozen=True)
class Sample:
    """An image file, what reads its truth – (H, W) or (H, W, 3) – and, of COCO, its instances."""

    path: Path
    truth: Callable[[], np.ndarray]
    coco: CocoImage | None = None


@dataclass
class ExpertData:
    """A split with truth. What was read stays in memory up to ``memory`` bytes; the rest is decoded
    whenever it is needed.

    Attributes:
        task: ``seg``, ``depth`` or ``normal``.
        size: S, the side of images and targets in pixels.
        classes: of seg, ``background`` first.
        fingerprint: digest of all images and targets.
        pixels: (256,) int64, of seg: how often each value is seen in all targets.
    """

    task: str
    samples: Sequence[Sample]
    size: int
    classes: tuple[str, ...] = ()
    fingerprint: str = ""
    pixels: Tensor = field(default_factory=lambda: torch.zeros(256, dtype=torch.int64))
    memory: int = MEMORY
    _kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, indices: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) uint8 RGB and their target: seg (B, S, S) uint8, 0 background, 1 +
        category, 255 ignore; depth (B, S, S) float32 inverse depth in 1/m, NaN unknown; normal (B,
        3, S, S) float32 unit vectors (axes: ``augment.AXES``), zero unknown.

        Raises:
            UserError: a file is missing or damaged.
        """
        indices = list(indices)
        found = {index: self._kept[index] for index in indices if index in self._kept}
        missing = sorted(set(indices) - set(found))
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
            for index, pair in zip(missing, pool.map(self._decode, missing), strict=True):
                found[index] = pair
                if (len(self._kept) + 1) * sum(tensor.nbytes for tensor in pair) <= self.memory:
                    self._kept[index] = pair
        images, targets = zip(*(found[index] for index in indices), strict=True)
        return torch.stack(images), torch.stack(targets)

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All of it in order, as ``read`` gives it."""
        for start in range(0, len(self), batch_size):
            yield self.read(range(start, min(start + batch_size, len(self))))

    def _decode(self, index: int) -> tuple[Tensor, Tensor]:
        sample = self.samples[index]
        try:
            with Image.open(sample.path) as image:
                picture = square(np.asarray(to_rgb(image)), self.size, Image.Resampling.BICUBIC)
            target = square(sample.truth(), self.size, Image.Resampling.NEAREST)
        except IMAGE_ERRORS as error:
            raise UserError(
                f"cannot read {sample.path} or its truth ({error}); repair or remove it"
            ) from error
        if target.ndim == 3:
            target = np.ascontiguousarray(np.moveaxis(target, -1, 0), np.float32)
        return torch.from_numpy(
            np.ascontiguousarray(np.moveaxis(picture, -1, 0))
        ), torch.from_numpy(target)


def load_data(root: Path, task: str, split: Split, size: int, progress: Progress) -> ExpertData:
    """A split for ``task`` from ``root``: ``coco/`` for seg, ``nyu/`` for the others (or such a
    folder itself). All of it is decoded once, for the fingerprint, and so that what is damaged is
    found before hours of work.

    Raises:
        UserError: a folder or annotation file is missing or malformed, or an image has no truth.
    """
    root = Path(root)
    classes: tuple[str, ...] = ()
    if task == "seg":
        folder = _folder(root, "coco", COCO[split])
        classes, entries = coco_instances(folder, split)
        samples = [
            Sample(folder / f"{split}2017" / one.file_name, partial(paint, one), one)
            for one in entries
        ]
    else:
        maps = {"depth": "annotations", "normal": "normals"}[task]
        folder = _folder(root, "nyu", f"{maps}/{NYU[split]}")
        pictures = folder / "images" / NYU[split]
        paths = sorted(path for path in pictures.glob("*") if path.suffix in (".jpg", ".png"))
        if not paths:
            raise UserError(f"no images in {pictures}")
        samples = [
            Sample(path, partial(_read, task, folder / maps / NYU[split] / f"{path.stem}.png"))
            for path in paths
        ]
    data = ExpertData(task, samples, size, classes)
    progress.start(f"reading {split} images of {task}", len(data))
    digests = hashlib.sha256(), hashlib.sha256()
    for batch in data.batches(32):
        for digest, tensor in zip(digests, batch, strict=True):
            digest.update(tensor.numpy().tobytes())
        if task == "seg":
            data.pixels += torch.bincount(batch[1].flatten().long(), minlength=256)
        progress.advance(len(batch[0]))
    data.fingerprint = content_key([task, classes, *(digest.hexdigest() for digest in digests)], 32)
    return data


def _folder(root: Path, name: str, inside: str) -> Path:
    for folder in (root / name, root):
        if (folder / inside).exists():
            return folder
    raise UserError(
        f"{inside} is missing in {root / name}; give a data root in the official layouts"
    )


def coco_instances(root: Path, split: Split) -> tuple[tuple[str, ...], list[CocoImage]]:
    """Class names (``background`` first) and all images of a COCO folder's split. Raises
    ``UserError``."""
    path = root / COCO[split]
    with report_malformed(f"{path} is not a COCO instance file"):
        content = read_json(path)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        number = {category["id"]: place + 1 for place, category in enumerate(categories)}
        of_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        for annotation in content["annotations"]:
            if wrong := mask_error(annotation["segmentation"], *sizes[annotation["image_id"]]):
                raise UserError(f"{path} annotation {annotation.get('id')} has {wrong}")
            of_image[annotation["image_id"]].append(
                {
                    "segmentation": annotation["segmentation"],
                    "category": number[annotation["category_id"]],
                    "area": annotation.get("area", 0),
                    "iscrowd": annotation.get("iscrowd", 0),
                }
            )
        images = [
            CocoImage(image["file_name"], image["height"], image["width"], of_image[image["id"]])
            for image in content["images"]
        ]
        names = ("background", *(str(category["name"]) for category in categories))
    if not images:
        raise UserError(f"{path} lists no images")
    return names, images


def paint(image: CocoImage) -> np.ndarray:
    """Instances merged into one (H, W) uint8 class map, small ones over large ones; crowds become
    255."""
    merged = np.zeros((image.height, image.width), np.uint8)
    for instance in sorted(image.instances, key=lambda entry: -entry["area"]):
        merged[image.mask(instance)] = IGNORE if instance["iscrowd"] else instance["category"]
    return merged


def _read(task: str, path: Path) -> np.ndarray:
    label = find_task(task).read(path)
    return label if label.ndim == 2 else np.moveaxis(label, 0, -1)


def square(array: np.ndarray, size: int, how: Image.Resampling) -> np.ndarray:
    """The largest centred square of (H, W[, C]), brought to ``size``; nearest keeps values as they
    are."""
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
