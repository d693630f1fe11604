"""Protocol of the detection probes."""

from __future__ import annotations

from dataclasses import dataclass

from backbones.errors import UserError
from probes.base import MOST_PIXELS


@dataclass(frozen=True)
class DetectionSettings:
    """What both detectors share; every field is part of the task's identity.

    Attributes:
        protocol: the published protocol that the settings come from, or ``own``; see ``probes.protocols``.
        max_iters, batch_size: length of training; images of a batch.
        optimizer: ``adamw`` or ``sgd`` (momentum 0.9).
        lr, weight_decay: of the optimizer.
        decay_all: norms and biases decay too.
        warmup: share of ``max_iters`` over which the learning rate grows linearly from a thousandth.
        schedule: after that a ``cosine`` to 0; or ``steps``, a tenth of the rate before at each of ``steps``, shares of
            ``max_iters``.
        min_size: training images with a shorter side of less are left out, pixels.
        clip_norm: the gradient's norm is clipped to this; 0 for never.
        flip: probability of a horizontal flip in training.
        out_channels: of the pyramid and the heads.
        precision: of the frozen backbone, ``fp32`` or ``bf16``; what is trained is in fp32.
        cache: ``none`` encodes an image whenever it is drawn; ``fp16``, ``bf16`` or ``fp32`` encodes each image (and its
            mirror image) once and keeps its maps in this precision.
    """

    protocol: str = "own"
    max_iters: int = 90_000
    batch_size: int = 16
    optimizer: str = "adamw"
    lr: float = 2e-4
    weight_decay: float = 0.05
    decay_all: bool = False
    warmup: float = 0.01
    schedule: str = "cosine"
    steps: tuple[float, ...] = (8 / 12, 11 / 12)
    min_size: int = 0
    clip_norm: float = 10.0
    flip: float = 0.5
    out_channels: int = 256
    precision: str = "fp32"
    cache: str = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))  # a list from JSON is the same protocol
        checks = {
            "optimizer": (self.optimizer in ("adamw", "sgd"), "adamw or sgd"),
            "precision": (self.precision in ("fp32", "bf16"), "fp32 or bf16"),
            "cache": (self.cache in ("none", "fp16", "bf16", "fp32"), "none, fp16, bf16 or fp32"),
            "lr": (self.lr > 0, "above 0"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "warmup": (0 <= self.warmup < 1, "a share below 1"),
            "schedule": (self.schedule in ("cosine", "steps"), "cosine or steps"),
            "steps": (all(0 < step < 1 for step in self.steps), "shares between 0 and 1"),
            "min_size": (self.min_size >= 0, "0 or more"),
            "clip_norm": (self.clip_norm >= 0, "0 or more"),
            "flip": (0 <= self.flip <= 1, "a probability"),
            **{name: (getattr(self, name) >= 1, "1 or more") for name in ("max_iters", "batch_size", "out_channels")},
        }
        for name, (right, wanted) in checks.items():
            _must(name, getattr(self, name), right, wanted)


@dataclass(frozen=True)
class MaskRCNNSettings(DetectionSettings):
    """Defaults: COCO's 1x schedule, 90k iterations of 16 images.

    Attributes:
        short_side, long_side: images are resized, keeping their shape, until one of these is met, pixels.
        fc_out_channels: of the box head's fully connected layers.
        anchor_scale: side of a square anchor, in strides of its level: with stride 4 and 8, 32 pixels.
        proposals: the most that the RPN hands on of an image.
        rois_per_image: regions of an image that the heads are trained on, a quarter of them with an object.
        detections: the most that are kept of an image (COCO: 100). Small pictures with few objects need fewer of all three.
        aspect_ratio_groups: images of a training batch are all upright or all not (mmdet's ``AspectRatioBatchSampler``).
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
        _must("short_side", self.short_side, self.short_side >= 32, "32 pixels or more")
        _must(
            "long_side",
            self.long_side,
            self.short_side <= self.long_side <= MOST_PIXELS,
            f"short_side to {MOST_PIXELS}",
        )
        for name in ("fc_out_channels", "proposals", "rois_per_image", "detections"):
            _must(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        _must("anchor_scale", self.anchor_scale, self.anchor_scale > 0, "above 0")


@dataclass(frozen=True)
class SSDSettings(DetectionSettings):
    """Defaults: 120k iterations of 32 images, about 33 rounds of COCO.

    Attributes:
        size: images are resized to size × size pixels, whatever their shape.
        augment: SSD's own augmentation (zoom out, crops by overlap, color jitter) on top of the flip.
    """

    max_iters: int = 120_000
    batch_size: int = 32
    size: int = 320
    augment: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _must("size", self.size, 32 <= self.size <= MOST_PIXELS, f"32 to {MOST_PIXELS} pixels")
        if self.cache != "none" and self.augment:
            raise UserError(f"cache={self.cache} keeps features of images that repeat; set augment=false as well")


def _must(name: str, value: object, right: bool, wanted: str) -> None:
    if not right:
        raise UserError(f"{name}={value!r} is not possible; it must be {wanted}")
