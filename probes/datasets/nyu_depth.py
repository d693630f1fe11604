"""NYU Depth v2, metric depth: the official 654 test images, scored inside the Eigen crop, and one of two train sets.

Layout of mmseg's ``NYUDataset``: ``images/{train,test}`` (jpg or png, scene folders allowed) and, under the same names,
``annotations/{train,test}`` with 16-bit PNG depth in millimetres, 0 where there is none. ``val`` is the official test
split. The train set is the 795 images of the labelled set, or the 24,231 frames of the raw videos (Lee et al. 2019, "BTS")
that most published depth heads are trained on, as mmseg's ``tools/dataset_converters/nyu.py`` lays out their ``nyu.zip``
(``kitchen_0028b/rgb_00045.jpg`` becomes ``images/train/kitchen_0028b_00045.jpg``). Which of them a copy has is told by its
size, and is part of the protocol.
"""

from dataclasses import replace
from pathlib import Path

from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import IMAGE_SUFFIXES, mirrored, walk
from probes.registry import register_dataset

EXPECTED = {"train": 795, "val": 654}
RAW_FRAMES = 24231
IMAGES = "images/train"
PARTS = {"train": "train", "val": "test"}


def list_samples(root: Path, split: Split) -> list[Sample]:
    return mirrored(root, f"images/{PARTS[split]}", f"annotations/{PARTS[split]}")


def adapt(spec: DatasetSpec, root: Path) -> DatasetSpec:
    """With the frames of the raw videos the train split is another one, and so is the protocol."""
    if not (root / IMAGES).is_dir() or len(walk(root, IMAGES, IMAGE_SUFFIXES)) <= EXPECTED["train"]:
        return spec
    extra = {**spec.extra, "split": "24k/654", "train_list": "24,231 raw frames"}
    return replace(spec, expected={**spec.expected, "train": RAW_FRAMES}, extra=extra)


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
        adapt=adapt,
        about="NYU Depth v2 in metres, 795 (cs.nyu.edu/~silberman) or 24,231 train / 654 test, in mmseg's layout",
    )
)
