"""SUN RGB-D's depth, scored with heads that were trained on NYU-v2, as in DINOv2's depth results.

Layout and list of MDET (zhyever/Monocular-Depth-Estimation-Toolbox, ``splits``): a folder with
``SUNRGBD/`` and ``SUNRGBD_val_splits.txt``, whose lines are an image and its depth, both from that
folder. Stored depths are millimetres, rotated by three bits. As in MDET's ``sunrgbd.py`` they and
the predictions are cut at 8 m, and rows 45 to 470, columns 41 to 600 of each image are scored.
"""

from __future__ import annotations

from pathlib import Path

from cliptex_common.errors import report_malformed
from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import read_lines, require_file
from probes.registry import register_dataset


def list_samples(root: Path, split: Split) -> list[Sample]:
    """The images of the list that have a depth."""
    path = require_file(root, "SUNRGBD_val_splits.txt")
    with report_malformed(f"{path} needs lines of an image and its depth"):
        pairs = [line.split()[:2] for line in read_lines(path)]
        return [
            Sample(image.lstrip("/"), depth.lstrip("/"))
            for image, depth in pairs
            if depth != "None"
        ]


register_dataset(
    DatasetSpec(
        name="sun-rgbd",
        kind="depth",
        folder="sunrgbd",
        list_samples=list_samples,
        expected={"val": 5050},
        extra={
            "depth_scale": 1e-3,
            "rotated_bits": 3,
            "min_depth": 1e-3,
            "max_depth": 10.0,
            "cut": 8.0,  # metres, of ground truth and predictions
            "crop": (45, 471, 41, 601),
            "several_sizes": True,
        },
        trained_on="nyu-depth",
        about=(
            "SUN RGB-D's depth by heads from nyu-depth: sunrgbd/SUNRGBD (rgbd.cs.princeton.edu) and"
            " MDET's SUNRGBD_val_splits.txt"
        ),
    )
)
