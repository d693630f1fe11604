"""How large the mini suites are: their world, recipes and experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from backbones.cliptex.recipes import subsets
from backbones.cliptex.tasks import PAPER
from benchmark.mini.world import MINI, SMOKE, WorldConfig

SUBSETS = subsets(PAPER)  # recipes with fewer experts
LABELLED = ("cliptex-manual", "cliptex-both")  # cliptex with other labels
TRAINED = ("clip", "clip-ft", *SUBSETS, *LABELLED)


@dataclass(frozen=True)
class Sizes:
    """The world of a mini suite, and how much it trains.

    Attributes:
        world: its pictures.
        clip: changes to the recipe that pre-trains CLIP on captions.
        init: its initial weights, see ``backbones.cliptex.model.load_initial_clip``.
            ``mini`` has an image tower with ImageNet weights: a small ViT from scratch stays at
            chance in zero-shot after 56,000 samples of this world.
        tune: changes to the recipes that fine-tune it; clip-ft and cliptex share them, so that
            both see the same pairs in the same order.
        lambdas: further changes to cliptex: its λs.
        experts: expert → changes to its settings.
    """

    world: WorldConfig
    clip: Mapping[str, Any]
    init: str
    tune: Mapping[str, Any]
    lambdas: Mapping[str, Any]
    experts: Mapping[str, Mapping[str, Any]]


# one frozen encoder, so that an expert learns its decoder alone, at a third of the time
_EXPERT = {
    "size": 64,
    "batch_size": 16,
    "color_jitter": 0.3,
    "crop_scale": (0.6, 1.0),
    "frozen": True,
    "width": 32,
    "stride": 4,
    "lr": 5e-3,
}
EXPERTS: dict[str, dict[str, Any]] = {  # the longest first, so that no core is alone in the end
    # instead of Mask R-CNN, which trains too slowly (23 images a second on the CPU)
    "unet-seg": {**_EXPERT, "epochs": 4.0, "balance": 0.5},
    "unet-depth": {**_EXPERT, "epochs": 1.5},
    "unet-normals": {**_EXPERT, "epochs": 1.5},
}
SIZES = {
    "mini": Sizes(
        world=MINI,
        clip={
            "model": "mini",
            "epochs": 1.5,
            "batch_size": 32,
            "lr": 1e-3,
            "warmup": 0.1,
            "val_pairs": 400,
        },
        init="imagenet",
        tune={
            "epochs": 1.2,
            "batch_size": 32,
            "lr": 1e-3,
            "warmup": 0.1,
            "val_pairs": 400,
            "head_lr": 3.0,
            "head_width": 64,
            "label_size": 32,
        },
        # the paper's 0.1 fits its losses and data; as in its search, everything starts at 1
        lambdas={"lambda_seg": 1.0},
        experts=EXPERTS,
    ),
    "smoke": Sizes(
        world=SMOKE,
        clip={"model": "tiny", "epochs": 1.0, "batch_size": 32, "lr": 1e-3, "image_size": 64},
        init="random",
        tune={"epochs": 1.0, "batch_size": 32, "lr": 3e-4},
        lambdas={},
        experts={name: {**settings, "epochs": 0.5} for name, settings in EXPERTS.items()},
    ),
}
# a sweep repeats a shorter training; world, CLIP, experts and labels are those of mini
SIZES["sweep"] = replace(SIZES["mini"], tune={**SIZES["mini"].tune, "epochs": 1.0})
