"""NYU Depth v2 in mmseg's layout: the labelled set from its MATLAB file, and the 24,231 raw frames
from BTS's ``nyu.zip``."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from backbones.cliptex.protocols import Progress
from common.errors import UserError
from probes.datasets.download.archives import Files, members, write

MAT, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"


def labelled(files: Files, to: Path, progress: Progress) -> None:
    """The 795 training and 654 test images as PNG, bit by bit, and their depth in millimetres, 16
    bits.

    Depth is what the Kinect measured (``rawDepths``, 0 where it saw none), not the file's
    in-painted ``depths``: that is what the published evaluations score (Lee et al. 2019). Names are
    theirs too: the type of scene and the index in the file from 0. The white border of the images
    stays, where others paint it black.
    """
    import h5py
    from scipy.io import loadmat

    try:
        part = {
            int(number) - 1: split
            for split, key in (("train", "trainNdxs"), ("test", "testNdxs"))
            for number in loadmat(files[SPLITS])[key].ravel()
        }
        with h5py.File(files[MAT]) as data:
            images, depths = (
                data["images"],
                data["rawDepths"],
            )  # MATLAB's axes backwards: (N, 3, W, H), (N, W, H)
            scenes = [
                "".join(map(chr, data[reference][:].ravel())) for reference in data["sceneTypes"][0]
            ]
            progress.start("converting NYU-v2", len(part))
            for folder in ("images", "annotations"):
                for split in ("train", "test"):
                    (to / folder / split).mkdir(parents=True)
            for index, split in sorted(part.items()):
                name = f"{split}/{scenes[index]}_{index:05d}.png"
                Image.fromarray(images[index].transpose(2, 1, 0)).save(to / "images" / name)
                Image.fromarray(millimetres(depths[index].T)).save(to / "annotations" / name)
                progress.advance()
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"{files[MAT]} and {files[SPLITS]} are not NYU-v2's ({error}); get them again"
        ) from error


def millimetres(metres: np.ndarray) -> np.ndarray:
    """(H, W) float metres → (H, W) uint16 millimetres; what is not above 0 and below 65.5 m is 0,
    'not known'."""
    known = np.isfinite(metres) & (metres > 0) & (metres < 65.5)
    return np.rint(np.where(known, metres, 0) * 1000).astype(np.uint16)


def raw_frames(files: Files, to: Path, progress: Progress) -> None:
    """The frames of ``nyu.zip`` that its lists name, called as mmseg's converter calls them:
    ``kitchen_0028b/rgb_00045.jpg`` becomes ``images/train/kitchen_0028b_00045.jpg``."""
    (archive,) = files.values()
    place: dict[str, str] = {}
    try:
        with zipfile.ZipFile(archive) as opened:
            for split in ("train", "test"):
                for line in opened.read(f"nyu/nyu_{split}.txt").decode().splitlines():
                    if line.strip():
                        image, depth = (name.strip("/") for name in line.split()[:2])
                        place[image] = f"images/{split}/{image.replace('/rgb', '')}"
                        place[depth] = f"annotations/{split}/{depth.replace('/sync_depth', '')}"
    except (KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{archive} is not the nyu.zip that is meant ({error}); see `data get nyu-24k`"
        ) from error
    for name, stream in members(archive, progress, "nyu"):
        if name in place:
            write(to, place[name], stream)
