"""Datasets with depth or surface normals: KITTI, NYU Depth v2, SUN RGB-D."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cliptex_common.errors import UserError, report_malformed
from probes.datasets.base import (
    DATASETS,
    DatasetSpec,
    Sample,
    Split,
    mirrored,
    read_lines,
    require_file,
    require_folder,
    walk_images,
)
from probes.datasets.unpack import SCENES
from probes.registry import register_dataset

PARTS = {"train": "train", "val": "test"}


def list_kitti(root: Path, split: Split) -> list[Sample]:
    """Layout and lists of the Monocular-Depth-Estimation-Toolbox (MDET):
    ``input/DATE/DRIVE/image_02/data/N.png`` (KITTI's raw data),
    ``gt_depth/DRIVE/proj_depth/groundtruth/image_02/N.png`` (its depth annotations: 16 bits, 1/256
    m, 0 where unknown) and ``kitti_eigen_{train,test}.txt``. 45 of the 697 test images have no
    annotation, ``None`` in the list, and are left out."""
    for folder in ("input", "gt_depth"):
        require_folder(root, folder)
    name = f"kitti_eigen_{PARTS[split]}.txt"
    path = require_file(root, name, f"splits/{name}")
    samples = []
    for number, line in enumerate(read_lines(path), start=1):
        image, depth, *_ = [*line.split(), ""]
        if not depth:
            raise UserError(f"{path} line {number} has no depth map; lines are IMAGE DEPTH FOCAL")
        if depth != "None":
            samples.append(Sample(f"input/{image.strip('/')}", f"gt_depth/{depth.strip('/')}"))
    return samples


def drives(root: Path) -> dict[str, str]:
    """Test image → its drive, of which there are several images."""
    return {sample.image: sample.target.split("/")[1] for sample in list_kitti(root, "val")}


# street scenes with the depths of a laser scanner (Eigen et al., NIPS 2014). Images have several
# sizes; ``train_area`` and ``test_area`` have names for KITTI's crops
register_dataset(
    DatasetSpec(
        name="kitti-depth",
        kind="depth",
        folder="kitti",
        list_samples=list_kitti,
        expected={"train": 23158, "val": 652},
        extra={
            "depth_scale": 1 / 256,  # metres per stored unit
            "min_depth": 1e-3,
            "max_depth": 80.0,
            "crop": ("kb-garg",),
            "split": "Eigen 23158/652",
        },
        units=drives,
        image_set="kitti",
        about=(
            "KITTI depth, Eigen's split: input/, gt_depth/ (raw data and annotated depth of"
            " cvlibs.net/datasets/kitti, login) and kitti_eigen_{train,test}.txt"
            " (github.com/zhyever/Monocular-Depth-Estimation-Toolbox, splits/)"
        ),
    )
)


# NYU Depth v2 in the layout of mmseg's ``NYUDataset``: ``images/{train,test}`` (jpg or png, scene
# folders allowed) and, under the same names, the ground truth as PNG. ``data get nyu`` and ``data
# get nyu-24k`` make its images and depths
EXPECTED = {"train": 795, "val": 654}
RAW_FRAMES = 24231
TRAIN_IMAGES = "images/train"


def adapt(spec: DatasetSpec, root: Path) -> DatasetSpec:
    """With the 24,231 frames of the raw videos (Lee et al. 2019, "BTS") that most published depth
    heads are trained on the train split is another one, and so is the protocol; the number of a
    copy's images says which it has. mmseg's ``tools/dataset_converters/nyu.py`` lays them out."""
    if (
        not (root / TRAIN_IMAGES).is_dir()
        or len(walk_images(root, TRAIN_IMAGES)) <= EXPECTED["train"]
    ):
        return spec
    extra = {**spec.extra, "split": "24k/654", "train_list": "24,231 raw frames"}
    return replace(spec, expected={**spec.expected, "train": RAW_FRAMES}, extra=extra)


def scenes(root: Path) -> dict[str, str]:
    """Image → its room, which several images show; empty for a copy that does not tell."""
    path = root / SCENES
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return dict(line.split("\t") for line in lines)


# ``annotations/{train,test}``, 16 bits, 0 where there is no depth
DEPTH = register_dataset(
    DatasetSpec(
        name="nyu-depth",
        kind="depth",
        folder="nyu",
        list_samples=mirrored("images/{part}", "annotations/{part}", val="test"),
        expected=EXPECTED,
        extra={
            "depth_scale": 1e-3,  # metres per stored unit
            "min_depth": 1e-3,  # metres; values outside the range are not scored
            "max_depth": 10.0,
            # Eigen et al. 2014: rows 45-470, columns 41-600 of 480 x 640
            "crop": (45, 471, 41, 601),
            "split": "official 795/654",
        },
        adapt=adapt,
        units=scenes,
        image_set="nyu",
        about=(
            "NYU Depth v2 in metres, 795 (cs.nyu.edu/~silberman) or 24,231 train / 654 test, in"
            " mmseg's layout"
        ),
    )
)
# ``normals/{train,test}``: decoded, then scaled to unit length. A stored (0, 0, 0), which would
# decode to (-1, -1, -1), means 'no normal here' and is neither trained on nor scored
NORMAL = register_dataset(
    DatasetSpec(
        name="nyu-normal",
        kind="normals",
        folder="nyu",
        list_samples=mirrored("images/{part}", "normals/{part}", val="test"),
        expected=EXPECTED,
        extra={
            "encoding": "n = png / 127.5 - 1",
            "invalid": (0, 0, 0),  # the stored value
            "axes": "x right, y up, z towards the camera",
            "split": "official 795/654",
        },
        units=scenes,
        image_set="nyu",
        about=(
            "NYU Depth v2 surface normals, 795 train / 654 test: nyu/normals/{train,test} 8-bit"
            " RGB, (0,0,0) invalid"
        ),
    )
)


def list_sun_rgbd(root: Path, split: Split) -> list[Sample]:
    """The images of MDET's list that have a depth: a folder with ``SUNRGBD/`` and
    ``SUNRGBD_val_splits.txt``, whose lines are an image and its depth, both from that folder."""
    path = require_file(root, "SUNRGBD_val_splits.txt")
    with report_malformed(f"{path} needs lines of an image and its depth"):
        pairs = [line.split()[:2] for line in read_lines(path)]
        return [
            Sample(image.lstrip("/"), depth.lstrip("/"))
            for image, depth in pairs
            if depth != "None"
        ]


# scored with heads that were trained on NYU-v2, as in DINOv2's depth results. Stored depths are
# millimetres, rotated by three bits; cut and crop as in MDET's ``sunrgbd.py``
register_dataset(
    DatasetSpec(
        name="sun-rgbd",
        kind="depth",
        folder="sunrgbd",
        list_samples=list_sun_rgbd,
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


# the same files, of which only the order of depths counts
for _name in ("nyu-depth", "kitti-depth"):
    _spec = DATASETS[_name]
    register_dataset(
        replace(
            _spec,
            name=f"{_name}-order",
            kind="depth-order",
            about=f"which of two points is nearer, from {_spec.about}",
        )
    )
