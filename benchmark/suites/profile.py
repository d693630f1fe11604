"""``profile``: which layer and which resolution of a backbone to read.

Probes without training on a few images of each dataset that is present: a quick look, with wide
intervals.
"""

from __future__ import annotations

from benchmark.suites.paper import COMPARED, ENCODER
from benchmark.suites.registry import Suite, cross, register_suite

PATCHES = {
    **ENCODER,
    "layers": "25%,50%,75%,100%",
    "size": "224,448,672",
    "memory": 10_000,
    "neighbours": (10, 30),
    "distances": ("cosine",),
}

register_suite(
    Suite(
        name="profile",
        about="which layer, which resolution: k-NN of patches at four depths × three sizes, on 24"
        " images of each dataset that is present",
        tasks=cross(["camvid", "voc", "ade20k"], ["patch-knn"], **PATCHES),
        default_backbones=COMPARED,
        skips_absent_data=True,
        images=24,
    )
)
