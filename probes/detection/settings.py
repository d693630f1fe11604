"""Protocol of the detection probes."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import UserError
from probes.base import MOST_PIXELS
from probes.runner.settings import TrainingSettings


@dataclass(frozen=True)
class DetectionSettings(TrainingSettings):
    """What both detectors share.

    Attributes:
        min_size: training images with a shorter side of less are left out, pixels.
        out_channels: of the pyramid and the heads.
        cache: ``none`` encodes an image whenever it is drawn; ``fp16``, ``bf16`` or ``fp32``
            encodes each image (and its mirror image) once and keeps its maps in this precision.
    """

    max_iters: int = 90_000
    lr: float = 2e-4
    weight_decay: float = 0.05
    decay_all: bool = False
    clip_norm: float = 10.0
    schedule: str = "cosine"
    warmup: float = 0.01
    min_size: int = 0
    out_channels: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        self.must(
            {
                "min_size": (self.min_size >= 0, "0 or more"),
                "out_channels": (self.out_channels >= 1, "1 or more"),
            }
        )


@dataclass(frozen=True)
class MaskRCNNSettings(DetectionSettings):
    """Defaults: COCO's 1x schedule, 90k iterations of 16 images.

    Attributes:
        short_side, long_side: images are resized, keeping their shape, until one of these is met,
            pixels.
        fc_out_channels: of the box head's fully connected layers.
        anchor_scale: side of a square anchor, in strides of its level: with stride 4 and 8, 32
            pixels.
        proposals: the most that the RPN hands on of an image.
        rois_per_image: regions of an image that the heads are trained on, a quarter of them with an
            object.
        detections: the most that are kept of an image (COCO: 100). Small pictures with few objects
            need fewer of all three.
        aspect_ratio_groups: images of a training batch are all upright or all not (mmdet's
            ``AspectRatioBatchSampler``).
    """

    short_side: int = 800
    long_side: int = 1333
    fc_out_channels: int = 1024
    anchor_scale: float = 8.0
    proposals: int = 1000
    rois_per_image: int = 512
    detections: int = 100
    aspect_ratio_groups: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.must(
            {
                "short_side": (32 <= self.short_side <= MOST_PIXELS, f"32 to {MOST_PIXELS} pixels"),
                "long_side": (
                    self.short_side <= self.long_side <= MOST_PIXELS,
                    f"short_side to {MOST_PIXELS}",
                ),
                "anchor_scale": (self.anchor_scale > 0, "above 0"),
                **{
                    name: (getattr(self, name) >= 1, "1 or more")
                    for name in ("fc_out_channels", "proposals", "rois_per_image", "detections")
                },
            }
        )


@dataclass(frozen=True)
class SSDSettings(DetectionSettings):
    """Defaults: 120k iterations of 32 images, about 33 rounds of COCO.

    Attributes:
        size: images are resized to size × size pixels, whatever their shape.
        augment: SSD's own augmentation (zoom out, crops by overlap, color jitter) on top of the
            flip.
    """

    max_iters: int = 120_000
    batch_size: int = 32
    size: int = 320
    augment: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.must({"size": (32 <= self.size <= MOST_PIXELS, f"32 to {MOST_PIXELS} pixels")})
        if self.cache != "none" and self.augment:
            raise UserError(
                f"cache={self.cache} keeps features of images that repeat; set augment=false as"
                " well"
            )
