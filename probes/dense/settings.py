"""Settings and metrics of the dense probes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal, TypeVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from common.errors import UserError
from common.settings import Probability, Share, settings_dataclass
from probes.datasets.base import Kind
from probes.runner.settings import TrainingSettings
from reports.metrics import Metric

ImageSize = Annotated[int, Field(ge=16)]
FactorRange = tuple[PositiveFloat, PositiveFloat]
METRICS: Mapping[Kind, Mapping[str, Metric]] = {
    "segmentation": {"mIoU": Metric(), "mAcc": Metric(shown=True), "aAcc": Metric()},
    "depth": {
        "abs_rel": Metric(-1, "", 0.0, None, "AbsRel"),
        "rmse": Metric(-1, "m", 0.0, None, "RMSE", True),
        "log10": Metric(-1, "", 0.0, None),
        "delta1": Metric(label="δ < 1.25", shown=True),
        "delta2": Metric(label="δ < 1.25²"),
        "delta3": Metric(label="δ < 1.25³"),
    },
    "normals": {
        "normal_mean": Metric(-1, "°", 0.0, 180.0, "mean angle"),
        "normal_median": Metric(-1, "°", 0.0, 180.0, "median angle", True),
        "normal_11.25": Metric(label="within 11.25°", shown=True),
        "normal_22.5": Metric(label="within 22.5°"),
        "normal_30": Metric(label="within 30°"),
        "normal_image_mean": Metric(-1, "°", 0.0, 180.0, "mean angle of an image"),
    },
}


@settings_dataclass
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
        epochs: length of training in passes over its images, instead of ``max_iters``; 0 for
            ``max_iters``.
        lr_grid: learning rates to choose from, instead of ``lr``: a head is trained with each on
            nine tenths of the training images, and the best one on the rest is scored; see
            ``probes.dense.lr_grid``. Empty: ``lr``.
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
            encodes each crop once, for all probes, seeds and runs, and caches its maps in this
            precision (``fixed_crops`` must be 1 or more).
    """

    size: ImageSize = 512
    crop: tuple[()] | tuple[ImageSize, ImageSize] = ()
    scale_range: FactorRange = (0.5, 2.0)
    photometric: bool = False
    brightness: FactorRange = (1.0, 1.0)
    epochs: NonNegativeFloat = 0.0
    layers: Literal["all", "last"] = "all"
    feature_stride: PositiveInt | None = None
    channels: PositiveInt = 512
    dropout: Share | None = None
    slide: tuple[()] | tuple[ImageSize, ImageSize] = ()
    flip_test: bool = False
    fixed_crops: NonNegativeInt = 0
    lr_grid: tuple[PositiveFloat, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slide and self.slide[0] < self.slide[1]:
            raise UserError(f"slide={self.slide}: the crop must be no smaller than the stride")
        for name in ("scale_range", "brightness"):
            low, high = getattr(self, name)
            if low > high:
                raise UserError(f"{name}={low:g},{high:g}: must be two factors, 0 < low <= high")
        folders = {f"{rate:g}" for rate in self.lr_grid}
        if self.lr_grid and len(folders) != max(len(self.lr_grid), 2):
            raise UserError(
                f"lr_grid={self.lr_grid}: must be two or more different rates, or none to use lr"
            )
        if (self.feature_stride or 1) > min(self.crop or (self.size,)):
            raise UserError(
                f"feature_stride={self.feature_stride}: must be at most the side of a training crop"
            )
        if self.cache != "none" and not self.fixed_crops:
            raise UserError(
                f"cache={self.cache} caches features of crops that repeat; set fixed_crops=1 or"
                " more as well"
            )
        if self.cache != "none" and (self.slide or self.flip_test):
            raise UserError(
                f"cache={self.cache} caches features of complete, upright images; set slide= and"
                " flip_test=false"
            )
        if self.fixed_crops and (self.crop or self.photometric or self.brightness != (1.0, 1.0)):
            raise UserError(
                f"fixed_crops={self.fixed_crops} are square and keep their colours; set"
                " fixed_crops=0 or none of crop, photometric and brightness"
            )


@settings_dataclass
class SegmentationSettings(DenseSettings):
    """Defaults: mmseg's 512 px, 40k iterations of 16 images, scale 0.5–2."""


@settings_dataclass
class DepthSettings(DenseSettings):
    """Range, file scale and evaluation crop are the dataset's own protocol (``DatasetSpec.extra``).

    Defaults: NYU-v2's 480 px, 20k iterations. Images are not scaled at random: enlarging one
        changes the depth it shows.

    Attributes:
        bins: outputs of a pixel, each for a depth; see ``probes.dense.objectives.DepthBins``. 0 for
            one bounded output (``DepthObjective``).
        silog_lambda: λ of the scale-invariant loss, 0 (log RMSE) … 1 (the scale of an image is
            free).
    """

    size: ImageSize = 480
    scale_range: FactorRange = (1.0, 1.0)
    max_iters: PositiveInt = 20_000
    bins: NonNegativeInt = 0
    silog_lambda: Probability = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bins == 1:
            raise UserError("bins=1: must be 2 or more, or 0 for one bounded output")


@settings_dataclass
class NormalSettings(DenseSettings):
    """Defaults: NYU-v2's 480 px, 20k iterations, without random scaling as for depth.

    Attributes:
        uncertainty: learn each pixel's concentration κ too, by the likelihood of AngMF (Bae et al.
            2021); without it the loss is the angle.
    """

    size: ImageSize = 480
    scale_range: FactorRange = (1.0, 1.0)
    max_iters: PositiveInt = 20_000
    uncertainty: bool = False


SETTINGS: Mapping[Kind, type[DenseSettings]] = {
    "segmentation": SegmentationSettings,
    "depth": DepthSettings,
    "normals": NormalSettings,
}
Some = TypeVar("Some", bound=DenseSettings)


def in_iterations(settings: Some, images: int) -> Some:
    """``settings`` with the length of training on so many ``images`` as ``max_iters``."""
    if not settings.epochs:
        return settings
    iterations = max(1, round(settings.epochs * images / settings.batch_size))
    return replace(settings, max_iters=iterations, epochs=0.0)
