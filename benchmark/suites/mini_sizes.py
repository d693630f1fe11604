"""How much is trained in a mini suite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from backbones.cliptex.recipes import SUBSETS

MADE = ("clip", "clip-ft", *SUBSETS)


@dataclass(frozen=True)
class Sizes:
    """How much is trained in a mini suite."""

    clip: Mapping[str, Any]  # changes to the recipe that pre-trains CLIP on captions
    init: str  # what that starts from, see backbones.cliptex.models.load_start
    # changes to the recipes that fine-tune it; the same for clip-ft and cliptex: both see the same pairs in the same order
    tune: Mapping[str, Any]
    lambdas: Mapping[str, Any]  # further changes to cliptex alone: its λs, where they are not the recipe's
    experts: Mapping[str, Mapping[str, Any]]  # expert → changes to its settings


_EXPERT = {"size": 64, "batch_size": 32, "color_jitter": 0.3, "crop_scale": (0.6, 1.0)}
EXPERTS: dict[str, dict[str, Any]] = {
    # a U-Net stands for Mask R-CNN, which is too slow to train at this size (23 images a second of CPU)
    "unet": {**_EXPERT, "width": 24, "stride": 4, "epochs": 5.0, "lr": 3e-3, "balance": 0.5},
    "dpt": {**_EXPERT, "encoder": "tf_efficientnet_lite0", "fusion": 16, "epochs": 2.5, "lr": 2e-3},
    "nll-angmf": {**_EXPERT, "width": 24, "stride": 4, "epochs": 2.5, "lr": 2e-3},
}
SIZES = {
    "mini": Sizes(
        clip={"model": "mini", "epochs": 1.5, "batch_size": 64, "lr": 1e-3, "warmup": 0.1, "val_pairs": 400},
        init="imagenet",
        tune={
            "epochs": 2.0, "batch_size": 64, "lr": 1e-3, "warmup": 0.1, "val_pairs": 400, "head_lr": 3.0, "head_width": 64,
            "label_size": 32,
        },
        # the paper's 0.1 belongs to its own losses and data; here, as in its search, everything starts at 1
        lambdas={"lambda_seg": 1.0},
        experts=EXPERTS,
    ),
    "smoke": Sizes(
        clip={"model": "tiny", "epochs": 1.0, "batch_size": 32, "lr": 1e-3, "image_size": 64},
        init="random",
        tune={"epochs": 1.0, "batch_size": 32, "lr": 3e-4},
        lambdas={},
        experts={name: {**settings, "epochs": 0.5} for name, settings in EXPERTS.items()},
    ),
}  # fmt: skip
# what a sweep repeats is shorter; what it shares (world, CLIP, experts, labels) is mini's own
SIZES["sweep"] = replace(SIZES["mini"], tune={**SIZES["mini"].tune, "epochs": 1.0})
