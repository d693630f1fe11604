"""Unpackers: archives into the layouts that ``data check`` expects."""

from __future__ import annotations

import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from cliptex_common.errors import UserError

# (name of an archive → its path, new folder): fills the folder in the layout of the dataset
Unpacker = Callable[[Mapping[str, Path], Path], None]
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)
LISTS = "ImageSets/Segmentation"


@contextmanager
def extracted(archive: Path, to: Path, below: str = "") -> Iterator[Path]:
    """The extracted folder ``below`` of a tar or zip, in a temporary folder inside ``to``.

    Raises:
        UserError: it is neither, is damaged, or has no such folder.
    """
    with TemporaryDirectory(dir=to) as folder:
        try:
            if zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as opened:
                    opened.extractall(folder)
            else:
                with tarfile.open(archive) as tar:
                    tar.extractall(folder, filter="data")
        except DAMAGED as error:
            raise UserError(
                f"{archive} is not a complete tar or zip ({error}); delete it and get it again"
            ) from error
        if not (path := Path(folder, below)).is_dir():
            raise UserError(f"{archive} has no folder {below}; is it the right archive?")
        yield path


def move_children(source: Path, to: Path) -> None:
    """Move the content of ``source`` into ``to``."""
    for path in source.iterdir():
        path.replace(to / path.name)


def unpack_layout(below: str, files: Mapping[str, Path], to: Path) -> None:
    """Archives that hold the layout in their folder ``below``."""
    for archive in files.values():
        with extracted(archive, to, below) as source:
            move_children(source, to)


def unpack_voc(files: Mapping[str, Path], to: Path) -> None:
    """VOC 2012 and, from the Semantic Boundaries Dataset (Hariharan et al., ICCV 2011), the 10,582
    images of ``trainaug``: all that either has for training, without VOC's validation images."""
    from scipy.io import loadmat

    with extracted(files["VOCtrainval_11-May-2012.tar"], to, "VOCdevkit/VOC2012") as source:
        move_children(source, to)
    train, val = (
        set((to / LISTS / f"{split}.txt").read_text().split()) for split in ("train", "val")
    )
    (to / "SegmentationClassAug").mkdir()
    with extracted(files["benchmark.tgz"], to, "benchmark_RELEASE/dataset") as source:
        names = train.union(*((source / f"{s}.txt").read_text().split() for s in ("train", "val")))
        for path in (source / "cls").iterdir():
            if path.stem not in train | val:
                labels = loadmat(path)["GTcls"][0]["Segmentation"][0].astype(np.uint8)
                Image.fromarray(labels).save(to / f"SegmentationClassAug/{path.stem}.png")
    trainaug = "".join(f"{name}\n" for name in sorted(names - val))
    (to / LISTS / "trainaug.txt").write_text(trainaug)


def unpack_merged(below: str, files: Mapping[str, Path], to: Path) -> None:
    """Archives that each hold some files of the layout in their folder ``below``."""
    for archive in files.values():
        with extracted(archive, to, below) as source:
            shutil.copytree(source, to, copy_function=shutil.move, dirs_exist_ok=True)


def unpack_flickr(name: str, files: Mapping[str, Path], to: Path) -> None:
    """Karpathy's captions of ``name``, and the images, if any, all in ``images``."""
    for archive in files.values():
        with extracted(archive, to) as source:
            for path in source.rglob("*"):
                if path.name == f"dataset_{name}.json":
                    path.replace(to / path.name)
                elif path.suffix.lower() in (".jpg", ".jpeg") and path.name[0] != ".":
                    (to / "images").mkdir(exist_ok=True)
                    path.replace(to / "images" / path.name)


def unpack_imagenet(files: Mapping[str, Path], to: Path) -> None:
    """ILSVRC 2012 as ``train/<wnid>`` and ``val/<wnid>``, of the archives that are given."""
    from torchvision.datasets import imagenet as torchvision

    paths = {name: str(path.resolve()) for name, path in files.items()}
    train, val, devkit = (torchvision.ARCHIVE_META[part][0] for part in ("train", "val", "devkit"))
    if val in paths:
        if devkit not in paths:
            raise UserError(
                f"{val} does not say which image shows what; pass --archive {devkit} too"
            )
        torchvision.parse_devkit_archive(to, paths[devkit])
        torchvision.parse_val_archive(to, paths[val])
        (to / torchvision.META_FILE).unlink()
    if train in paths:
        torchvision.parse_train_archive(to, paths[train])


MAT, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
SCENES = "scenes.tsv"  # image, tab, scene


def unpack_nyu(files: Mapping[str, Path], to: Path) -> None:
    """NYU Depth v2 from its MATLAB file, in mmseg's layout: the 795 training and 654 test images as
    PNG, and their depth in millimetres, 16 bits.

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


def unpack_nyu_frames(files: Mapping[str, Path], to: Path) -> None:
    """The 24,231 raw frames that the lists of BTS's ``nyu.zip`` name, called as by mmseg's
    converter: ``kitchen_0028b/rgb_00045.jpg`` becomes ``images/train/kitchen_0028b_00045.jpg``."""
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
