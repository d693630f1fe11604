"""Settings of the dense probes, with where each stands in the config (``probes.settings.At``); the
heads by name, and the maps that a backbone gives them. What a head of ``SHIPPED`` is, its config
file says: ``probes/configs/_base_/heads/NAME.py``.

Importing this imports neither torch nor mmseg.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from cliptex_common.errors import UserError
from cliptex_common.settings import Axis, Probability, Share, settings_dataclass
from probes.base import DenseLayers, requested_map
from probes.settings import SCHEDULE, At, TrainingSettings
from probes.upsamplers.names import UpsamplerName

ImageSize = Annotated[int, Field(ge=16)]
FactorRange = tuple[PositiveFloat, PositiveFloat]
TRAIN = "train_dataloader.dataset.pipeline"
HEAD = "model.decode_head"
LOSS = At(part=f"{HEAD}.loss_decode")
WINDOWS = At(part="model.test_cfg.crop_size")
# settings of random crops, which ``fixed_crops`` do not have
RANDOM_CROPS = (
    *("interpolation", "train_area", "test_area", "crop", "max_class_share", "enlarge"),
    *("colours", "rotation"),
)


@settings_dataclass
class DenseSettings(TrainingSettings):
    """Settings of a dense probe; every field is part of the task's identity. ``lr``, optimizer,
    schedule, batch and length are those of ``probes.settings.TrainingSettings``.

    Attributes:
        size: short side in pixels of images at test time, and side of the square crops of training
            (rounded up to the backbone's divisor); 0 for images as large as they are. Scores are at
            the label's own resolution whatever the size.
        interpolation: that images are resized with: OpenCV's ``bilinear``, or Pillow's, which
            smooths what it makes smaller.
        train_area: (top, bottom, left, right) in pixels of the part of a training image that is
            used, bottom and right exclusive; none for all of it; or a name of ``Area``.
        test_area: likewise at test time, instead of the dataset's own area that is scored.
        crop: (height, width) of training's crops in pixels, each rounded up likewise; none for size
            × size.
        scale_range: in training images are resized to ``size`` × a random factor of this range
            before they are cropped.
        padding: colour that crops of small images are filled up with: the backbone's ``mean`` or
            ``black``.
        max_class_share: a crop that one class fills to more than this is drawn again, up to ten
            times (segmentation); 1 for never.
        enlarge: half of the training images are replaced by a random part of at least this share
            of their area, enlarged to their size; 1 for never.
        colours: the random change of a training image's colours: that of ``mmseg`` (brightness,
            contrast, saturation, hue), of ``dinov3`` or ``probe3d`` (likewise) or of
            ``dinov3-depth`` (gamma, brightness, each channel); see ``probes.dense.pipelines``.
        batch_size: at least 2 for deeplabv3, pspnet and upernet.
        epochs: length of training in passes over its images, instead of ``max_iters``; 0 for
            ``max_iters``.
        lr_grid: learning rates to choose from, instead of ``lr``, where the backbone is frozen: a
            head is trained with each on nine tenths of the training images, and the best one on the
            rest is scored; see ``probes.dense.group``. Empty: ``lr``.
        loss_images: the loss is the mean over groups of so many images, as over the GPUs of a
            source; none for the whole batch (for each image of depth without bins).
        layers: ``all`` of the backbone's feature maps, the ``last`` only, or one layer: a number
            from 1 on (block of a ViT, stage of a CNN) or a share of the depth (``50%``). Those of a
            plain ViT have passed its own final norm, as in DINOv2's ``get_intermediate_layers``.
        class_token: ``concat`` appends the class token of a layer to each of its patches (without
            one, the mean of the patches), ``concat-dino`` that of DINO and DINOv2 alone (probe3d);
            ``project``, of dpt alone, mixes both in a layer of its own, as mmseg's
            ``readout_type``.
        feature_stride: the maps are brought to this stride and concatenated; none for the finest
            native stride that is not below 8, so that the maps of a plain ViT stay as they are.
        upsampler: that brings them there, see ``docs/guide/upsamplers.md``: ``bilinear``,
            ``nearest``, ``bicubic``, ``jbu`` (joint bilateral), ``tile2`` (windows of an image of
            twice the size), or with weights ``anyup``, ``anyup-multi``, ``naf``, ``loftup``.
        align_corners: of the interpolation of outputs.
        slide: (crop, stride) in pixels: at test time crops of this side are taken at this stride,
            and their outputs are averaged where they overlap (mmseg's ``slide_inference``; the crop
            is rounded up to the backbone's divisor); none to take images whole.
        slide_padded: crops at the right and the bottom edge are padded with the mean colour, not
            moved inside, and probabilities are averaged, not logits.
        flip_test: at test time the outputs of an image and of its mirror image are averaged.
        fixed_crops: 0 makes a fresh random crop of a training image each time that it is drawn; k ≥
            1 draws one of k crops that follow from the image's content alone (the first is the
            centre at scale 1), flipped with probability ``flip``. See ``probes.features.maps``.
        cache: ``none`` encodes an image whenever it is drawn; ``fp16``, ``bf16`` or ``fp32``
            encodes each crop once, for all probes, seeds and runs, and caches its maps in this
            precision (``fixed_crops`` must be 1 or more). With ``tune=blocks:N`` what is cached, in
            float32, is what training crops give before the first weight that trains.
    """

    size: Annotated[NonNegativeInt, Axis()] = 512
    interpolation: Literal["bilinear", "pillow-bilinear", "pillow-bicubic"] = "bilinear"
    train_area: Area = ()
    test_area: Area = ()
    crop: tuple[()] | tuple[ImageSize, ImageSize] = ()
    scale_range: Annotated[FactorRange, At(f"{TRAIN}.RandomResize.ratio_range")] = (0.5, 2.0)
    padding: Literal["mean", "black"] = "mean"
    max_class_share: Annotated[Probability, At(f"{TRAIN}.RandomCrop.cat_max_ratio", absent=1.0)] = (
        0.75
    )
    enlarge: Annotated[float, Field(gt=0, le=1)] = 1.0
    colours: Literal["none", "mmseg", "dinov3", "dinov3-depth", "probe3d"] = "none"
    epochs: Annotated[NonNegativeFloat, SCHEDULE] = 0.0
    loss_images: Annotated[PositiveInt | None, At("model.loss_images")] = None
    layers: DenseLayers = "all"
    class_token: Literal["none", "concat", "concat-dino", "project"] = "none"
    feature_stride: Annotated[PositiveInt | None, Axis()] = None
    upsampler: Annotated[UpsamplerName, Axis()] = "bilinear"
    align_corners: Annotated[bool, At(f"{HEAD}.align_corners")] = False
    slide: Annotated[tuple[()] | tuple[ImageSize, ImageSize], WINDOWS] = ()
    slide_padded: Annotated[bool, WINDOWS] = False
    flip_test: Annotated[bool, At("model.test_cfg.flip", absent=False)] = False
    fixed_crops: NonNegativeInt = 0
    lr_grid: tuple[PositiveFloat, ...] = ()

    def feeds_only(self, size: tuple[int, int]) -> bool:
        """Whether the backbone sees images of ``size`` only: crops in training, then windows."""
        crop, window = self.crop or (self.size, self.size), self.slide[:1] * 2
        return crop == size and window == size

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slide and self.slide[0] < self.slide[1]:
            raise UserError(f"slide={self.slide}: the crop must be no smaller than the stride")
        low, high = self.scale_range
        if low > high:
            raise UserError(f"scale_range={low:g},{high:g}: must be two factors, 0 < low <= high")
        for name in ("train_area", "test_area"):
            area = getattr(self, name)
            if len(area) == 4 and not (area[0] < area[1] and area[2] < area[3]):
                raise UserError(f"{name}={area}: must be top < bottom and left < right")
        if 0 < self.size < 16:
            raise UserError(f"size={self.size}: must be 16 or more, or 0 to keep the images' sizes")
        if not self.size and not self.crop:
            raise UserError("size=0 keeps the sizes of images, which differ; set crop as well")
        for name, grid in (("lr_grid", self.lr_grid), ("tune_rates", self.tune_rates)):
            names = {f"{rate:g}" for rate in grid}  # of their heads' folders
            if (name == "lr_grid" and len(grid) == 1) or len(names) < len(grid):
                raise UserError(
                    f"{name}={grid}: must be two or more different rates, or none to use lr"
                )
        if self.is_tuned and (self.lr_grid or self.upsampler != "bilinear"):
            raise UserError(
                f"tune={self.tune} chooses the rate of the backbone, and trains maps as they are;"
                " set lr_grid= and upsampler=bilinear"
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
        if self.cache != "none" and (self.slide or self.flip_test or self.class_token != "none"):
            raise UserError(
                f"cache={self.cache} caches maps of complete, upright images; set slide=,"
                " flip_test=false and class_token=none"
            )
        changed = [
            name
            for name in RANDOM_CROPS
            if getattr(self, name, None) != getattr(type(self), name, None)
        ]
        if self.fixed_crops and changed:
            raise UserError(
                f"fixed_crops={self.fixed_crops} are square, of the whole image, and keep their"
                f" colours; set fixed_crops=0 or leave {', '.join(changed)}"
            )


@settings_dataclass
class ShippedHeadSettings:
    """Of the heads that are probes of their own.

    Attributes:
        channels: width of the heads but linear.
        dpt_widths: of the four maps that dpt reassembles; none for 3/8, 3/4, 3/2 and 3 times
            ``channels``, as in mmseg.
        dpt_norm: batch normalisation where dpt fuses these maps; without it its convolutions have
            biases, as in MiDaS' code.
        dropout: of channels before the last convolution; none for 0 (linear, dpt-probe3d) or 0.1
            (deeplabv3, pspnet, dpt, upernet).
        dropout_first: dropout before the normalisation of linear.
        linear_norm: batch normalisation before the convolution of linear.
    """

    channels: Annotated[PositiveInt, Axis(), At(f"{HEAD}.channels")] = 512
    dpt_widths: Annotated[
        tuple[()] | tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt], At(f"{HEAD}.widths")
    ] = ()
    dpt_norm: Annotated[bool, At(part=f"{HEAD}.norm_cfg")] = True
    dropout: Annotated[Share | None, At(f"{HEAD}.dropout_ratio")] = None
    dropout_first: Annotated[bool, At(f"{HEAD}.dropout_first")] = False
    linear_norm: Annotated[bool, At(f"{HEAD}.norm")] = True


@settings_dataclass
class ModuleHeadSettings:
    """Of heads of mmseg's registry and modules of plugins.

    Attributes:
        head: ``type``, the name of a head in mmseg's registry, and the head's options, as a config
            of mmseg has them; what follows from backbone and dataset (channels, classes) is left
            out. A head that reads one map gets all of them, resized to ``feature_stride`` and
            concatenated, unless ``in_index`` names one.
    """

    head: Mapping[str, Any] = field(default_factory=dict)


def in_iterations(settings: DenseSettings, images: int) -> DenseSettings:
    """``settings`` with the length of training on so many ``images`` as ``max_iters``."""
    if not settings.epochs:
        return settings
    iterations = max(1, round(settings.epochs * images / settings.batch_size))
    return replace(settings, max_iters=iterations, epochs=0.0)


# (top, bottom, left, right) in pixels, bottom and right exclusive; none for all of it; or a name:
#   square         the central square
#   kb             KITTI's benchmark crop is read and scored: 1216 × 352, at the bottom, central
#   kb-garg        it is read; the part of it is scored that Garg et al. (ECCV 2016) score
#   kb-garg-frame  it is read; that part of the complete image is scored
#   kb-eigen       it is read; the part of it is scored that the Monocular-Depth-Estimation-Toolbox
#                  calls eigen_crop (Eigen, Puhrsch, Fergus, NIPS 2014)
Area = (
    tuple[()]
    | tuple[NonNegativeInt, PositiveInt, NonNegativeInt, PositiveInt]
    | tuple[Literal["square", "kb", "kb-garg", "kb-garg-frame", "kb-eigen"]]
)
Bounds = tuple[int, int, int, int]
KB_HEIGHT, KB_WIDTH = 352, 1216
# top, bottom, left, right
GARG = (0.40810811, 0.99189189, 0.03594771, 0.96405229)
EIGEN = (0.3324324, 0.91351351, 0.0359477, 0.96405229)


def bounds_read(area: Sequence[Any], height: int, width: int) -> Bounds:
    """The pixels of an image that are read.

    Raises:
        UserError: the image is too small.
    """
    if tuple(area) == ("square",):
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return top, top + side, left, left + side
    if len(area) != 1:
        top, bottom, left, right = area or (0, height, 0, width)
        return top, bottom, left, right
    if height < KB_HEIGHT or width < KB_WIDTH:
        raise UserError(
            f"the area {area[0]} does not fit an image of {width}×{height}; KITTI's are"
            f" {KB_WIDTH}×{KB_HEIGHT} or more"
        )
    top, left = height - KB_HEIGHT, (width - KB_WIDTH) // 2
    return top, top + KB_HEIGHT, left, left + KB_WIDTH


def bounds_scored(area: Sequence[Any], height: int, width: int) -> Bounds:
    """The pixels of a label map that are scored: where KITTI's areas name them, others than
    ``bounds_read`` reads. Raises as it does."""
    top, bottom, left, right = read = bounds_read(area, height, width)
    if area == ("kb-garg-frame",):
        top, bottom, left, right = 0, height, 0, width
    elif area not in (("kb-garg",), ("kb-eigen",)):
        return read
    sides = (bottom - top, bottom - top, right - left, right - left)
    starts = (top, top, left, left)
    shares = EIGEN if area == ("kb-eigen",) else GARG
    y1, y2, x1, x2 = (
        start + int(share * side) for start, share, side in zip(starts, shares, sides, strict=True)
    )
    return y1, y2, x1, x2


@dataclass(frozen=True)
class HeadInput:
    """The shapes of what a head reads.

    Attributes:
        channels, strides: of each map, shallow to deep.
        stride: that they are brought to where a head reads them concatenated.
        crop: height and width in pixels of a training crop, as the backbone gets it.
        index: of the only map that is read of those of the backbone, where the settings name a
            layer.
    """

    channels: tuple[int, ...]
    strides: tuple[float, ...]
    stride: float
    crop: tuple[int, int]
    index: int | None = None


def head_input(settings: DenseSettings, backbone: Any) -> HeadInput:
    """What a head reads of training crops.

    Args:
        backbone: a ``Backbone``, or a record with its names, weights, channels, strides and
            divisor.
    """
    index = requested_map(settings, backbone)
    channels, strides = backbone.channels, backbone.strides
    only = -1 if settings.layers == "last" else index
    if only is not None:
        channels, strides = (channels[only],), (strides[only],)
    if reads_class_token(settings, backbone):
        channels = tuple(2 * width for width in channels)
    stride = settings.feature_stride or native_stride(strides)
    height, width = settings.crop or (settings.size,) * 2
    crop = round_up(height, backbone.divisor), round_up(width, backbone.divisor)
    return HeadInput(tuple(channels), tuple(strides), stride, crop, index)


def native_stride(strides: Sequence[float]) -> float:
    """The finest of ``strides`` that is 8 or more (at 4, of CNNs, a head costs four times what it
    does at 8); else the coarsest."""
    return min((stride for stride in strides if stride >= 8), default=max(strides))


def reads_class_token(settings: DenseSettings, backbone: Any) -> bool:
    """Whether maps have class tokens, by the setting ``class_token``."""
    if settings.class_token == "concat-dino":
        names = f"{backbone.name} {backbone.architecture} {backbone.weights.source}"
        return bool(re.search(r"(?<![a-z0-9])dino(v2)?(?![a-z0-9])", names))
    return settings.class_token != "none"


def round_up(side: int, divisor: int) -> int:
    """``side``, rounded up to a multiple of ``divisor``."""
    return math.ceil(side / divisor) * divisor


@dataclass(frozen=True)
class DenseHead:
    """A head, which is the probe of its name on datasets of some dense tasks.

    Attributes:
        module: of a plugin's head, see ``probes.dense.probe.register_head``.
        version: of the probe.
        kinds: names of dense tasks; empty for all.
        maps: number of maps that it fuses; None for any.
        min_batch: images of a batch at least.
        config: of a head that is configured by the setting ``head``: its default.
        declared_in: importing this module registers the head.
    """

    name: str
    module: type | None = None
    version: int = 1
    kinds: Sequence[str] = ()
    maps: int | None = None
    min_batch: int = 1
    config: Mapping[str, Any] | None = None
    declared_in: str = ""

    def check(self, settings: DenseSettings, backbone: Any) -> None:
        """Raise ``UserError`` where settings or backbone do not fit it.

        Args:
            backbone: see ``head_input``.
        """
        if settings.batch_size < self.min_batch:
            raise UserError(
                f"{self.name} normalises pooled features over the batch: batch_size must be"
                f" {self.min_batch} or more"
            )
        if settings.class_token == "project" and self.name != "dpt":
            raise UserError(f"class_token=project is of dpt, not of {self.name}; use concat")
        if self.maps and settings.upsampler != "bilinear":
            raise UserError(
                f"upsampler={settings.upsampler} is of heads that read the maps concatenated;"
                f" {self.name} reads each at its own stride: set upsampler=bilinear"
            )
        maps = len(head_input(settings, backbone).channels)
        if self.maps not in (None, maps):
            raise UserError(
                f"{self.name} fuses {self.maps} feature maps, and {backbone.name!r} gives {maps}"
                f" (layers={settings.layers}); choose another probe or backbone"
            )


def aspp_dilations(
    size: int, stride: float, rates: Sequence[int] = (1, 12, 24, 36)
) -> tuple[int, int, int, int]:
    """Dilation rates of DeepLabv3 for feature maps of ``size / stride``.

    Chen et al. 2017 use (1, 12, 24, 36) on 64×64 maps (512 px at stride 8). A rate beyond the map
    only sees padding, so the ``rates`` keep their share of the map's side at other sizes; the
    three are at least 2, and differ.
    """
    share = size / stride / 64
    first = max(2, round(share * rates[1]))
    second = max(first + 1, round(share * rates[2]))
    return rates[0], first, second, max(second + 1, round(share * rates[3]))


SHIPPED = (
    DenseHead("linear", version=5),
    DenseHead("deeplabv3", version=4, min_batch=2),
    DenseHead("pspnet", version=4, min_batch=2),
    DenseHead("dpt", version=5, maps=4),
    DenseHead("upernet", maps=4, min_batch=2),
    DenseHead("dpt-probe3d", version=5, kinds=("depth", "normals"), maps=4),
)
