"""The suites ``mini`` (the embedded default), ``smoke`` (the same, tiny, for tests) and ``sweep`` on the mini world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import benchmark.mini.datasets  # noqa: F401 – registers mini-seg, mini-det …
from backbones.cliptex.recipes import SUBSETS
from benchmark.suites.mini_sizes import SIZES
from benchmark.suites.registry import Suite, register_suite

DENSE = {
    "size": 64, "scale_range": (0.75, 1.5), "batch_size": 16, "channels": 64, "feature_stride": 8, "lr": 3e-3,
    "fixed_crops": 2, "cache": "fp16",
}  # fmt: skip
DETECT = {
    "batch_size": 8, "out_channels": 64, "lr": 1e-3, "cache": "fp16", "short_side": 64, "long_side": 64, "fc_out_channels": 128,
    # a few objects in 64 × 64 pixels: smaller anchors, and fewer of everything, than COCO needs
    "anchor_scale": 4.0, "proposals": 100, "rois_per_image": 64, "detections": 30,
}  # fmt: skip


def tasks(iters: int, detect_iters: int, without: Sequence[str] = ()) -> dict[str, dict]:
    """Tasks trained for ``iters`` (dense probes) and ``detect_iters`` (detectors) iterations, without some probes."""
    dense = {**DENSE, "max_iters": iters}
    found: dict[str, dict] = {
        "mini-seg/linear": dense, "mini-seg/pspnet": dense,
        "mini-det/mask-rcnn": {**DETECT, "max_iters": detect_iters},
        "mini-depth/linear": dense, "mini-normal/linear": dense,
        "mini-class/linear": {}, "mini-class/zero-shot": {}, "mini-retrieval/retrieval": {},
    }  # fmt: skip
    return {name: settings for name, settings in found.items() if name.split("/")[1] not in without}


GROUPS = {
    "clip-ft": ("clip", "clip-ft"),
    "cliptex": ("clip", "clip-ft", "cliptex"),
    "ablation": ("clip-ft", *SUBSETS),  # the role of experts: every subset of them
}


def later(name: str) -> Callable[..., Any]:
    """A function of ``mini_artifacts``, which is imported when it is called: suites are listed without torch."""
    return lambda *args: getattr(import_module("benchmark.suites.mini_artifacts"), name)(*args)


ABOUT = "embedded default: a ray-traced world with exact truth for every task, made on first use"
SWEEP = "the mini suite, for λ sweeps: same world, labels and CLIP; shorter fine-tuning, one probe a task, no detection"
for name, about, found in (  # what is trained for each is in SIZES
    ("mini", ABOUT, tasks(400, 150, without=["pspnet"])),
    ("smoke", "the mini suite, tiny: for tests", tasks(20, 10)),
    ("sweep", SWEEP, tasks(100, 100, without=["pspnet", "mask-rcnn"])),
):
    register_suite(
        Suite(
            name=name, about=about, tasks=found, default_backbones=GROUPS["cliptex"], groups=GROUPS,
            artifacts=later("artifacts"), preview=later("preview"), training=later("training"),
            training_settings=SIZES[name].tune,
        )
    )  # fmt: skip
