"""How often a step of each loop may wait for an accelerator, and copy without need: at most what it
does now. Whoever lowers a number of a loop lowers it here."""

from __future__ import annotations

from dataclasses import dataclass

from tests.accelerator.cases import loops
from tests.backbones.cliptex.experts.small_mask_rcnn import write_mmdet, write_torchvision
from tests.probes.datasets.make import make_imagefolder
from tests.probes.matching.layouts import make_davis, make_navi


@dataclass(frozen=True)
class Bound:
    """A loop of ``loops``, what it does when it is ``short`` and ``long``, and the most that one
    more unit of length may ask of the device."""

    loop: loops.Loop
    waits: float
    blocking_copies: float
    unit: str = "step"
    short: int = 2
    long: int = 5


DENSE = {"size": 48, "scale_range": (1.0, 1.0), "fixed_crops": 2}
UPSAMPLED = {"size": 48, "upsampler": "jbu", "feature_stride": 4, "layers": "last"}
PAIRS = [(0, 1), (2, 4), (0, 2), (1, 2)]  # of views of an object
CROPS = {
    "random_crops": True,
    "blocks": (1, 2),
    "average_pool": (False, True),
    "standardise": False,
    "epochs": 1,
}

BOUNDS: dict[str, Bound] = {
    "cliptex, moving average": Bound(loops.cliptex(ema=0.9), 1, 0, short=4, long=8),
    "cliptex, gradient cache": Bound(loops.cliptex(accumulate=2), 0, 0, short=4, long=8),
    "expert unet-seg": Bound(loops.expert("unet-seg"), 0, 0, short=4, long=8),
    "expert unet-depth": Bound(loops.expert("unet-depth"), 0, 0, short=4, long=8),
    "expert unet-normals": Bound(loops.expert("unet-normals"), 0, 0, short=4, long=8),
    "labels, MMDetection": Bound(loops.labelling(write_mmdet), 7, 12, "image"),
    "labels, torchvision": Bound(loops.labelling(write_torchvision), 6, 8, "image"),
    "segmentation": Bound(loops.probe("segmentation/linear", "max_iters", **DENSE), 0, 0),
    "segmentation, cached": Bound(
        loops.probe("segmentation/linear", "max_iters", **DENSE, cache="fp16"), 0, 0
    ),
    "segmentation, upsampled": Bound(
        loops.probe("segmentation/linear", "max_iters", **UPSAMPLED), 0, 0
    ),
    "depth": Bound(loops.probe("depth/linear", "max_iters", **DENSE), 0, 0),
    "normals": Bound(loops.probe("normals/linear", "max_iters", **DENSE), 0, 0),
    "segmentation, evaluation": Bound(loops.validation("segmentation/linear"), 0, 7, "image", 4, 8),
    "mask-rcnn": Bound(loops.probe("detection/mask-rcnn", "max_iters"), 160, 103),
    "ssd": Bound(loops.probe("detection/ssd", "max_iters"), 82, 32),
    "linear": Bound(loops.probe("classification/linear", "epochs"), 0, 4, "epoch", 1, 3),
    "linear, random crops": Bound(
        loops.probe("classification/linear", "epoch_length", **CROPS), 0, 0
    ),
    "attentive, resumed": Bound(
        loops.resumed("classification/attentive", "epoch_length"), 0, 0, short=4, long=7
    ),
    "logreg": Bound(loops.probe("segmentation/logreg", "iterations"), 0, 4, "iteration"),
    "encoding": Bound(
        loops.evaluation("classification/knn", lambda folder, n: make_imagefolder(folder, n, 1)),
        waits=0.5,  # to check that what it stores is finite
        blocking_copies=0.5,
        unit="image of each class",
        short=4,
        long=8,
    ),
    "label propagation": Bound(
        loops.evaluation(
            "video/label-propagation", lambda folder, n: make_davis(folder, frames=n, size=(48, 64))
        ),
        waits=0,
        blocking_copies=2,
        unit="frame of two videos",
        short=4,
        long=8,
    ),
    "view matching": Bound(
        loops.evaluation(
            "object-views/view-matching", lambda folder, n: make_navi(folder, listed=PAIRS[:n])
        ),
        waits=0,
        blocking_copies=0,
        unit="pair of views",
        short=2,
        long=4,
    ),
    # two splits, and eight images whose maps are pictured: each waits to see whether all is finite
    "probes inside a training": Bound(loops.in_loop, 10, 34, "evaluation", 1, 2),
    "patch-knn, evaluation": Bound(loops.validation("segmentation/patch-knn"), 4, 4, "image", 4, 8),
}
