"""Random crops in changed colours that fill a memory, as Open-Hummingbird makes them.

Each follows from the image's content and the number of the crop alone, as a ``FixedCrop`` does; its
distribution is another one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from PIL import Image
from torch import Tensor
from torchvision.transforms import (
    ColorJitter,
    Compose,
    InterpolationMode,
    RandomApply,
    RandomResizedCrop,
)
from torchvision.transforms.functional import resized_crop, to_tensor

from cliptex_common.files import derive_seed
from probes.features.files import content_hash
from probes.train.sampling import isolated_rng

AREA, ASPECT = (0.5, 2.0), (3 / 4, 4 / 3)  # of a crop: share of the image's area, width / height
COLOURS = Compose(
    [
        RandomApply([ColorJitter(**{name: 0.1})], 0.5)
        for name in ("brightness", "contrast", "saturation", "hue")
    ]
)
Region = tuple[int, int, int, int]  # top, left, height, width


def draw_region(height: int, width: int) -> Region:
    """A random part of an image, by torch's generator."""
    return RandomResizedCrop.get_params(torch.empty(1).expand(3, height, width), AREA, ASPECT)


def region_of(path: str, number: int, height: int, width: int) -> Region:
    """The part of an image file that its crop ``number`` shows."""
    with isolated_rng(derive_seed("memory crop", content_hash(path), number)):
        return draw_region(height, width)


def resize_region(pixels: Tensor, region: Region, side: int, is_image: bool) -> Tensor:
    """(C, H, W) → (C, side, side): bilinear with antialiasing, or nearest for labels."""
    mode = InterpolationMode.BILINEAR if is_image else InterpolationMode.NEAREST
    return resized_crop(pixels, *region, [side, side], mode, antialias=is_image)


@TRANSFORMS.register_module()
class JitteredCrop(BaseTransform):
    """Replace an image by its crop ``results["crop"][0]``: its colours are changed, then a part of
    it is resized to ``crop`` × ``crop`` float32 pixels (BGR, 0–255)."""

    def __init__(self, crop: int) -> None:
        self.crop = crop

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        path, number = results["img_path"], results["crop"][0]
        region = region_of(path, number, *results["img"].shape[:2])
        with isolated_rng(derive_seed("memory colours", content_hash(path), number)):
            image = COLOURS(Image.fromarray(results["img"][..., ::-1]))
        pixels = 255 * resize_region(to_tensor(image), region, self.crop, is_image=True)
        results["img"] = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()[..., ::-1])
        results["img_shape"] = results["img"].shape[:2]
        return results
