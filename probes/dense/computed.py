"""Targets that are computed when they are read: corners and orientation of the image itself, and
occlusion edges of its depth. Nobody has drawn them, so any images will do.

They are computed at a short side of ``side`` pixels and resized to the image, so that the same
picture in a larger file has the same target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from PIL import Image
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from cliptex_common.images import class_legend, open_image, read_depth, to_rgb
from cliptex_common.metrics import Arrays
from cliptex_common.settings import Axis, settings_dataclass
from probes.datasets.base import DatasetSpec
from probes.dense.depth import Depth
from probes.dense.settings import DenseSettings, FactorRange
from probes.dense.task import DenseTask, Drawing, cropped, range_text
from reports.records import CEILING, Metric

if TYPE_CHECKING:
    from torch import Tensor

LUMA = np.array((0.299, 0.587, 0.114), np.float32)  # ITU-R BT.601
NEAREST = {"mode": "nearest"}  # beyond its frame an image goes on: no edge around it


@settings_dataclass
class OneScaleSettings(DenseSettings):
    """Images are not scaled at random: what is computed or marked in one depends on its scale."""

    scale_range: FactorRange = (1.0, 1.0)
    max_iters: Annotated[PositiveInt, Axis()] = 20_000


@settings_dataclass
class ComputedSettings(OneScaleSettings):
    """Settings of what is computed when it is read.

    Attributes:
        side: short side in pixels at which the target is computed; 0, or more than the image has,
            for the image as it is.
        sigma: of the window that gradients are summed over, pixels at that side.
    """

    side: NonNegativeInt = 224
    sigma: PositiveFloat = 2.0


def structure_tensor(grey: np.ndarray, sigma: float) -> tuple[np.ndarray, ...]:
    """Gxx, Gxy and Gyy of (H, W) grey values: products of the gradients (Sobel, intensity a pixel)
    to the right and downwards, under a Gaussian window of ``sigma`` pixels."""
    from scipy import ndimage

    y, x = (ndimage.sobel(grey, axis, **NEAREST) / 8 for axis in (0, 1))
    smooth = [ndimage.gaussian_filter(each, sigma, **NEAREST) for each in (x * x, x * y, y * y)]
    return tuple(smooth)


class Computed(DenseTask):
    """A task whose ceiling is what the grid of patches allows.

    Attributes:
        grid: stride in pixels of the maps that a head reads, and short side of the images then (0:
            as they are); none for no ceiling. ``dense_config`` sets it.
        crop: that is scored, see ``cropped``.
    """

    name, field, level = "computed", "computed_map", "low"
    settings: ClassVar[type[DenseSettings]] = ComputedSettings
    grid: Sequence[float] = ()
    crop: Sequence[Any] | None = None

    def reading(self, spec: DatasetSpec, classes: int, settings: Any = None) -> dict[str, Any]:
        settings = settings or self.settings()
        return {"side": settings.side, "sigma": settings.sigma}

    def read(self, path: str, side: int, sigma: float) -> np.ndarray:  # type: ignore[override]
        import cv2

        with open_image(path) as image:
            rgb = to_rgb(image)
        size = rgb.size
        if side and side < min(size):
            scaled = [round(length * side / min(size)) for length in size]
            rgb = rgb.resize((scaled[0], scaled[1]), Image.Resampling.BILINEAR)
        grey = np.asarray(rgb, np.float32) @ LUMA / 255
        return cv2.resize(self.compute(*structure_tensor(grey, sigma)), size)

    def compute(self, xx: np.ndarray, xy: np.ndarray, yy: np.ndarray) -> np.ndarray:
        """The target, (h, w) or (h, w, channels) float32, of the parts of a structure tensor."""
        raise NotImplementedError

    def evaluator(self, settings: Any, spec: DatasetSpec) -> dict[str, Any]:
        crop = settings.test_area or spec.extra.get("crop")
        return {"type": "TaskScores", "task": self.name, "crop": crop}

    def score(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """``compare`` of the prediction, and as ``grid_METRIC`` the main metric of what comes
        nearest to the target, in least squares, of all maps with one value a patch that are resized
        (bilinear) to it."""
        maps = [prediction, target]
        if self.grid:
            filled = target.where(target != self.unknown, 0.0)
            maps.append(nearest_on_grid(filled, *self.grid))
        prediction, target, *best = (cropped(each, self.crop).double() for each in maps)
        scores = self.compare(prediction, target)
        main = next(iter(self.metrics))
        for each in best:
            scores[f"grid_{main}"] = self.compare(each, target)[main]
        return scores

    def compare(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The metrics of one image, of float64 maps."""
        raise NotImplementedError

    def metrics_of(self, arrays: Arrays, notes: list[str]) -> dict[str, float]:
        main, metrics = next(iter(self.metrics)), super().metrics_of(arrays, notes)
        if f"grid_{main}" in arrays:
            best = metrics[CEILING + main] = float(np.nanmean(arrays[f"grid_{main}"]))
            notes.append(f"a map with one value a patch has {main} {best:.3g} at best")
        return metrics


