"""``dense``: patch features of a frozen backbone, with and without training."""

from __future__ import annotations

from benchmark.suites.paper import COMPARED, ENCODER
from benchmark.suites.registry import Suite, cross, register_suite

SEGMENTATION = ("patch-knn", "in-context", "logreg", "open-vocabulary", "linear")

register_suite(
    Suite(
        name="dense",
        about="segmentation without training (k-NN, in context, L-BFGS, class texts) and linear"
        " probes, on the datasets that are present",
        tasks={
            **cross(["voc", "ade20k"], SEGMENTATION, **ENCODER),
            **cross(["coco-stuff"], ["open-vocabulary"], **ENCODER),
            **cross(["nyu-depth", "nyu-normal"], ["linear"], **ENCODER),
        },
        default_backbones=COMPARED,
        skips_absent_data=True,
    )
)
