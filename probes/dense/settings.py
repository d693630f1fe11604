"""Settings of the dense probes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from common.errors import UserError
from probes.base import MOST_PIXELS
from probes.datasets.base import Kind
from probes.runner.settings import TrainingSettings

KEPT = ("fp16", "bf16", "fp32")  # values of ``cache`` that keep features


@dataclass(frozen=True)
class DenseSettings(TrainingSettings):
    """Protocol of a dense probe; every field is part of the task's identity.

    Attributes:
        size: short side in pixels of images at test time, and side of the square crops of training
            (rounded up to the backbone's divisor). Scores are at the label's own resolution
            whatever the size.
        crop: (height, width) of training's crops in pixels, each rounded up likewise; none for size
            × size.
        scale_range: in training images are resized to ``size`` × a random factor of this range
            before they are cropped.
        photometric: training images get mmseg's ``PhotoMetricDistortion`` (brightness, contrast,
            saturation, hue).
        brightness: training images are multiplied with a random factor of this range.
        batch_size: at least 2 for deeplabv3 and pspnet.
        epochs: length of training in passes over its images, in the place of ``max_iters``; 0 for
            ``max_iters``.
        lr_grid: learning rates to choose from, in the place of ``lr``: a head is trained with each
            on nine tenths of the training images, and the one that does best on the others is
            scored; see ``probes.dense.lr_grid``. Empty: ``lr``.
        layers: ``all`` of the backbone's feature maps, or the ``last`` only. Those of a plain ViT
            have passed its own final norm, as in DINOv2's ``get_intermediate_layers``.
        feature_stride: the maps are resized (bilinear) to this stride and concatenated; none for
            the finest native stride that is not below 8, so that the maps of a plain ViT stay as
            they are.
        channels: width of the heads but linear.
        dropout: of channels before the last convolution; none for 0 (linear, dpt-probe3d) or 0.1
            (deeplabv3, pspnet, dpt).
        slide: (crop, stride) in pixels: at test time crops of this side are taken at this stride,
            and their outputs are averaged where they overlap (mmseg's ``slide_inference``; the crop
            is rounded up to the backbone's divisor); none to take images whole.
        flip_test: at test time the outputs of an image and of its mirror image are averaged.
        fixed_crops: 0 makes a fresh random crop of a training image each time that it is drawn; k ≥
            1 draws one of k crops that follow from the image's content alone (the first is the
            centre at scale 1), flipped with probability ``flip``. See ``probes.features.crops``.
        cache: ``none`` encodes an image whenever it is drawn; ``fp16``, ``bf16`` or ``fp32``
            encodes each crop once, for all probes, seeds and runs, and keeps its maps in this
            precision (``fixed_crops`` must be 1 or more).
    """

    size: int = 512
    crop: tuple[int, ...] = ()
    scale_range: tuple[float, float] = (0.5, 2.0)
    photometric: bool = False
    brightness: tuple[float, float] = (1.0, 1.0)
    epochs: float = 0.0
    layers: str = "all"
    feature_stride: int | None = None
    channels: int = 512
    dropout: float | None = None
    slide: tuple[int, ...] = ()
    flip_test: bool = False
    fixed_crops: int = 0
    lr_grid: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("crop", "scale_range", "brightness", "slide", "lr_grid"):
            object.__setattr__(
                self, name, tuple(getattr(self, name))
            )  # a list from JSON is the same protocol
        self.must(
            {
                "layers": (self.layers in ("all", "last"), "all or last"),
                "fixed_crops": (self.fixed_crops >= 0, "0 or more"),
                "crop": (
                    not self.crop
                    or (
                        len(self.crop) == 2
                        and 16 <= min(self.crop) <= max(self.crop) <= MOST_PIXELS
                    ),
                    f"height and width, 16 to {MOST_PIXELS} pixels each, or none",
                ),
                "slide": (
                    not self.slide
                    or (len(self.slide) == 2 and self.slide[0] >= self.slide[1] >= 16),
                    "crop and stride, a stride of 16 pixels or more and a crop no smaller, or none",
                ),
                **{
                    name: (
                        len(given) == 2 and 0 < given[0] <= given[1],
                        "two factors, 0 < low <= high",
                    )
                    for name, given in (
                        ("scale_range", self.scale_range),
                        ("brightness", self.brightness),
                    )
                },
                "dropout": (
                    self.dropout is None or 0 <= self.dropout < 1,
                    "a share below 1, or none",
                ),
                "size": (16 <= self.size <= MOST_PIXELS, f"16 to {MOST_PIXELS} pixels"),
                "lr_grid": (
                    not self.lr_grid
                    or (
                        len({f"{rate:g}" for rate in self.lr_grid}) == len(self.lr_grid) > 1
                        and min(self.lr_grid) > 0
                    ),
                    "two or more different rates above 0, or none (and lr the only one)",
                ),
                "feature_stride": (
                    self.feature_stride is None
                    or 1 <= self.feature_stride <= min(self.crop or (self.size,)),
                    "1 to the side of a training crop, or none",
                ),
                "epochs": (self.epochs >= 0, "0 or more"),
                "channels": (self.channels >= 1, "1 or more"),
            }
        )
        if self.cache in KEPT and not self.fixed_crops:
            raise UserError(
                f"cache={self.cache} keeps features of crops that repeat; set fixed_crops=1 or more"
                " as well"
            )
        if self.cache in KEPT and (self.slide or self.flip_test):
            raise UserError(
                f"cache={self.cache} keeps features of whole, upright images; set slide= and"
                " flip_test=false"
            )
        if self.fixed_crops and (self.crop or self.photometric or self.brightness != (1.0, 1.0)):
            raise UserError(
                f"fixed_crops={self.fixed_crops} are square and keep their colours; set"
                " fixed_crops=0 or none of crop, photometric and brightness"
            )


@dataclass(frozen=True)
class SegmentationSettings(DenseSettings):
    """Defaults: mmseg's 512 px, 40k iterations of 16 images, scale 0.5–2."""


