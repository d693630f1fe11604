"""Convert archives as they are published to the layouts of ``probes.datasets``. An unpacker gets
the archives by name and fills a new folder."""

from __future__ import annotations

import lzma
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

Unpacker = Callable[[Mapping[str, Path], Path], None]  # (name of an archive → its path, folder)
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


def unchanged(below: str, files: Mapping[str, Path], to: Path) -> None:
    """Archives that hold the layout in their folder ``below``."""
    for archive in files.values():
        with extracted(archive, to, below) as source:
            move_children(source, to)


def voc(files: Mapping[str, Path], to: Path) -> None:
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


def flickr(name: str, files: Mapping[str, Path], to: Path) -> None:
    """Karpathy's captions of ``name``, and the images, if any, all in ``images``."""
    for archive in files.values():
        with extracted(archive, to) as source:
            for path in source.rglob("*"):
                if path.name == f"dataset_{name}.json":
                    path.replace(to / path.name)
                elif path.suffix.lower() in (".jpg", ".jpeg") and path.name[0] != ".":
                    (to / "images").mkdir(exist_ok=True)
                    path.replace(to / "images" / path.name)


def imagenet(files: Mapping[str, Path], to: Path) -> None:
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
