"""From archives as they are published to the layouts of ``probes.datasets``. An unpacker gets the
archives that are there, by
name, and fills a new folder: the dataset's own."""

from __future__ import annotations

import gzip
import io
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from PIL import Image

from backbones.cliptex.protocols import Progress
from common.errors import UserError
from probes.datasets.download.fetch import Megabytes

Files = Mapping[str, Path]  # name of an archive → where it is
Unpacker = Callable[[Files, Path, Progress], None]
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
)
LISTS = "ImageSets/Segmentation"


def members(archive: Path, progress: Progress, below: str = "") -> Iterator[tuple[str, IO[bytes]]]:
    """(path below the folder ``below`` of the archive, its bytes) of each file there, in the
    archive's order. Links are passed over, and what macOS adds to archives.

    Raises:
        UserError: it is no tar or zip, is damaged, holds a path that leads out of it, or nothing
            that is below ``below``.
    """
    prefix, found = f"{below}/" if below else "", False
    with whole(str(archive)), archive.open("rb") as raw:
        bar = Megabytes(progress, f"unpacking {archive.name}", archive.stat().st_size)
        for name, stream, done in _zip(raw) if zipfile.is_zipfile(archive) else _tar(raw):
            path = PurePosixPath(name.removeprefix("./"))
            if path.is_absolute() or ".." in path.parts:
                raise UserError(
                    f"{archive} holds the path {name}, which leads out of it; get it again from its"
                    " source"
                )
            if (
                str(path).startswith(prefix)
                and "__MACOSX" not in path.parts
                and not path.name.startswith("._")
            ):
                found = True
                yield str(path).removeprefix(prefix), stream
            bar.reach(done)
    if not found:
        raise UserError(
            f"{archive} has {f'no folder {below}' if below else 'no files'}; is it the right"
            " archive?"
        )


def _tar(raw: IO[bytes]) -> Iterator[tuple[str, IO[bytes], int]]:
    with tarfile.open(fileobj=raw) as opened:
        for member in opened:
            if member.isfile() and (stream := opened.extractfile(member)) is not None:
                yield member.name, stream, raw.tell()
        # what was compressed has its checksum behind the tar's end
        while opened.fileobj and opened.fileobj.read(1 << 20):
            pass


def _zip(raw: IO[bytes]) -> Iterator[tuple[str, IO[bytes], int]]:
    with zipfile.ZipFile(raw) as opened:
        done = 0
        for member in opened.infolist():
            done += member.compress_size
            if member.is_dir():
                continue
            try:
                stream = opened.open(member)
            except (
                RuntimeError
            ) as error:  # it is encrypted, or compressed in a way that Python does not know
                raise zipfile.BadZipFile(str(error)) from error
            with stream:
                yield member.filename, stream, done


@contextmanager
def whole(what: str) -> Iterator[None]:
    """Damage of archives as the user's business: it may be found when they are opened or when a
    file in them is read."""
    try:
        yield
    except (*DAMAGE, OSError) as error:
        if not isinstance(error, DAMAGE) and error.args != (
            "Invalid data stream",
        ):  # which is bz2's
            raise
        raise UserError(
            f"{what}: no complete tar or zip ({error}); remove it and get it again"
        ) from error


def write(to: Path, name: str, stream: IO[bytes]) -> None:
    """A file of an archive to ``to / name``."""
    path = to / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)


def plain(*below: str) -> Unpacker:
    """An unpacker of archives that hold the layout as it is, each below a folder of its own
    (default: in none)."""

    def unpack(files: Files, to: Path, progress: Progress) -> None:
        for number, archive in enumerate(files.values()):
            for name, stream in members(archive, progress, below[number] if below else ""):
                write(to, name, stream)

    return unpack


def voc(files: Files, to: Path, progress: Progress) -> None:
    """VOC 2012 and, from the Semantic Boundaries Dataset (Hariharan et al., ICCV 2011), the 10,582
    images of ``trainaug``: all that either has for training, without VOC's validation images."""
    for name, stream in members(
        files["VOCtrainval_11-May-2012.tar"], progress, "VOCdevkit/VOC2012"
    ):
        write(to, name, stream)
    train, val = (
        set((to / LISTS / f"{split}.txt").read_text().split()) for split in ("train", "val")
    )
    listed: set[str] = set()
    (to / "SegmentationClassAug").mkdir()
    for name, stream in members(files["benchmark.tgz"], progress, "benchmark_RELEASE/dataset"):
        stem = PurePosixPath(name).stem
        if name in ("train.txt", "val.txt"):
            listed |= set(stream.read().decode().split())
        elif name.startswith("cls/") and stem not in train | val:
            Image.fromarray(_boundaries(stream.read())).save(
                to / f"SegmentationClassAug/{stem}.png"
            )
    (to / LISTS / "trainaug.txt").write_text(
        "".join(f"{name}\n" for name in sorted((listed | train) - val))
    )


def _boundaries(data: bytes) -> np.ndarray:
    """(H, W) uint8 classes of a file of the Semantic Boundaries Dataset."""
    from scipy.io import loadmat

    return loadmat(io.BytesIO(data))["GTcls"][0]["Segmentation"][0].astype(np.uint8)


def flickr(name: str, files: Files, to: Path, progress: Progress) -> None:
    """Karpathy's captions of ``name``; the images, if they are there, all in ``images``."""
    for archive in files.values():
        for member, stream in members(archive, progress):
            path = PurePosixPath(member)
            if path.name == f"dataset_{name}.json":
                write(to, path.name, stream)
            elif path.suffix.lower() in (".jpg", ".jpeg"):
                write(to, f"images/{path.name}", stream)


def imagenet(files: Files, to: Path, progress: Progress) -> None:
    """ILSVRC 2012 as ``train/<wnid>`` and ``val/<wnid>``, of the archives that are there."""
    train, val, devkit = (
        f"ILSVRC2012_{name}" for name in ("img_train.tar", "img_val.tar", "devkit_t12.tar.gz")
    )
    if val in files:
        if devkit not in files:
            raise UserError(
                f"{val} does not say which image shows what; pass --archive {devkit} too"
            )
        wnids = _validation_wnids(files[devkit], progress)
        for name, stream in members(files[val], progress):
            number = int(
                PurePosixPath(name).stem.rpartition("_")[2]
            )  # ILSVRC2012_val_00000001.JPEG
            write(to, f"val/{wnids[number - 1]}/{name}", stream)
    if train in files:
        for name, stream in members(files[train], progress):
            with tarfile.open(fileobj=stream) as inner:
                for member in inner:
                    if member.isfile() and (image := inner.extractfile(member)) is not None:
                        write(
                            to,
                            f"train/{PurePosixPath(name).stem}/{PurePosixPath(member.name).name}",
                            image,
                        )


def _validation_wnids(devkit: Path, progress: Progress) -> list[str]:
    """WordNet id of each validation image, in the order of their numbers."""
    from scipy.io import loadmat

    content = {name.rpartition("/")[2]: stream.read() for name, stream in members(devkit, progress)}
    synsets = loadmat(io.BytesIO(content["meta.mat"]), squeeze_me=True)["synsets"]
    wnids = {int(each["ILSVRC2012_ID"]): str(each["WNID"]) for each in synsets}
    return [
        wnids[int(number)] for number in content["ILSVRC2012_validation_ground_truth.txt"].split()
    ]


def moved(files: Files, to: Path, progress: Progress) -> None:
    """Files that are the layout as they are (shards), moved: they are large, and lie on the same
    disk."""
    for name, file in files.items():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        file.replace(to / name)
