"""The tasks of the CLIPTeX paper, on the real datasets.

The frozen backbone computes in bf16 (heads, losses and scores in fp32), which is twice as quick on
GPUs and on CPUs that have it; ``--set precision=fp32`` for full precision. It is part of each
number's identity, as every setting is. The settings are this suite's own; those of published
protocols are presets: ``--set protocol=NAME``, see ``list protocols``.
"""

from __future__ import annotations

from benchmark.suites.registry import Suite, cross, register_suite

DENSE = ("linear", "deeplabv3", "pspnet")
ENCODER = {"precision": "bf16"}

PAPER = register_suite(
    Suite(
        name="paper",
        about=(
            "the tasks of the CLIPTeX paper on the real datasets (bring them with --data-root),"
            " backbones in bf16"
        ),
        tasks={
            **cross(["voc", "ade20k"], DENSE, **ENCODER),
            **cross(["coco"], ["ssd", "mask-rcnn"], **ENCODER),
            **cross(["nyu-depth", "nyu-normal"], DENSE, **ENCODER),
            **cross(["imagenet", "places365"], ["linear"], **ENCODER),
            **cross(["imagenet"], ["zero-shot"], **ENCODER),
            **cross(["flickr30k"], ["retrieval"], **ENCODER),
        },
        default_backbones=("clip", "clip-ft", "cliptex"),
    )
)

SHORT = {
    **ENCODER,
    "max_iters": 2000,
    "lr": 1e-3,
}  # enough to tell checkpoints apart, not to compare with the suite paper

COMPANION = register_suite(
    Suite(
        name="companion",
        about=(
            "quick tasks to follow a training by: short linear probes, zero-shot and retrieval (for"
            " `watch`)"
        ),
        tasks={
            **cross(["voc", "nyu-depth"], ["linear"], **SHORT),
            **cross(["imagenet"], ["zero-shot"], **ENCODER),
            **cross(["flickr30k"], ["retrieval"], **ENCODER),
        },
    )
)