class Magnitude(Computed):
    """A number of 0 or more a pixel, learned by its absolute error. Pearson's correlation is that
    of an image's pixels; 0 where one of both maps is constant."""

    unknown = -1.0
    metrics: ClassVar[Mapping[str, Metric]] = {
        "pearson": Metric(1, "", -1.0, 1.0, "Pearson"),
        "mae": Metric(-1, "", 0.0, None, "MAE", True),
    }

    def loss(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        is_known = target >= 0
        return ((prediction - target).abs() * is_known).sum(), is_known.sum()

    def compare(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        is_known = target >= 0
        prediction, target = prediction[is_known], target[is_known]
        if not len(target):  # not counted
            return dict.fromkeys(("pearson", "mae"), prediction.new_full((), float("nan")))
        x, y = prediction - prediction.mean(), target - target.mean()
        spread = (x.square().sum() * y.square().sum()).sqrt()
        pearson = (x * y).sum() / spread.clamp(min=1e-12)
        return {"pearson": pearson, "mae": (prediction - target).abs().mean()}


class Corners(Magnitude):
    """``log(1 + 10⁴ · λ)`` of the smaller eigenvalue λ of the structure tensor (Shi, Tomasi, CVPR
    1994), large where intensity changes in both directions. Without the logarithm few pixels would
    decide the correlation."""

    name = "corners"

    def compute(self, xx: np.ndarray, xy: np.ndarray, yy: np.ndarray) -> np.ndarray:
        smaller = (xx + yy) / 2 - np.hypot((xx - yy) / 2, xy)
        return np.log1p(1e4 * smaller.clip(0))


class Orientation(Computed):
    """The direction θ in which intensity changes most, in the structure tensor (Bigün, Granlund,
    ICCV 1987): c · (cos 2θ, sin 2θ), which is the same for θ and θ + 180°. Its length c, from 0 to
    1, is the coherence, 0 where there is no direction; pixels count by it. Errors are in degrees of
    θ, up to 90, and 45 by chance."""

    name = "orientation"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "angle": Metric(-1, "°", 0.0, 90.0, "mean angle"),
        "within_11.25": Metric(label="within 11.25°", shown=True),
    }
    channels = outputs = 2

    def compute(self, xx: np.ndarray, xy: np.ndarray, yy: np.ndarray) -> np.ndarray:
        return np.stack([xx - yy, 2 * xy], axis=-1) / np.maximum(xx + yy, 1e-12)[..., None]

    def factors(self, flipped: bool, scale: tuple[float, float]) -> Sequence[float]:
        """In a mirror θ turns the other way."""
        return (1.0, -1.0) if flipped else ()

    def activate(self, output: Tensor) -> Tensor:
        from torch.nn import functional as F

        return F.normalize(output, dim=1, eps=1e-6)

    def loss(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Of the cosine of the doubled error, by coherence."""
        weight = target.square().sum(dim=1).sqrt()
        return (weight - (prediction * target).sum(dim=1)).sum(), weight.sum()

    def compare(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        (px, py), (x, y) = prediction, target
        error = (px * y - py * x).atan2(px * x + py * y).abs().rad2deg() / 2
        weight = target.square().sum(dim=0).sqrt()
        total = weight.sum()
        within = 100 * (weight * (error < 11.25)).sum() / total
        return {"angle": (weight * error).sum() / total, "within_11.25": within}

    def drawing(self, classes: Sequence[str], targets: Sequence[np.ndarray]) -> Drawing:
        """The hue is the direction (red at 0° and 180°), black where there is none."""
        import cv2

        def draw(maps: np.ndarray) -> np.ndarray:
            hue = np.arctan2(maps[1], maps[0]) % (2 * np.pi) * (90 / np.pi)
            value = 255 * np.hypot(*maps[:2]).clip(0, 1)
            planes = [hue % 180, np.full_like(hue, 255), value]
            return cv2.cvtColor(np.stack(planes, axis=-1).astype(np.uint8), cv2.COLOR_HSV2RGB)

        degrees = np.arange(0, 180, 45)
        maps = np.stack([np.cos(np.radians(2 * degrees)), np.sin(np.radians(2 * degrees))])
        names = [f"{each}°" for each in degrees]
        return draw, class_legend(names, draw(maps[:, None])[0], width=360)

    def described(self, maps: np.ndarray) -> str:
        coherence = np.hypot(*maps[:2])
        return f"coherence of the direction {range_text(coherence.ravel(), '')}"


@settings_dataclass
class OcclusionSettings(ComputedSettings):
    """Settings of occlusion edges.

    Attributes:
        least_step: logarithm of a ratio of depths (about the share of the depth) up to which there
            is no edge: walls and floors that are seen at an angle, and steps of stored depth.
    """

    least_step: NonNegativeFloat = 0.05


class OcclusionEdges(Magnitude):
    """Where one surface ends in front of another: ``log(1 + 10 · r)`` of what the logarithm of the
    largest over the smallest depth around a pixel has above ``least_step``, in a window of ``sigma
    / 2`` pixels to each side. It is learned by its squared error: most of it is 0, where the
    absolute error is least for 0 everywhere. Datasets are declared as those of depth."""

    name, level = "occlusion-edges", "mid"
    settings = OcclusionSettings
    declared = Depth.declared

    def loss(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        is_known = target >= 0
        return ((prediction - target).square() * is_known).sum(), is_known.sum()

    def check_file(self, spec: DatasetSpec, classes: int, path: Path, image: Image.Image) -> None:
        Depth().check_file(spec, classes, path, image)

    def reading(self, spec: DatasetSpec, classes: int, settings: Any = None) -> dict[str, Any]:
        settings = settings or self.settings()
        options = super().reading(spec, classes, settings) | Depth().reading(spec, classes)
        return options | {"least_step": settings.least_step}

    def read(  # type: ignore[override]
        self,
        path: str,
        side: int,
        sigma: float,
        least_step: float,
        depth_scale: float,
        rotated_bits: int = 0,
    ) -> np.ndarray:
        """-1 where the depth is unknown."""
        from scipy import ndimage

        depth = read_depth(path, depth_scale, rotated_bits)
        shrunk = min(depth.shape) / side if side else 1
        window = 2 * max(1, round(sigma / 2 * max(1, shrunk))) + 1
        nearest = ndimage.minimum_filter(np.where(depth > 0, depth, np.inf), window, **NEAREST)
        farthest = ndimage.maximum_filter(depth, window, **NEAREST)
        with np.errstate(all="ignore"):  # where nothing around is known
            jump = np.log1p(10 * (np.log(farthest / nearest) - least_step).clip(0))
        return np.where(depth > 0, jump, np.float32(-1)).astype(np.float32)


@lru_cache(maxsize=64)
def projection(cells: int, length: int) -> Tensor:
    """(length, length) float32: times a column of ``length`` values it is the column that comes
    nearest of those of ``cells`` values resized to it, bilinear."""
    import torch

    rows = torch.eye(cells)[None]
    resize = torch.nn.functional.interpolate(rows, length, mode="linear")[0].double()
    return (torch.linalg.pinv(resize) @ resize).float()


def nearest_on_grid(target: Tensor, stride: float, short: float) -> Tensor:
    """See ``Computed.score``.

    Args:
        target: (channels, H, W).
        stride, short: see ``Computed.grid``.
    """
    height, width = target.shape[-2:]
    cell = stride * (min(height, width) / short if short else 1)
    rows, columns = (
        projection(max(1, round(length / cell)), length).to(target) for length in (height, width)
    )
    return rows @ target @ columns
