"""``card``: the columns of today's model cards (DINOv2's, DINOv3's), on the datasets that are
present.

Where a card does not say how a number was made, the settings are this suite's own.
"""

from __future__ import annotations

from benchmark.suites.paper import COMPARED, ENCODER
from benchmark.suites.registry import Suite, cross, register_suite
from benchmark.suites.shifts import SETS

# as the Monocular-Depth-Estimation-Toolbox reads and scores KITTI
KITTI = {
    **ENCODER,
    "size": 352,
    "crop": (352, 704),
    "train_area": ("kb",),
    "test_area": ("kb-garg",),
}

register_suite(
    Suite(
        name="card",
        about="the columns of model cards: classification, retrieval, correspondence, videos,"
        " segmentation and depth, on the datasets that are present",
        tasks={
            **cross(["imagenet"], ["linear", "knn"], **ENCODER),
            **cross(SETS[1:], ["linear"], **ENCODER),
            **cross(["roxford5k", "rparis6k", "amstertime"], ["retrieval"], **ENCODER),
            **cross(["spair"], ["keypoints"], **ENCODER),
            **cross(["davis"], ["label-propagation"], **ENCODER),
            **cross(["navi"], ["view-matching"], **ENCODER),
            **cross(["ade20k", "voc"], ["linear"], **ENCODER),
            # as MMSegmentation's configs of both: images as large as they are, and 480 px
            **cross(["cityscapes"], ["linear"], **ENCODER, size=1024, crop=(512, 1024)),
            **cross(["pascal-context-59"], ["linear"], **ENCODER, size=480),
            **cross(["nyu-depth", "sun-rgbd"], ["linear"], **ENCODER),
            **cross(["kitti-depth"], ["linear"], **KITTI),
        },
        default_backbones=COMPARED,
        skips_absent_data=True,
    )
)
