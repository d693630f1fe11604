"""Training and validation data of experts: images with ground truth from the official layouts.

COCO instances (merged into one class map), NYU-like 16-bit depth and 8-bit normals. Everything is
cut to the largest centred square and brought to one size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

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
from common.visible_devices import cores

IGNORE = 255
MEMORY = 2 * 2**30
COCO = {
    "train": "annotations/instances_train2017.json",
    "val": "annotations/instances_val2017.json",
}
NYU = {"train": "train", "val": "test"}
Sample = tuple[Path, Callable[[], np.ndarray]]  # image file; reads its (H, W) or (H, W, 3) target


@dataclass
class ExpertData:
    """A split with ground truth.

    Decoded samples stay in memory up to ``memory`` bytes; the others are decoded when needed.

    Attributes:
        task: ``seg``, ``depth`` or ``normal``.
        size: S, the side of images and targets in pixels.
        classes: of seg, ``background`` first.
        fingerprint: digest of all images and targets.
        pixels: (256,) int64, of seg: how often each value occurs in all targets.
    """

    task: str
    samples: Sequence[Sample]
    size: int
    classes: tuple[str, ...] = ()
    fingerprint: str = ""
    pixels: Tensor = field(default_factory=lambda: torch.zeros(256, dtype=torch.int64))
    memory: int = MEMORY
    _cached: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, indices: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) uint8 RGB and their targets.

        The targets are seg (B, S, S) uint8, 0 background, 1 + category, 255 ignore; depth (B, S, S)
        float32 inverse depth in 1/m, NaN unknown; or normal (B, 3, S, S) float32 unit vectors
        (axes: ``dense_maps.geometry.AXES``), zero unknown.

        Raises:
            UserError: a file is missing or damaged.
        """
        indices = list(indices)
        pairs = {index: self._cached[index] for index in indices if index in self._cached}
        missing = sorted(set(indices) - set(pairs))
        with ThreadPoolExecutor(min(cores(), 16)) as pool:
            for index, pair in zip(missing, pool.map(self._decode, missing), strict=True):
                pairs[index] = pair
                if (len(self._cached) + 1) * sum(tensor.nbytes for tensor in pair) <= self.memory:
                    self._cached[index] = pair
        images, targets = zip(*(pairs[index] for index in indices), strict=True)
        return torch.stack(images), torch.stack(targets)

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples in order, as ``read`` gives them."""
        for start in range(0, len(self), batch_size):
            yield self.read(range(start, min(start + batch_size, len(self))))

    def _decode(self, index: int) -> tuple[Tensor, Tensor]:
        path, read_target = self.samples[index]
        try:
            with Image.open(path) as image:
                pixels = square(np.asarray(to_rgb(image)), self.size, nearest=False)
            target = square(read_target(), self.size)
        except IMAGE_ERRORS as error:
            raise UserError(
                f"cannot read {path} or its ground truth ({error}); repair or remove it"
            ) from error
        if target.ndim == 3:
            target = np.ascontiguousarray(np.moveaxis(target, -1, 0), np.float32)
        pixels = np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
        return torch.from_numpy(pixels), torch.from_numpy(target)


def load_data(root: Path, task: str, split: str, size: int, progress: Progress) -> ExpertData:
    """The ``train`` or ``val`` split for ``task`` from ``root``: ``coco/`` for seg, else ``nyu/``.

    Or from such a folder itself. Every file is decoded once, for the fingerprint, and so that
    damage is reported before hours of work.

    Raises:
        UserError: a folder or annotation file is missing or malformed, or an image has no ground
            truth.
    """
    classes: tuple[str, ...] = ()
    samples: list[Sample]
    if task == "seg":
        folder = _folder(root, "coco", COCO[split])
        classes, images = coco_instances(folder / COCO[split])
        samples = [
            (folder / f"{split}2017" / image["file_name"], partial(paint, image))
            for image in images
        ]
    else:
        maps = {"depth": "annotations", "normal": "normals"}[task]
        folder = _folder(root, "nyu", f"{maps}/{NYU[split]}")
        pictures = folder / "images" / NYU[split]
        paths = sorted(path for path in pictures.glob("*") if path.suffix in (".jpg", ".png"))
        if not paths:
            raise UserError(f"no images in {pictures}")
        samples = [
            (path, partial(_read, task, folder / maps / NYU[split] / f"{path.stem}.png"))
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


def _folder(root: Path, name: str, content: str) -> Path:
    for folder in (root / name, root):
        if (folder / content).exists():
            return folder
    raise UserError(
        f"{content} is missing in {root / name}; give a data root in the official layouts"
    )


def coco_instances(path: Path) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """Class names (``background`` first) and images of a COCO instance file.

    Returns:
        the names, and a dict for each image: ``file_name``, ``height``, ``width`` and
        ``instances``, whose ``category_id`` is the class number, 1 … (0 is the background).

    Raises:
        UserError: the file is malformed or lists no images.
    """
    with report_malformed(f"{path} is not a COCO instance file"):
        content = read_json(path)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        numbers = {category["id"]: i for i, category in enumerate(categories, 1)}
        images = {image["id"]: {**image, "instances": []} for image in content["images"]}
        for annotation in content["annotations"]:
            image = images[annotation["image_id"]]
            size = image["height"], image["width"]
            if problem := mask_error(annotation["segmentation"], *size):
                raise UserError(f"{path} annotation {annotation.get('id')} has {problem}")
            number = numbers[annotation["category_id"]]
            image["instances"].append({**annotation, "category_id": number})
        names = ("background", *(str(category["name"]) for category in categories))
    if not images:
        raise UserError(f"{path} lists no images")
    return names, list(images.values())


def paint(image: dict[str, Any]) -> np.ndarray:
    """Instances merged into one (H, W) uint8 class map, small ones over large ones; crowds: 255."""
    size = image["height"], image["width"]
    merged = np.zeros(size, np.uint8)
    for instance in sorted(image["instances"], key=lambda instance: -instance.get("area", 0)):
        crowd = instance.get("iscrowd", 0)
        mask = _mask(instance["segmentation"], *size)
        merged[mask] = IGNORE if crowd else instance["category_id"]
    return merged


def _mask(code: Any, height: int, width: int) -> np.ndarray:
    """(H, W) bool from COCO's polygons or run lengths."""
    from pycocotools import mask as coco_mask

    if not code:
        return np.zeros((height, width), bool)
    if isinstance(code, list):
        code = coco_mask.merge(coco_mask.frPyObjects(code, height, width))
    elif isinstance(code["counts"], list):
        code = coco_mask.frPyObjects(code, height, width)
    return coco_mask.decode(code).astype(bool)


def _read(task: str, path: Path) -> np.ndarray:
    label = find_task(task).read(path)
    return label if label.ndim == 2 else np.moveaxis(label, 0, -1)


def square(array: np.ndarray, size: int, *, nearest: bool = True) -> np.ndarray:
    """The largest centred square of (H, W[, C]), brought to ``size``: bicubic, or each pixel from
    its ``nearest``, which keeps values as they are."""
    height, width = array.shape[:2]
    side = min(height, width)
    y, x = (height - side) // 2, (width - side) // 2
    array = array[y : y + side, x : x + side]
    if side == size:
        return np.ascontiguousarray(array)
    if nearest:
        positions = ((np.arange(size) + 0.5) * side / size).astype(int)
        return array[positions[:, None], positions[None]]
    return np.asarray(Image.fromarray(array).resize((size, size), Image.Resampling.BICUBIC))
