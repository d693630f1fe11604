"""Protocol of the detection probes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from cliptex_common.errors import UserError
from cliptex_common.settings import Axis, settings_dataclass
from probes.settings import At, Schedule, TrainingSettings

# in the order of COCOeval's ``stats``; each after ``bbox_`` or ``segm_``
STATS = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
ImageSize = Annotated[int, Field(ge=32)]


@settings_dataclass
class DetectionSettings(TrainingSettings):
    """What both detectors share.

    Attributes:
        min_size: training images with a shorter side of less are left out, pixels.
        out_channels: of the pyramid and the heads.
        cache: ``none`` encodes an image whenever it is drawn; ``fp16``, ``bf16`` or ``fp32``
            encodes each image (and its mirror image) once and caches its maps in this precision.
    """

    max_iters: Annotated[PositiveInt, Axis()] = 90_000
    lr: Annotated[PositiveFloat, Axis()] = 2e-4
    weight_decay: NonNegativeFloat = 0.05
    decay_all: bool = False
    clip_norm: NonNegativeFloat = 10.0
    schedule: Schedule = "cosine"
    warmup: NonNegativeFloat = 0.01
    min_size: Annotated[NonNegativeInt, At("train_dataloader.dataset.min_size")] = 0
    out_channels: Annotated[
        PositiveInt,
        At(
            "model.rpn_head.in_channels",
            "model.rpn_head.feat_channels",
            "model.roi_head.bbox_roi_extractor.out_channels",
            "model.roi_head.mask_roi_extractor.out_channels",
            "model.roi_head.bbox_head.in_channels",
            "model.roi_head.mask_head.in_channels",
            "model.roi_head.mask_head.conv_out_channels",
        ),
    ] = 256

    def feeds_only(self, size: tuple[int, int]) -> bool:
        """Whether the backbone sees images of ``size`` only."""
        return False


@settings_dataclass
class MaskRCNNSettings(DetectionSettings):
    """Defaults: COCO's 1x schedule, 90k iterations of 16 images.

    Attributes:
        short_side: images are resized, keeping their shape, until this or ``long_side`` is met;
            pixels.
        long_side: likewise.
        fc_out_channels: of the box head's fully connected layers.
        anchor_scale: side of a square anchor, in strides of its level: with stride 4 and 8, 32
            pixels.
        proposals: the most that the RPN hands on of an image.
        rois_per_image: regions of an image that the heads are trained on, a quarter of them with an
            object.
        detections: the most detections of an image (COCO: 100). Small pictures with few objects
            need fewer of all three.
        aspect_ratio_groups: images of a training batch are all upright or all not (mmdet's
            ``AspectRatioBatchSampler``).
    """

    short_side: Annotated[ImageSize, Axis()] = 800
    long_side: ImageSize = 1333
    fc_out_channels: Annotated[PositiveInt, At("model.roi_head.bbox_head.fc_out_channels")] = 1024
    anchor_scale: PositiveFloat = 8.0
    proposals: Annotated[
        PositiveInt,
        At(
            "model.train_cfg.rpn_proposal.max_per_img",
            "model.test_cfg.rpn.nms_pre",
            "model.test_cfg.rpn.max_per_img",
        ),
    ] = 1000
    rois_per_image: Annotated[PositiveInt, At("model.train_cfg.rcnn.sampler.num")] = 512
    detections: Annotated[PositiveInt, At("model.test_cfg.rcnn.max_per_img")] = 100
    aspect_ratio_groups: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.long_side < self.short_side:
            raise UserError(f"long_side={self.long_side}: must be at least short_side")


@settings_dataclass
class SSDSettings(DetectionSettings):
    """Defaults: 120k iterations of 32 images, about 33 rounds of COCO.

    Attributes:
        size: images are resized to size × size pixels, whatever their shape.
        augment: SSD's own augmentation (zoom out, crops by overlap, color jitter) on top of the
            flip.
    """

    max_iters: Annotated[PositiveInt, Axis()] = 120_000
    batch_size: PositiveInt = 32
    size: Annotated[ImageSize, Axis()] = 320
    augment: bool = True

    def feeds_only(self, size: tuple[int, int]) -> bool:
        return (self.size, self.size) == size

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cache != "none" and self.augment:
            raise UserError(
                f"cache={self.cache} caches features of images that repeat; set augment=false as"
                " well"
            )
