"""NYU Depth v2, surface normals: images as ``nyu-depth``, ground truth in ``normals/{train,test}``, scored on the official
test split.

Stored as 8-bit RGB PNG: n = png / 127.5 - 1, then scaled to unit length. Axes: x right, y up, z towards the camera.
A stored (0, 0, 0), which would decode to (-1, -1, -1), means 'no normal here' and is neither trained on nor scored.
"""

from pathlib import Path

from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import mirrored
from probes.datasets.nyu_depth import EXPECTED, PARTS
from probes.registry import register_dataset


def list_samples(root: Path, split: Split) -> list[Sample]:
    return mirrored(root, f"images/{PARTS[split]}", f"normals/{PARTS[split]}")


register_dataset(
    DatasetSpec(
        name="nyu-normal",
        kind="normals",
        folder="nyu",
        list_samples=list_samples,
        expected=EXPECTED,
        extra={
            "encoding": "n = png / 127.5 - 1",
            "invalid": (0, 0, 0),  # the stored value
            "axes": "x right, y up, z towards the camera",
            "split": "official 795/654",
        },
        about="NYU Depth v2 surface normals, 795 train / 654 test: nyu/normals/{train,test} 8-bit RGB, (0,0,0) invalid",
    )
)
