"""Crops of a training image that repeat: which part, how large, flipped or not, follows from the
image's content alone.

So a backbone can encode each crop once, every backbone sees the same ones, and so does every task
on the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import probes.runner.bridge  # noqa: F401  first: it gives mmcv the operators that mmseg's import asks for

# isort: split
import numpy as np
from mmcv.transforms import BaseTransform, Resize
from mmengine.registry import TRANSFORMS
from PIL import Image

from common.errors import UserError
from common.files import derive_seed
from common.images import IMAGE_ERRORS
from probes.features.content_hashes import content_hash


class Crop(NamedTuple):
    """One crop: its number, and whether it is flipped left to right."""

    number: int
    flipped: bool


def all_crops(fixed_crops: int, flip: float) -> list[Crop]:
    """Every crop that may be drawn, in the order in which they are kept."""
    flips = [flipped for flipped in (False, True) if (flip > 0 if flipped else flip < 1)]
    return [Crop(number, flipped) for number in range(fixed_crops) for flipped in flips]


def draw_crop(fixed_crops: int, flip: float) -> Crop:
    """One crop, by numpy's generator (which the sample's index seeds)."""
    return Crop(int(np.random.randint(fixed_crops)), bool(np.random.random() < flip))


@TRANSFORMS.register_module()
class FixedCrop(BaseTransform):
    """Resize, crop and flip an image, and its ground truth where it is loaded, to one of
    ``fixed_crops`` crops.

    Number 0 is the centre crop at scale 1. Another is resized by a factor of ``scale_range`` and
    cropped anywhere, as the seed (sha256 of the image file, number) says. Which one is drawn by
    ``draw_crop`` unless ``results["crop"]`` names it. Smaller images than the crop stay so: padding
    comes after.

    Args:
        size: short side in pixels at scale 1 (the long side stays within 4 × it).
        crop: side of the square crop.
        scale_range: low and high factor.
        fixed_crops, flip: what to draw from.
    """

    def __init__(
        self, size: int, crop: int, scale_range: Sequence[float], fixed_crops: int, flip: float
    ) -> None:
        self.size, self.crop, self.scale_range = size, crop, tuple(scale_range)
        self.fixed_crops, self.flip = fixed_crops, flip

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        crop = (
            Crop(*results["crop"]) if "crop" in results else draw_crop(self.fixed_crops, self.flip)
        )
        random = None
        if crop.number:
            # "view": as the first version called it, so that the crops stay those that they were
            random = np.random.default_rng(
                derive_seed("view", content_hash(results["img_path"]), crop.number)
            )
        factor = 1.0 if random is None else random.uniform(self.scale_range[0], self.scale_range[1])
        scale = (int(4 * self.size * factor), int(self.size * factor))
        results = Resize(scale=scale, keep_ratio=True).transform(results)
        spare = [max(side - self.crop, 0) for side in results["img"].shape[:2]]
        top, left = (
            each // 2 if random is None else int(random.integers(each + 1)) for each in spare
        )
        for name in ("img", "gt_seg_map"):
            if name in results:
                part = results[name][top : top + self.crop, left : left + self.crop]
                results[name] = np.ascontiguousarray(part[:, ::-1] if crop.flipped else part)
        results["img_shape"] = results["img"].shape[:2]
        results["flip"], results["flip_direction"] = (
            crop.flipped,
            "horizontal" if crop.flipped else None,
        )
        return results


@TRANSFORMS.register_module()
class LoadBlank(BaseTransform):
    """A black image of the file's size, for pipelines that need no pixels: only the header is read.

    Raises:
        UserError: the file cannot be read.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        width, height = image_size(results["img_path"])
        results["img"] = np.zeros((height, width, 3), np.uint8)
        results["img_shape"] = results["ori_shape"] = (height, width)
        return results


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of the stored pixels, from the file's header. Raises ``UserError`` when it
    cannot be read."""
    try:
        with Image.open(path) as image:
            return image.size
    except IMAGE_ERRORS as error:
        raise UserError(f"cannot read {path}: {error}") from error
