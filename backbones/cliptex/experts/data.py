"""Training and validation data of experts: images with the ground truth of a task, cut to the
largest centred square and brought to one size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backbones.cliptex.ground_truth import LabelledImage
from backbones.cliptex.tasks import find_task
from cliptex_common.dense_maps.read import UNKNOWN
from cliptex_common.errors import UserError
from cliptex_common.files import content_key
from cliptex_common.images import IMAGE_ERRORS, to_rgb
from cliptex_common.progress import Progress
from cliptex_common.visible_devices import cores

MEMORY = 2 * 2**30


@dataclass
class ExpertData:
    """A split with ground truth.

    Decoded samples stay in memory up to ``memory`` bytes; the others are decoded when needed.

    Attributes:
        task: its name.
        size: S, the side of images and targets in pixels.
        classes: names of the classes by number, of maps of classes.
        fingerprint: digest of all images and targets.
        pixels: (256,) int64, of maps of classes: how often each value occurs in all targets.
    """

    task: str
    samples: Sequence[LabelledImage]
    size: int
    classes: tuple[str, ...] = ()
    fingerprint: str = ""
    pixels: Tensor = field(default_factory=lambda: torch.zeros(256, dtype=torch.int64))
    memory: int = MEMORY
    _cached: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, indices: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) uint8 RGB and their targets (B, S, S) or (B, C, S, S), the labels as
        their task reads them.

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
        path, read_label = self.samples[index]
        try:
            with Image.open(path) as image:
                photo = np.asarray(to_rgb(image))
            label = read_label()
            if photo.shape[:2] != label.shape[-2:]:
                sizes = [f"{x}×{y}" for y, x in (label.shape[-2:], photo.shape[:2])]
                raise ValueError(f"it has {sizes[0]} px, and the image {sizes[1]}")
            pixels = square(photo, self.size, nearest=False)
            target = square(label if label.ndim == 2 else np.moveaxis(label, 0, -1), self.size)
        except IMAGE_ERRORS as error:
            raise UserError(
                f"cannot read {path} or its ground truth ({error}); repair or remove it"
            ) from error
        if target.ndim == 3:
            target = np.ascontiguousarray(np.moveaxis(target, -1, 0), np.float32)
        pixels = np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
        return torch.from_numpy(pixels), torch.from_numpy(target)


def load_data(root: Path, task: str, split: str, size: int, progress: Progress) -> ExpertData:
    """The ``train`` or ``val`` split of a task's ground truth (``Task.ground_truth``) in ``root``.

    Every file is decoded once, for the fingerprint, and so that damage is reported before hours of
    work.

    Raises:
        UserError: a folder or annotation file is missing or malformed, an image has no ground
            truth, or its ground truth has a class without a name.
    """
    classes, samples = find_task(task).ground_truth(root, split)
    data = ExpertData(task, samples, size, classes)
    progress.start(f"reading {split} images of {task}", len(data))
    digests = hashlib.sha256(), hashlib.sha256()
    for batch in data.batches(32):
        for digest, tensor in zip(digests, batch, strict=True):
            digest.update(tensor.numpy().tobytes())
        if classes:
            data.pixels += torch.bincount(batch[1].flatten().long(), minlength=256)[:256]
        progress.advance(len(batch[0]))
    numbers = data.pixels[:UNKNOWN].nonzero().flatten().tolist()
    if numbers and numbers[-1] >= len(classes):
        raise UserError(
            f"the {split} maps of {task} have class {numbers[-1]}, but only {len(classes)} names"
        )
    data.fingerprint = content_key([task, classes, *(digest.hexdigest() for digest in digests)], 32)
    return data


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
