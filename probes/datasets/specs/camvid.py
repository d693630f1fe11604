"""CamVid: road scenes, 11 classes; declared as a dataset of your own would be."""

from probes.datasets.base import DatasetSpec
from probes.datasets.layouts import mirrored
from probes.registry import register_dataset

register_dataset(
    DatasetSpec(
        name="camvid",
        kind="segmentation",
        folder="camvid",
        list_samples=mirrored("images/{part}", "annotations/{part}"),  # {part}: train or val
        classes=(
            *("sky", "building", "pole", "road", "pavement", "tree"),
            *("signsymbol", "fence", "car", "pedestrian", "bicyclist"),
        ),
        ignore_index=255,
        about=(
            "CamVid road scenes, 11 classes: images/{train,val}, annotations/{train,val} with"
            " labels 0-10, void 255"
        ),
    )
)
