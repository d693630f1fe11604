"""``my-dense``: patch features of a frozen backbone, with and without training."""

from __future__ import annotations

from benchmark.catalog import COMPARED, ENCODER
from benchmark.suites import Suite, cross, register_suite

SEGMENTATION = ("patch-knn", "in-context", "linear")

register_suite(
    Suite(
        name="my-dense",
        about="segmentation without training and linear probes, on the datasets that are present",
        tasks={
            **cross(["voc", "ade20k"], SEGMENTATION, **ENCODER),
            **cross(["nyu-depth", "nyu-normal"], ["linear"], **ENCODER),
        },
        default_backbones=COMPARED,
        skips_absent_data=True,
    )
)
