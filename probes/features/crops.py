"""Repeatable crops of training images: position, size and flip follow from the image's content
alone.

So each crop is encoded once, and all backbones and all tasks on the same images see the same crops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from mmcv.transforms import BaseTransform, Resize
from mmengine.registry import TRANSFORMS

from cliptex_common.files import derive_seed
from probes.features.content_hashes import content_hash


class Crop(NamedTuple):
    """One crop: its number, and whether it is flipped left to right."""

    number: int
    flipped: bool


def all_crops(fixed_crops: int, flip: float) -> list[Crop]:
    """Every crop that may be drawn, in the order of the cached features."""
    return [Crop(number, flipped) for number in range(fixed_crops) for flipped in flips(flip)]


def flips(probability: float) -> list[bool]:
    """Whether an image is flipped: what may be drawn with this probability of a flip."""
    possible = {False: probability < 1, True: probability > 0}
    return [flipped for flipped, is_possible in possible.items() if is_possible]


def draw_crop(fixed_crops: int, flip: float) -> Crop:
    """One crop, by numpy's generator (which the sample's index seeds)."""
    return Crop(int(np.random.randint(fixed_crops)), bool(np.random.random() < flip))


@TRANSFORMS.register_module()
class FixedCrop(BaseTransform):
    """Resize, crop and flip an image, and its ground truth if loaded, to one of ``fixed_crops``
    crops.

    Number 0 is the centre crop at scale 1. Any other is resized by a factor of ``scale_range`` and
    cropped at a random position; the seed is (sha256 of the image file, number). ``draw_crop``
    chooses the number unless ``results["crop"]`` has one. Images smaller than the crop are padded
    later.

    Args:
        size: short side in pixels at scale 1 (the long side is at most 4 times as long).
        crop: side of the square crop.
        scale_range: smallest and largest factor.
        fixed_crops: number of crops to draw from.
        flip: probability of a flip.
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
            # every crop follows from this seed, the word "view" included
            random = np.random.default_rng(
                derive_seed("view", content_hash(results["img_path"]), crop.number)
            )
        factor = 1.0 if random is None else random.uniform(self.scale_range[0], self.scale_range[1])
        scale = (int(4 * self.size * factor), int(self.size * factor))
        results = Resize(scale=scale, keep_ratio=True).transform(results)
        margins = [max(side - self.crop, 0) for side in results["img"].shape[:2]]
        y, x = (
            margin // 2 if random is None else int(random.integers(margin + 1))
            for margin in margins
        )
        for name in ("img", "gt_seg_map"):
            if name in results:
                array = results[name][y : y + self.crop, x : x + self.crop]
                results[name] = np.ascontiguousarray(array[:, ::-1] if crop.flipped else array)
        results["img_shape"] = results["img"].shape[:2]
        results["flip"] = crop.flipped
        results["flip_direction"] = "horizontal" if crop.flipped else None
        return results
