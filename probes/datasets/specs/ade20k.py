"""ADE20K scene parsing (MIT Scene Parsing Benchmark): 150 classes; the stored 0 means
unlabelled."""

from functools import partial

from probes.datasets.base import DatasetSpec
from probes.datasets.layouts import mirrored, mmlab_classes
from probes.registry import register_dataset

register_dataset(
    DatasetSpec(
        name="ade20k",
        kind="segmentation",
        folder="ade/ADEChallengeData2016",
        list_samples=mirrored(
            "images/{part}", "annotations/{part}", train="training", val="validation"
        ),
        expected={"train": 20210, "val": 2000},
        classes=partial(mmlab_classes, "mmseg.datasets", "ADE20KDataset"),
        label_offset=-1,
        about=(
            "ADE20K, 150 classes (ADEChallengeData2016.zip from"
            " data.csail.mit.edu/places/ADEchallenge)"
        ),
    )
)
