"""Views of a training image that repeat: which part, how large, turned or not, follows from the image's content alone.

So a backbone can encode each view once, every backbone sees the same ones, and so does every task on the same images.
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

from backbones.errors import UserError
from backbones.files import sha256_file
from probes.runner.sampling import seed_of


class View(NamedTuple):
    """One view: its crop's number, and whether it is turned (mirrored left to right)."""

    number: int
    turned: bool


def all_views(views: int, flip: float) -> list[View]:
    """Every view that may be drawn, in the order in which they are kept."""
    turns = [turned for turned in (False, True) if (flip > 0 if turned else flip < 1)]
    return [View(number, turned) for number in range(views) for turned in turns]


def draw_view(views: int, flip: float) -> View:
    """One view, by numpy's generator (which the draw of a sample seeds)."""
    return View(int(np.random.randint(views)), bool(np.random.random() < flip))


@TRANSFORMS.register_module()
class DeterministicView(BaseTransform):
    """Resize, crop and turn an image, and its truth where it is loaded, to one of ``views`` views.

    Number 0 is the centre crop at scale 1. Another is resized by a factor of ``scale_range`` and cropped anywhere, as
    the seed (sha256 of the image file, number) says. Which one is drawn by ``draw_view`` unless ``results["view"]``
    names it. Smaller images than the crop stay so: ``PadTruth`` comes after.

    Args:
        size: short side in pixels at scale 1 (the long side stays within 4 × it).
        crop: side of the square crop.
        scale_range: low and high factor.
        views, flip: what to draw from.
    """

    def __init__(self, size: int, crop: int, scale_range: Sequence[float], views: int, flip: float) -> None:
        self.size, self.crop, self.scale_range, self.views, self.flip = size, crop, tuple(scale_range), views, flip

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        view = View(*results["view"]) if "view" in results else draw_view(self.views, self.flip)
        random = None
        if view.number:
            random = np.random.default_rng(seed_of("view", sha256_file(Path(results["img_path"])), view.number))
        factor = 1.0 if random is None else random.uniform(self.scale_range[0], self.scale_range[1])
        scale = (int(4 * self.size * factor), int(self.size * factor))
        results = Resize(scale=scale, keep_ratio=True).transform(results)
        spare = [max(side - self.crop, 0) for side in results["img"].shape[:2]]
        top, left = (each // 2 if random is None else int(random.integers(each + 1)) for each in spare)
        for name in ("img", "gt_seg_map"):
            if name in results:
                part = results[name][top : top + self.crop, left : left + self.crop]
                results[name] = np.ascontiguousarray(part[:, ::-1] if view.turned else part)
        results["img_shape"] = results["img"].shape[:2]
        results["flip"], results["flip_direction"] = view.turned, "horizontal" if view.turned else None
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
    """(width, height) of the stored pixels, from the file's header. Raises ``UserError`` when it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.size
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
