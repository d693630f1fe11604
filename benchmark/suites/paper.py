"""The tasks of the CLIPTeX paper, on the real datasets.

The frozen backbone computes in bf16 on a GPU that does, else in fp32 (heads, losses and scores
always in fp32); ``--set precision=fp32`` and ``=bf16`` decide it. The settings are this suite's
own; those of published protocols are presets: ``--set protocol=NAME``, see ``list protocols``.
"""

from __future__ import annotations

from benchmark.suites.registry import Suite, cross, register_suite

COMPARED = ("clip", "clip-ft", "cliptex")
DENSE = ("linear", "deeplabv3", "pspnet")
ENCODER = {"precision": "auto"}

register_suite(
    Suite(
        name="paper",
        about="the tasks of the CLIPTeX paper on real datasets (give --data-root)",
        tasks={
            **cross(["voc", "ade20k"], DENSE, **ENCODER),
            **cross(["coco"], ["ssd", "mask-rcnn"], **ENCODER),
            **cross(["nyu-depth", "nyu-normal"], DENSE, **ENCODER),
            **cross(["imagenet", "places365"], ["linear"], **ENCODER),
            **cross(["imagenet"], ["zero-shot"], **ENCODER),
            **cross(["flickr30k"], ["retrieval"], **ENCODER),
        },
        default_backbones=COMPARED,
    )
)

# enough to compare checkpoints with each other, not with the suite paper
SHORT = {**ENCODER, "max_iters": 2000, "lr": 1e-3}

register_suite(
    Suite(
        name="companion",
        about="quick tasks for `watch`: short linear probes, zero-shot and retrieval",
        tasks={
            **cross(["voc", "nyu-depth"], ["linear"], **SHORT),
            **cross(["imagenet"], ["zero-shot"], **ENCODER),
            **cross(["flickr30k"], ["retrieval"], **ENCODER),
        },
    )
)
