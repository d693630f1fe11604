"""A plugin: the default suite with a quarter of its pairs, and one quick task a level."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from benchmark.mini.suite import BACKBONE_SETS, mini_suite, pipeline
from benchmark.mini.world import SIZES
from benchmark.suites import Suite, register_suite

NAME = "small-world"
TASKS = ("mini-seg/linear", "mini-depth/linear", "mini-normal/linear", "mini-class/knn")

sizes = SIZES["mini"]
SIZES[NAME] = replace(sizes, world=replace(sizes.world, pairs=2000))
content = mini_suite(200, 200)
register_suite(
    Suite(
        name=NAME,
        about="the mini suite with 2,000 pairs",
        tasks={name: content["tasks"][name] for name in TASKS},
        unlisted={},
        default_backbones=BACKBONE_SETS["cliptex"],
        backbone_sets=BACKBONE_SETS,
        pipeline=partial(pipeline, NAME),
        training_settings=sizes.tune,
    )
)
