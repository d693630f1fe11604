"""COCO-Stuff 164k (Caesar, Uijlings, Ferrari, CVPR 2018): 171 classes of things and stuff, in
MMSegmentation's layout.

``images/{train,val}2017/ID.jpg`` and ``annotations/{train,val}2017/ID_labelTrainIds.png``.
"""

from functools import partial

from probes.datasets.base import DatasetSpec
from probes.datasets.layouts import mirrored, mmlab_classes
from probes.registry import register_dataset

register_dataset(
    DatasetSpec(
        name="coco-stuff",
        kind="segmentation",
        folder="coco_stuff164k",
        list_samples=mirrored(
            "images/{part}2017", "annotations/{part}2017", suffix="_labelTrainIds.png"
        ),
        expected={"train": 118287, "val": 5000},
        classes=partial(mmlab_classes, "mmseg.datasets", "COCOStuffDataset"),
        about=(
            "COCO-Stuff 164k, 171 classes, in MMSegmentation's layout"
            " (github.com/nightrome/cocostuff)"
        ),
    )
)