@dataclass(frozen=True)
class DepthSettings(DenseSettings):
    """Range, file scale and evaluation crop are the dataset's own protocol (``DatasetSpec.extra``).

    Defaults: NYU-v2's 480 px, 20k iterations. Images are not scaled at random: enlarging one
        changes the depth it shows.

    Attributes:
        bins: outputs of a pixel, each for a depth; see ``probes.dense.heads.DepthBins``. 0 for one
            bounded output (``DepthObjective``).
        silog_lambda: λ of the scale-invariant loss, 0 (log RMSE) … 1 (the scale of an image is
            free).
    """

    size: int = 480
    scale_range: tuple[float, float] = (1.0, 1.0)
    max_iters: int = 20_000
    bins: int = 0
    silog_lambda: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.must(
            {
                "silog_lambda": (0 <= self.silog_lambda <= 1, "between 0 and 1"),
                "bins": (self.bins == 0 or self.bins >= 2, "2 or more, or 0 for a bounded output"),
            }
        )


@dataclass(frozen=True)
class NormalSettings(DenseSettings):
    """Defaults: NYU-v2's 480 px, 20k iterations, without random scaling as for depth.

    Attributes:
        uncertainty: learn each pixel's concentration κ too, by the likelihood of AngMF (Bae et al.
            2021); without it the loss is the angle.
    """

    size: int = 480
    scale_range: tuple[float, float] = (1.0, 1.0)
    max_iters: int = 20_000
    uncertainty: bool = False


SETTINGS: Mapping[Kind, type[DenseSettings]] = {
    "segmentation": SegmentationSettings,
    "depth": DepthSettings,
    "normals": NormalSettings,
}
Some = TypeVar("Some", bound=DenseSettings)


def in_iterations(settings: Some, images: int) -> Some:
    """``settings`` with the length of training as ``max_iters``; ``images`` are those that it
    trains on."""
    if not settings.epochs:
        return settings
    return replace(
        settings,
        max_iters=max(1, round(settings.epochs * images / settings.batch_size)),
        epochs=0.0,
    )
