"""NYU Depth v2 in mmseg's layout: the labelled set from its MATLAB file, and the 24,231 raw frames
from BTS's ``nyu.zip``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from cliptex_common.errors import UserError
from probes.datasets.download.archives import extracted

MAT, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
SCENES = "scenes.tsv"  # image, tab, scene


def labelled(files: Mapping[str, Path], to: Path) -> None:
    """The 795 training and 654 test images as PNG, and their depth in millimetres, 16 bits.

    Depth is what the Kinect measured (``rawDepths``, 0 where it saw nothing), not the file's
    in-painted ``depths``: published evaluations score it (Lee et al. 2019). Names are theirs too:
    the type of scene and the index in the file from 0. The white border of the images stays, where
    others paint it black. ``scenes.tsv`` has the room of each image.
    """
    import h5py
    from scipy.io import loadmat

    try:
        splits = loadmat(files[SPLITS])
        with h5py.File(files[MAT]) as data:
            # MATLAB's axes are reversed: (N, 3, W, H), (N, W, H)
            images, depths = data["images"], data["rawDepths"]
            scenes = []
            for split, key in (("train", "trainNdxs"), ("test", "testNdxs")):
                for folder in ("images", "annotations"):
                    (to / folder / split).mkdir(parents=True)
                for number in splits[key].ravel():
                    index = int(number) - 1
                    kind, scene = (
                        "".join(map(chr, data[data[key][0, index]][:].ravel()))
                        for key in ("sceneTypes", "scenes")
                    )
                    name = f"{split}/{kind}_{index:05d}.png"
                    scenes.append(f"images/{name}\t{scene}\n")
                    Image.fromarray(images[index].transpose(2, 1, 0)).save(to / "images" / name)
                    depth = Image.fromarray(millimetres(depths[index].T))
                    depth.save(to / "annotations" / name)
            (to / SCENES).write_text("".join(scenes))
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"{files[MAT]} and {files[SPLITS]} are not NYU-v2's ({error}); get them again"
        ) from error


def millimetres(metres: np.ndarray) -> np.ndarray:
    """(H, W) float metres → (H, W) uint16 millimetres; 0 (unknown) outside of 0 to 65.5 m."""
    valid = np.isfinite(metres) & (metres > 0) & (metres < 65.5)
    return np.rint(np.where(valid, metres, 0) * 1000).astype(np.uint16)


def raw_frames(files: Mapping[str, Path], to: Path) -> None:
    """The frames that the lists of ``nyu.zip`` name, called as mmseg's converter calls them:
    ``kitchen_0028b/rgb_00045.jpg`` becomes ``images/train/kitchen_0028b_00045.jpg``."""
    (archive,) = files.values()
    with extracted(archive, to, "nyu") as source:
        try:
            for split in ("train", "test"):
                for folder in ("images", "annotations"):
                    (to / folder / split).mkdir(parents=True)
                for line in (source / f"nyu_{split}.txt").read_text().splitlines():
                    image, depth = (name.strip("/") for name in line.split()[:2])
                    name = image.replace("/rgb", "")
                    (source / image).replace(to / "images" / split / name)
                    name = depth.replace("/sync_depth", "")
                    (source / depth).replace(to / "annotations" / split / name)
        except FileNotFoundError as error:
            raise UserError(
                f"{archive} is not BTS's nyu.zip ({error.filename} is missing); see `data get"
                " nyu-24k`"
            ) from error
