"""Settings of the dense probes, and the optimizer and schedule that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backbones.errors import UserError
from probes.datasets.base import Kind


@dataclass(frozen=True)
class DenseSettings:
    """Protocol of a dense probe; every field is part of the task's identity.

    Attributes:
        size: short side in pixels of images at test time, and side of the square crops of training (rounded up to the
            backbone's divisor). Scores are at the label's own resolution whatever the size.
        scale_range: in training images are resized to ``size`` × a random factor of this range before they are
            cropped.
        flip: probability of a horizontal flip in training (the x of normals changes sign with it).
        max_iters, batch_size: length of training; images of a batch (at least 2 for deeplabv3 and pspnet).
        optimizer: ``adamw`` or ``sgd`` (momentum 0.9).
        lr, weight_decay: of the optimizer.
        lr_grid: learning rates to choose from, in the place of ``lr``: a head is trained with each on nine tenths of the
            training images, and the one that does best on the others is scored; see ``probes.dense.lr_grid``. Empty: ``lr``.
        schedule: ``poly`` (power 0.9) or ``cosine`` from ``lr`` to 0, after the warm-up.
        warmup: share of ``max_iters`` over which the learning rate grows linearly from nearly 0.
        layers: ``all`` of the backbone's feature maps, or the ``last`` only.
        feature_stride: the maps are resized (bilinear) to this stride and concatenated.
        channels, dropout: width of the deeplabv3 and pspnet heads and dropout before their last convolution.
        precision: of the frozen backbone, ``fp32`` or ``bf16``; heads and losses are in fp32.
        views: 0 makes a fresh random crop of a training image each time that it is drawn; k ≥ 1 draws one of k crops
            that follow from the image's content alone (the first is the centre at scale 1), turned with probability
            ``flip``. See ``probes.features.crops``.
        cache: ``none`` encodes an image whenever it is drawn; ``fp16``, ``bf16`` or ``fp32`` encodes each view once,
            for all probes, seeds and runs, and keeps its maps in this precision (``views`` must be 1 or more).
    """

    size: int = 512
    scale_range: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    max_iters: int = 40_000
    batch_size: int = 16
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-4
    schedule: str = "poly"
    warmup: float = 0.05
    layers: str = "all"
    feature_stride: int = 8
    channels: int = 512
    dropout: float = 0.1
    precision: str = "fp32"
    fixed_crops: int = 0
    cache: str = "none"
    lr_grid: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("scale_range", "lr_grid"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a list from JSON is the same protocol
        if len(self.scale_range) != 2:
            raise UserError(f"scale_range={self.scale_range!r} is not possible; it must be two factors, low and high")
        low, high = self.scale_range
        checks = {
            "optimizer": (self.optimizer in ("adamw", "sgd"), "adamw or sgd"),
            "schedule": (self.schedule in ("poly", "cosine"), "poly or cosine"),
            "layers": (self.layers in ("all", "last"), "all or last"),
            "precision": (self.precision in ("fp32", "bf16"), "fp32 or bf16"),
            "fixed_crops": (self.fixed_crops >= 0, "0 or more"),
            "cache": (self.cache in ("none", "fp16", "bf16", "fp32"), "none, fp16, bf16 or fp32"),
            "scale_range": (0 < low <= high, "two factors, 0 < low <= high"),
            "flip": (0 <= self.flip <= 1, "a probability"),
            "warmup": (0 <= self.warmup < 1, "a share below 1"),
            "dropout": (0 <= self.dropout < 1, "a share below 1"),
            "size": (self.size >= 16, "16 pixels or more"),
            "lr": (self.lr > 0, "above 0"),
            "lr_grid": (not self.lr_grid or (len(set(self.lr_grid)) == len(self.lr_grid) > 1 and min(self.lr_grid) > 0),
                        "two or more different rates above 0, or none (and lr the only one)"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            **{name: (getattr(self, name) >= 1, "1 or more")
               for name in ("max_iters", "batch_size", "feature_stride", "channels")},
        }  # fmt: skip
        for name, (right, wanted) in checks.items():
            if not right:
                raise UserError(f"{name}={getattr(self, name)!r} is not possible; it must be {wanted}")
        if self.cache != "none" and not self.fixed_crops:
            raise UserError(
                f"cache={self.cache} keeps features of views that repeat; set fixed_crops=1 or more as well"
            )


@dataclass(frozen=True)
class SegmentationSettings(DenseSettings):
    """Defaults: mmseg's 512 px, 40k iterations of 16 images, scale 0.5–2."""


@dataclass(frozen=True)
class DepthSettings(DenseSettings):
    """Range, file scale and evaluation crop are the dataset's own protocol (``DatasetSpec.extra``).

    Defaults: NYU-v2's 480 px, 20k iterations. Images are not scaled at random: enlarging one changes the depth it
        shows.

    Attributes:
        silog_balance: λ of the scale-invariant loss, 0 (log RMSE) … 1 (the scale of an image is free).
    """

    size: int = 480
    scale_range: tuple[float, float] = (1.0, 1.0)
    max_iters: int = 20_000
    silog_balance: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.silog_balance <= 1:
            raise UserError(f"silog_balance={self.silog_balance!r} is not possible; it must be between 0 and 1")


@dataclass(frozen=True)
class NormalSettings(DenseSettings):
    """Defaults: NYU-v2's 480 px, 20k iterations, without random scaling as for depth."""

    size: int = 480
    scale_range: tuple[float, float] = (1.0, 1.0)
    max_iters: int = 20_000


SETTINGS: Mapping[Kind, type[DenseSettings]] = {
    "segmentation": SegmentationSettings,
    "depth": DepthSettings,
    "normals": NormalSettings,
}


def optimizer(settings: DenseSettings) -> dict[str, Any]:
    """Config of the optimizer."""
    common = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    return {"type": "AdamW", **common} if settings.optimizer == "adamw" else {"type": "SGD", "momentum": 0.9, **common}


def schedule(settings: DenseSettings) -> list[dict[str, Any]]:
    """Configs of warm-up and decay, by iteration."""
    end = settings.max_iters
    warm = round(settings.warmup * end)
    warm = warm if warm >= 2 else 0  # mmengine's LinearLR divides by its length less one
    warmup: dict[str, Any] = {"type": "LinearLR", "start_factor": 1e-3, "by_epoch": False, "begin": 0, "end": warm}
    decay: dict[str, Any] = {"by_epoch": False, "begin": warm, "end": end}
    if settings.schedule == "poly":
        decay |= {"type": "PolyLR", "power": 0.9, "eta_min": 0.0}
    else:
        decay |= {"type": "CosineAnnealingLR", "T_max": end - warm, "eta_min": 0.0}
    return [warmup, decay] if warm else [decay]
