"""The tasks of the CLIPTeX paper, on the real datasets."""

from __future__ import annotations

from benchmark.suites.registry import Suite, cross, register_suite

DENSE = ("linear", "deeplabv3", "pspnet")

PAPER = register_suite(
    Suite(
        name="paper",
        about="the tasks of the CLIPTeX paper on the real datasets (bring them with --data-root)",
        tasks={
            **cross(["voc", "ade20k"], DENSE),
            **cross(["coco"], ["ssd", "mask-rcnn"]),
            **cross(["nyu-depth", "nyu-normal"], DENSE),
            **cross(["imagenet", "places365"], ["linear"]),
            **cross(["imagenet"], ["zero-shot"]),
            **cross(["flickr30k"], ["retrieval"]),
        },
        default_backbones=("clip", "clip-ft", "cliptex"),
    )
)
