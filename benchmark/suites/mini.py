"""The suites of the mini world: ``mini`` (the default), ``smoke`` (tiny, for tests), ``sweep``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import benchmark.mini.datasets  # noqa: F401 – registers mini-seg, mini-det …
from backbones.cliptex.tasks import PAPER
from backbones.cliptex.training.recipes import subsets
from benchmark.stages.graph import Stage
from benchmark.suites.registry import Suite, SuiteArtifacts, register_suite

DENSE = {
    "size": 64,
    "scale_range": (0.75, 1.5),
    "batch_size": 16,
    "channels": 64,
    "feature_stride": 8,
    "lr": 3e-3,
    "fixed_crops": 2,
    "cache": "fp16",
}
DETECT = {
    "batch_size": 8,
    "out_channels": 64,
    "lr": 1e-3,
    "cache": "fp16",
    "short_side": 64,
    "long_side": 64,
    "fc_out_channels": 128,
    # a few objects in 64 × 64 pixels: smaller anchors, and fewer of everything, than COCO needs
    "anchor_scale": 4.0,
    "proposals": 100,
    "rois_per_image": 64,
    "detections": 30,
}


def tasks(iters: int, detect_iters: int, without: Sequence[str] = ()) -> dict[str, dict]:
    """The tasks without some probes; detectors train for ``detect_iters`` iterations."""
    dense = {**DENSE, "max_iters": iters}
    settings_by_task: dict[str, dict] = {
        "mini-seg/linear": dense,
        "mini-seg/pspnet": dense,
        "mini-seg/in-context": {"size": 64, "feature_stride": 8},
        "mini-det/mask-rcnn": {**DETECT, "max_iters": detect_iters},
        "mini-depth/linear": dense,
        "mini-normal/linear": dense,
        "mini-class/linear": {},
        "mini-class/knn": {},
        "mini-class/zero-shot": {},
        "mini-retrieval/retrieval": {},
    }
    return {
        name: settings
        for name, settings in settings_by_task.items()
        if name.split("/")[1] not in without
    }


SUBSETS = subsets(PAPER)  # recipes with fewer experts
TRAINED = ("clip", "clip-ft", *SUBSETS)


@dataclass(frozen=True)
class Sizes:
    """How much a mini suite trains.

    Attributes:
        clip: changes to the recipe that pre-trains CLIP on captions.
        init: its initial weights, see ``backbones.cliptex.training.models.load_pretrained_clip``.
            ``mini`` has an image tower with ImageNet weights: a small ViT from scratch stays at
            chance in zero-shot after 56,000 samples of this world.
        tune: changes to the recipes that fine-tune it; clip-ft and cliptex share them, so that
            both see the same pairs in the same order.
        lambdas: further changes to cliptex: its λs.
        experts: expert → changes to its settings.
    """

    clip: Mapping[str, Any]
    init: str
    tune: Mapping[str, Any]
    lambdas: Mapping[str, Any]
    experts: Mapping[str, Mapping[str, Any]]


_EXPERT = {"size": 64, "batch_size": 32, "color_jitter": 0.3, "crop_scale": (0.6, 1.0)}
EXPERTS: dict[str, dict[str, Any]] = {  # the longest first, so that no core is alone in the end
    # instead of Mask R-CNN, which trains too slowly (23 images a second on the CPU)
    "unet": {**_EXPERT, "width": 24, "stride": 4, "epochs": 5.0, "lr": 3e-3, "balance": 0.5},
    "dpt": {**_EXPERT, "encoder": "tf_efficientnet_lite0", "fusion": 16, "epochs": 2.5, "lr": 2e-3},
    "nll-angmf": {**_EXPERT, "width": 24, "stride": 4, "epochs": 2.5, "lr": 2e-3},
}
SIZES = {
    "mini": Sizes(
        clip={
            "model": "mini",
            "epochs": 1.5,
            "batch_size": 64,
            "lr": 1e-3,
            "warmup": 0.1,
            "val_pairs": 400,
        },
        init="imagenet",
        tune={
            "epochs": 2.0,
            "batch_size": 64,
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
        clip={"model": "tiny", "epochs": 1.0, "batch_size": 32, "lr": 1e-3, "image_size": 64},
        init="random",
        tune={"epochs": 1.0, "batch_size": 32, "lr": 3e-4},
        lambdas={},
        experts={name: {**settings, "epochs": 0.5} for name, settings in EXPERTS.items()},
    ),
}
# a sweep repeats a shorter training; world, CLIP, experts and labels are those of mini
SIZES["sweep"] = replace(SIZES["mini"], tune={**SIZES["mini"].tune, "epochs": 1.0})


GROUPS = {
    "clip-ft": ("clip", "clip-ft"),
    "cliptex": ("clip", "clip-ft", "cliptex"),
    "ablation": ("clip-ft", *SUBSETS),  # every subset of the experts
}


def artifacts(
    suite: str, experiment: str, names: Sequence[str], seeds: Sequence[int]
) -> SuiteArtifacts:
    """The world's datasets, and the stages that train the backbones which the suite knows."""
    from benchmark.suites.mini_artifacts import MiniPipeline  # suites are listed without torch

    return MiniPipeline(suite, experiment).artifacts(names, seeds)


def training(suite: str, experiment: str, seed: int) -> Stage:
    """What a sweep trains on: the world's pairs, their labels and the pre-trained CLIP."""
    from benchmark.suites.mini_artifacts import MiniPipeline

    return MiniPipeline(suite, experiment).training(seed)


UNTRAINED = ("in-context", "knn")
ABOUT = (
    "default: a ray-traced world with exact ground truth for every task, created on first use"
    " (with all trainings about ten minutes a seed on two cores)"
)
SWEEP = (
    "the mini suite for λ sweeps: same world, labels and CLIP; shorter fine-tuning, one probe a"
    " task, no detection"
)
for name, about, suite_tasks in (
    ("mini", ABOUT, tasks(400, 150, without=["pspnet"])),
    ("smoke", "the mini suite, tiny, for tests", tasks(20, 10, without=UNTRAINED)),
    ("sweep", SWEEP, tasks(100, 100, without=["pspnet", "mask-rcnn", *UNTRAINED])),
):
    register_suite(
        Suite(
            name=name,
            about=about,
            tasks=suite_tasks,
            default_backbones=GROUPS["cliptex"],
            groups=GROUPS,
            artifacts=partial(artifacts, name),
            training=partial(training, name),
            training_settings=SIZES[name].tune,
        )
    )
