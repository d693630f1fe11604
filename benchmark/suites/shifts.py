"""``robustness``: heads that are trained once on ImageNet, and k-NN, on its other test sets; their
calibration, and out-of-distribution detection."""

from __future__ import annotations

from benchmark.suites.paper import COMPARED, ENCODER
from benchmark.suites.registry import Suite, cross, register_suite

# beside -A, -R and ObjectNet the images of ImageNet's val of the same classes
SETS = (
    "imagenet",
    "imagenetv2",
    "imagenet-real",
    "imagenet_sketch",
    "imagenet-a",
    "imagenet-val-a",
    "imagenet-r",
    "imagenet-val-r",
    "objectnet",
    "imagenet-val-objectnet",
    "imagenet-c",
)

register_suite(
    Suite(
        name="robustness",
        about="heads of ImageNet on V2, A, R, Sketch, ObjectNet, ReaL, C; calibration, OOD",
        tasks={
            **cross(SETS, ["linear", "knn"], **ENCODER),
            **cross(["imagenet", "imagenetv2", "imagenet-a"], ["calibration"], **ENCODER),
            **cross(["imagenet-ood"], ["linear"], **ENCODER),
        },
        default_backbones=COMPARED,
        skips_absent_data=True,
    )
)
