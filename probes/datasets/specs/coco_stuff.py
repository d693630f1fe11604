"""COCO-Stuff 164k (Caesar, Uijlings, Ferrari, CVPR 2018): 171 classes of things and stuff, in
MMSegmentation's layout.

``images/{train,val}2017/ID.jpg`` and ``annotations/{train,val}2017/ID_labelTrainIds.png``.
"""

from functools import partial
from pathlib import Path

from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import IMAGE_SUFFIXES, mmlab_classes, walk
from probes.registry import register_dataset

SUFFIX = "_labelTrainIds.png"


def list_samples(root: Path, split: Split) -> list[Sample]:
    """Images and label maps of one name; either without the other is listed too, so that it is
    missed."""
    part = f"{split}2017"
    stems = {name.rpartition(".")[0] for name in walk(root, f"images/{part}", IMAGE_SUFFIXES)}
    stems |= {
        name.removesuffix(SUFFIX) for name in walk(root, f"annotations/{part}", (SUFFIX.lower(),))
    }
    return [
        Sample(f"images/{part}/{stem}.jpg", f"annotations/{part}/{stem}{SUFFIX}")
        for stem in sorted(stems)
    ]


register_dataset(
    DatasetSpec(
        name="coco-stuff",
        kind="segmentation",
        folder="coco_stuff164k",
        list_samples=list_samples,
        expected={"train": 118287, "val": 5000},
        classes=partial(mmlab_classes, "mmseg.datasets", "COCOStuffDataset"),
        about=(
            "COCO-Stuff 164k, 171 classes, in MMSegmentation's layout"
            " (github.com/nightrome/cocostuff)"
        ),
    )
)
