"""``dense``: what the patches of a frozen backbone know, without training beside with it, on the
real datasets that are there."""

from __future__ import annotations

from benchmark.suites.paper import ENCODER
from benchmark.suites.registry import Suite, cross, register_suite

SEGMENTATION = ("patch-knn", "in-context", "logreg", "open-vocabulary", "linear")

register_suite(
    Suite(
        name="dense",
        about=(
            "segmentation without training (k-NN, in context, L-BFGS, class texts) beside linear"
            " probes, depth and normals"
        ),
        tasks={
            **cross(["voc", "ade20k"], SEGMENTATION, **ENCODER),
            **cross(["coco-stuff"], ["open-vocabulary"], **ENCODER),
            **cross(["nyu-depth", "nyu-normal"], ["linear"], **ENCODER),
        },
        default_backbones=("clip", "clip-ft", "cliptex"),
        what_is_there=True,
    )
)
