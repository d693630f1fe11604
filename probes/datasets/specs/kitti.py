"""KITTI depth, the split of Eigen et al. (NIPS 2014): street scenes with the depths of a laser
scanner, up to 80 m.

Layout and lists of the Monocular-Depth-Estimation-Toolbox: ``input/DATE/DRIVE/image_02/data/N.png``
(KITTI's raw data), ``gt_depth/DRIVE/proj_depth/groundtruth/image_02/N.png`` (its depth annotations:
16 bits, 1/256 m, 0 where unknown) and ``kitti_eigen_{train,test}.txt``. 45 of the 697 test images
have no annotation, ``None`` in the list, and are left out.

Images have several sizes; ``train_area`` and ``test_area`` have names for KITTI's crops.
"""

from pathlib import Path

from cliptex_common.errors import UserError
from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import read_lines, require_file, require_folder
from probes.registry import register_dataset

PARTS = {"train": "train", "val": "test"}


def list_samples(root: Path, split: Split) -> list[Sample]:
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
    return {sample.image: sample.target.split("/")[1] for sample in list_samples(root, "val")}


register_dataset(
    DatasetSpec(
        name="kitti-depth",
        kind="depth",
        folder="kitti",
        list_samples=list_samples,
        expected={"train": 23158, "val": 652},
        extra={
            "depth_scale": 1 / 256,  # metres per stored unit
            "min_depth": 1e-3,
            "max_depth": 80.0,
            "crop": ("kb-garg",),
            "split": "Eigen 23158/652",
        },
        units=drives,
        about=(
            "KITTI depth, Eigen's split: input/, gt_depth/ (raw data and annotated depth of"
            " cvlibs.net/datasets/kitti, login) and kitti_eigen_{train,test}.txt"
            " (github.com/zhyever/Monocular-Depth-Estimation-Toolbox, splits/)"
        ),
    )
)
