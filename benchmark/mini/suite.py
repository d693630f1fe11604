"""The suites of the mini world: ``mini`` (the default), ``smoke`` (tiny, for tests), ``sweep``,
``tune`` (frozen and tuned)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import benchmark.mini.world  # noqa: F401 – registers mini-seg, mini-det …
from benchmark.mini.world import LABELLED, SIZES, SUBSETS
from benchmark.suites import Pipeline, Suite, register_suite

if TYPE_CHECKING:
    from benchmark.executor import Executor

DENSE_SETTINGS = {
    "size": 64,
    "scale_range": (0.75, 1.5),
    "batch_size": 16,
    "channels": 64,
    "feature_stride": 8,
    "lr": 3e-3,
    "fixed_crops": 2,
    "cache": "fp16",
}
# enlarging an image changes the depth it shows; half of the loss is what the score counts
DEPTH_SETTINGS = {"scale_range": (1.0, 1.0), "fixed_crops": 1, "relative_weight": 0.5}
DETECTION_SETTINGS = {
    "batch_size": 8,
    "out_channels": 32,
    "lr": 2e-3,
    "cache": "fp16",
    "short_side": 64,
    "long_side": 64,
    "fc_out_channels": 128,
    # a few objects in 64 × 64 pixels: smaller anchors, and fewer of everything, than COCO needs
    "anchor_scale": 4.0,
    "proposals": 50,
    "rois_per_image": 32,
    "detections": 15,
}


def mini_suite(iters: int, detect_iters: int, without: Sequence[str] = ()) -> dict[str, Any]:
    """``tasks`` without some probes, and what is ``unlisted``; detectors train for
    ``detect_iters`` iterations."""
    dense = {**DENSE_SETTINGS, "max_iters": iters}
    detect = {**DETECTION_SETTINGS, "max_iters": detect_iters}
    settings_by_task: dict[str, dict] = {
        "mini-seg/linear": dense,
        "mini-seg/pspnet": dense,
        "mini-seg/in-context": {"size": 64, "feature_stride": 8, "memory": 10_000},
        "mini-det/mask-rcnn": detect,
        "mini-depth/linear": dense | DEPTH_SETTINGS,
        "mini-normal/linear": dense,
        "mini-class/linear": {"size": 64},
        "mini-class/knn": {"size": 64},
        "mini-class/zero-shot": {},
        "mini-retrieval/retrieval": {},
    }
    tasks = {
        name: settings
        for name, settings in settings_by_task.items()
        if name.split("/")[1] not in without
    }
    return {
        "tasks": tasks,
        "unlisted": {
            "mini-seg": dense,
            "mini-depth": dense | DEPTH_SETTINGS,
            "mini-normal": dense,
            "mini-det": detect,
        },
    }


TIERS = ("frozen", "blocks:1", "lora:4", "all")
TUNE_ABOUT = (
    "the mini world's segmentation, depth and classification, frozen and tuned in three tiers:"
    " does the order of the backbones hold?"
)


def tune_suite(iters: int, epochs: int) -> dict[str, Any]:
    """``tasks`` of each tier, under the same head, schedule and crops. The rate of the backbone is
    the one of 3e-4 and 1e-3 that more trainings choose on held-out images; to choose takes three
    times as long."""
    shared = {"size": 64, "tune": TIERS}
    dense = {**DENSE_SETTINGS, **shared, "max_iters": iters, "schedule": "cosine"}
    dense["tune_rates"] = (1e-3,)
    classes = {**shared, "epochs": epochs, "batch_size": 64, "tune_rates": (3e-4,)}
    return {
        "tasks": {
            "mini-seg/linear": dense,
            "mini-depth/linear": dense | DEPTH_SETTINGS,
            "mini-class/linear": classes,
        }
    }


BACKBONE_SETS = {
    "clip-ft": ("clip", "clip-ft"),
    # random, which needs no training, gives the first numbers, and shows what is learnt at all
    "cliptex": ("random", "clip", "clip-ft", "cliptex"),
    "ablation": ("clip-ft", *SUBSETS),  # every subset of the experts
    "labels": ("clip-ft", "cliptex", *LABELLED),
}


def pipeline(suite: str, executor: Executor | None, experiment: str) -> Pipeline:
    """The pipeline of a mini suite."""
    from benchmark.mini.pipeline import MiniPipeline  # suites are listed without torch

    return MiniPipeline(suite, executor, experiment)


NEIGHBOURS = ("in-context", "knn")
ABOUT = (
    "default: a rendered world with exact ground truth for every task, created on first use (with"
    " all trainings about four minutes a seed on two cores)"
)
SWEEP = (
    "the mini suite for λ sweeps: same world, labels and CLIP; shorter fine-tuning, one probe a"
    " task, no detection"
)
for name, about, content in (
    ("mini", ABOUT, mini_suite(200, 200, without=["pspnet"])),
    ("smoke", "the mini suite, tiny, for tests", mini_suite(20, 10, without=NEIGHBOURS)),
    ("sweep", SWEEP, mini_suite(100, 100, without=["pspnet", "mask-rcnn", *NEIGHBOURS])),
    ("tune", TUNE_ABOUT, tune_suite(40, 2)),
):
    register_suite(
        Suite(
            name=name,
            about=about,
            **content,
            default_backbones=BACKBONE_SETS["cliptex"],
            backbone_sets=BACKBONE_SETS,
            pipeline=partial(pipeline, name),
            training_settings=SIZES[name].tune,
        )
    )
