"""``own``: the user's data, with examples of datasets that are declared in one file."""

from __future__ import annotations

from benchmark.suites.paper import DENSE
from benchmark.suites.registry import Suite, cross, register_suite

register_suite(
    Suite(
        name="own",
        about="your own data: examples of one-file datasets (place each with --data NAME=DIR)",
        tasks={
            **cross(["camvid"], DENSE),
            **cross(["imagefolder"], ["linear", "zero-shot"]),
            **cross(["flickr8k"], ["retrieval"]),
        },
        default_backbones=("efficientnet-lite0", "random"),
        any_dataset=True,
    )
)
