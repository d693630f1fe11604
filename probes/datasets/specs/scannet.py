"""The 1,500 pairs of frames of 100 rooms of ScanNet (Dai et al. 2017) that matchers are tested on
(Sarlin et al. 2020).

``scene0707_00/{color/N.jpg,depth/N.png,pose/N.txt}`` … and the lists ``test.npz`` and
``intrinsics.npz``, all in one folder; LoFTR's repository has the lists and says where the frames
are.
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from cliptex_common.errors import UserError, report_malformed
from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import require_file
from probes.registry import register_dataset


def list_samples(root: Path, split: Split) -> list[Sample]:
    """The frames of all pairs, in the order of the list."""
    if split == "train":
        return []
    pairs, cameras = (read_list(root, name) for name in ("test.npz", "intrinsics.npz"))
    samples: dict[str, Sample] = {}
    for room, sequence, *frames in read_pairs(pairs, root):
        scene = f"scene{room:04d}_{sequence:02d}"
        images = [f"{scene}/color/{frame}.jpg" for frame in frames]
        for image in images:
            if image not in samples:
                samples[image] = read_frame(root, image, cameras)
        samples[images[0]].target["pairs"].append(images[1])
    return list(samples.values())


def read_list(root: Path, name: str) -> Any:
    """The arrays of a list. Raises ``UserError`` if it is missing or damaged."""
    path = require_file(root, name)
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}); get the file again") from error


def read_pairs(arrays: Any, root: Path) -> list[list[int]]:
    """[room, sequence, frame, frame] of each pair."""
    with report_malformed(f"{root / 'test.npz'} is no list of pairs"):
        return arrays["name"].reshape(-1, 4).tolist()


def read_frame(root: Path, image: str, cameras: Any) -> Sample:
    """A frame with its camera, and without pairs."""
    scene, _, name = image.split("/")
    number = name.removesuffix(".jpg")
    depth = f"{scene}/depth/{number}.png"
    for file in (image, depth):
        require_file(root, file)
    path = require_file(root, f"{scene}/pose/{number}.txt")
    with report_malformed(f"{path} or {root / 'intrinsics.npz'} is no camera of ScanNet"):
        to_camera = np.linalg.inv(np.loadtxt(path).reshape(4, 4))
        target = {
            "rotation": to_camera[:3, :3].tolist(),
            "translation": to_camera[:3, 3].tolist(),
            "camera": cameras[scene].reshape(3, 3).tolist(),
            "pairs": [],
        }
    if not np.isfinite(to_camera).all():
        raise UserError(f"{path} is no pose; get the file again")
    return Sample(image, target, files=(depth,))


register_dataset(
    DatasetSpec(
        name="scannet",
        kind="scene-views",
        folder="scannet_test_1500",
        list_samples=list_samples,
        expected={"train": 0},
        about="1,500 pairs of ScanNet (frames, and test.npz and intrinsics.npz beside them, from"
        " where github.com/zju3dv/LoFTR says)",
    )
)
