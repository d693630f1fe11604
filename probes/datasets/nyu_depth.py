"""NYU Depth v2, metric depth: the official 795/654 split of the labelled set, scored inside the Eigen crop.

Layout of mmseg's ``NYUDataset``: ``images/{train,test}`` (jpg or png, scene folders allowed) and, under the same names,
``annotations/{train,test}`` with 16-bit PNG depth in millimetres, 0 where there is none. ``val`` is the official test
split.
"""

from pathlib import Path

from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import mirrored
from probes.registry import register_dataset

EXPECTED = {"train": 795, "val": 654}
PARTS = {"train": "train", "val": "test"}


def list_samples(root: Path, split: Split) -> list[Sample]:
    return mirrored(root, f"images/{PARTS[split]}", f"annotations/{PARTS[split]}")


register_dataset(
    DatasetSpec(
        name="nyu-depth",
        kind="depth",
        folder="nyu",
        list_samples=list_samples,
        expected=EXPECTED,
        extra={
            "depth_scale": 1e-3,  # metres per stored unit
            "min_depth": 1e-3,  # metres; values outside the range are not scored
            "max_depth": 10.0,
            "crop": (45, 471, 41, 601),  # Eigen et al. 2014: rows 45-470, columns 41-600 of 480 x 640
            "split": "official 795/654",
        },
        about="NYU Depth v2 in metres, 795 train / 654 test (labelled set of cs.nyu.edu/~silberman, mmseg's layout)",
    )
)
