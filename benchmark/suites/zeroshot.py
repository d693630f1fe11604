"""Zero-shot on webdataset folders: ``zeroshot38``, the 38 tasks of DataComp and OpenCLIP (the
paper's Table 4), and ``imagenet-shifts``.

The backbone computes in fp32, as in DataComp's evaluation.
"""

from __future__ import annotations

from benchmark.suites.paper import COMPARED
from benchmark.suites.registry import Suite, register_suite
from probes.datasets.specs.webdataset import DATACOMP

PROBES = {"classification": "zero-shot", "association": "zero-shot", "image-text": "retrieval"}
SHIFTS = ("imagenet1k", "imagenetv2", "imagenet-a", "imagenet-r", "imagenet_sketch", "objectnet")

register_suite(
    Suite(
        name="zeroshot38",
        about="the 38 zero-shot tasks of OpenCLIP and DataComp and their average",
        tasks={f"{task.name}/{PROBES[task.kind]}": {} for task in DATACOMP},
        default_backbones=COMPARED,
        skips_absent_data=True,
        average="average of the 38 tasks",
    )
)
register_suite(
    Suite(
        name="imagenet-shifts",
        about="zero-shot on ImageNet and its shifts V2, A, R, Sketch and ObjectNet",
        tasks={f"{name}/zero-shot": {} for name in SHIFTS},
        default_backbones=COMPARED,
        skips_absent_data=True,
    )
)
