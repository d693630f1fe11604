"""``data get``: datasets from where they are published, downloaded, verified and unpacked in the
layouts that ``data check`` expects.

In this order: downloads by HTTP, webdataset folders from the Hugging Face hub, the table of what
can be downloaded (``ENTRIES``), and ``get``, which downloads, verifies and unpacks."""

from __future__ import annotations

import filecmp
import hashlib
import http.client
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cliptex_common.errors import DISK_FULL, UserError, first_line, suggest
from cliptex_common.files import lock_path, locked, sha256_file
from cliptex_common.progress import Progress
from probes.datasets.unpack import (
    MAT,
    SPLITS,
    Unpacker,
    unpack_flickr,
    unpack_imagenet,
    unpack_layout,
    unpack_merged,
    unpack_nyu,
    unpack_nyu_frames,
    unpack_voc,
)
from probes.features.files import free_bytes
from probes.registry import DATASETS

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

BLOCK = 1 << 20  # bytes at a time
MB = 1e6
TIMEOUT = 60.0  # seconds without a byte
WAITS = (1.0, 5.0, 20.0)  # seconds before the next attempts; from the start after any progress
TRANSIENT = (408, 425, 429)  # and 5xx


def download(url: str, path: Path, progress: Progress) -> None:
    """Download ``url`` to ``path``; until it is complete, what has come is in ``path.part``, from
    which an interrupted download resumes.

    Raises:
        UserError: there is no such file, or the server does not answer after four attempts.
    """
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    waits = iter(WAITS)
    while True:
        size = file_size(part)
        try:
            _receive(url, part, progress)
            part.replace(path)
            return
        except urllib.error.HTTPError as error:
            reason = f"{error.code} {error.reason}"
            if error.code < 500 and error.code not in TRANSIENT:
                raise UserError(
                    f"cannot download {url}: {reason}; get {path.name} by other means and pass"
                    " --archive PATH"
                ) from error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            reason = str(error) or type(error).__name__
        if file_size(part) > size:
            waits = iter(WAITS)
        if (wait := next(waits, None)) is None:
            raise UserError(
                f"{url} does not answer ({reason}); run the command again to resume after"
                f" {file_size(part) / MB:.0f} MB"
            )
        time.sleep(wait)


def _receive(url: str, part: Path, progress: Progress) -> None:
    """Append what is missing in one request. A server without ranges sends all of it again."""
    done = file_size(part)
    headers = {"User-Agent": "cliptex-benchmark"}
    if done:
        headers["Range"] = f"bytes={done}-"
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT
        )
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing comes after what is there
            return
        raise
    with response:
        if response.status != 206:
            done = 0
        total = done + int(response.headers.get("Content-Length", 0))
        with part.open("ab" if done else "wb") as file:
            for block in blocks(response.read, part.stem, done, total, progress):
                file.write(block)
    if file_size(part) < total:
        raise ConnectionError("the connection ended early")


def file_size(path: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0


def blocks(
    read: Callable[[int], bytes], about: str, done: int, total: int, progress: Progress
) -> Iterator[bytes]:
    """What is left to read of ``total`` bytes, with a bar in MB that begins at ``done``."""
    progress.start(f"{about}, MB", max(1, round(total / MB)))
    shown = 0
    while True:
        if steps := int(done / MB) - shown:
            progress.advance(steps)
            shown += steps
        if not (block := read(BLOCK)):
            return
        yield block
        done += len(block)


def require_space(folder: Path, size: int, about: str) -> None:
    """Raise ``UserError`` if ``size`` bytes do not fit on the disk of ``folder``."""
    if (free := free_bytes(folder.absolute())) < size:
        raise UserError(
            f"{about} needs {size / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free; "
            "free some space or choose another folder with --to"
        )


def checksum(path: Path, algorithm: str, progress: Progress) -> str:
    """Hex digest of a file by ``sha256``, ``sha1`` or ``md5``."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        for block in blocks(file.read, f"checking {path.name}", 0, file_size(path), progress):
            digest.update(block)
    return digest.hexdigest()


REPOSITORIES = ("clip-benchmark/{}", "djghosh/{}_test")  # CLIP_benchmark's and DataComp's


def hub_files(name: str, train: bool = False) -> tuple[str, str, list[RepoSibling]]:
    """Repository, commit and files of the folder ``wds_NAME``.

    Args:
        train: with its training shards.
    Raises:
        UserError: there is no such repository, or the hub does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    from backbones.adapters.common import hub_reachable

    if not hub_reachable():
        raise UserError(f"cannot download {name}: no network to the Hugging Face hub")
    names = [pattern.format(name.removesuffix("_test")) for pattern in REPOSITORIES]
    for repository in names:
        try:
            info = HfApi().dataset_info(repository, files_metadata=True)
        except RepositoryNotFoundError:
            continue
        except (HfHubHTTPError, OSError) as error:
            raise UserError(f"cannot read {repository} on the hub: {first_line(error)}") from error
        files = [
            file
            for file in info.siblings or []
            if file.rfilename[0] != "." and (train or not file.rfilename.startswith("train/"))
        ]
        return repository, info.sha or "main", files
    raise UserError(
        f"the hub has no dataset {' or '.join(names)}; see https://huggingface.co/clip-benchmark"
    )


def get_webdataset(name: str, to: Path, train: bool = False) -> Path:
    """Download ``wds_NAME`` into ``to`` and verify the sha256 of its shards; returns its folder.
    The hub resumes downloads itself.

    Raises:
        UserError: see ``hub_files``; or a shard is damaged, and is deleted.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    folder = to / name
    repository, commit, files = hub_files(name, train)
    try:
        snapshot_download(
            repository,
            repo_type="dataset",
            revision=commit,
            local_dir=folder,
            allow_patterns=[file.rfilename for file in files],
        )
    except (HfHubHTTPError, OSError) as error:
        raise UserError(
            f"cannot download {repository} ({first_line(error)}); run the command again to resume"
        ) from error
    for file in files:
        path = folder / file.rfilename
        if file.lfs and sha256_file(path) != file.lfs.sha256:
            path.unlink()
            raise UserError(f"{path} was damaged and is deleted; run the command again")
    return folder


KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
HORATIO = "http://horatio.cs.nyu.edu/mit/silberman"
LOGIN = (
    "log in at https://image-net.org/download-images.php, accept its terms, and get it under ILSVRC"
    " 2012"
)


@dataclass(frozen=True)
class Archive:
    """A file to download.

    Attributes:
        url: its address; of a manual one its name.
        size: in bytes, about.
        checksum: ``md5:…``, ``sha1:…`` or ``sha256:…``, published and widely used: torchvision has
            those of VOC, SBD and ImageNet, GluonCV those of COCO and ADE20K, several loaders that
            of NYU's file. Empty if there is none; then the sha256 of the file is printed.
        manual: how a person gets it, if it cannot be downloaded. It is passed with ``--archive``,
            and may be left out.
    """

    url: str
    size: int
    checksum: str = ""
    manual: str = ""

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Download:
    """A dataset that ``data get`` downloads.

    Attributes:
        name: its name on the command line.
        about: one line.
        folder: where it is put, below ``--to``.
        datasets: the datasets that it holds.
        archives: in the order in which they are unpacked.
        unpack: fills the folder.
        unpacked: bytes of the unpacked files, about.
        creates: what must not exist in the folder before; other files may.
        package: a Python package that ``unpack`` imports; the extra called ``name`` installs it.
    """

    name: str
    about: str
    folder: str
    datasets: tuple[str, ...]
    archives: Sequence[Archive]
    unpack: Unpacker
    unpacked: int
    creates: tuple[str, ...] = ()
    package: str = ""

    def require_package(self) -> None:
        """Raise ``UserError`` if the package is not installed."""
        if self.package and not find_spec(self.package):
            raise UserError(f"{self.name} needs {self.package}: pip install -e '.[{self.name}]'")


COCO = tuple(
    Archive(f"http://images.cocodataset.org/{path}.zip", size, f"sha1:{sha1}")
    for path, size, sha1 in (
        ("zips/train2017", 19_336_861_798, "10ad623668ab00c62c096f0ed636d6aff41faca5"),
        ("zips/val2017", 815_585_330, "4950dc9d00dbe1c933ee0170f5797584351d2a41"),
        (
            "annotations/annotations_trainval2017",
            252_907_541,
            "8551ee4bb5860311e79dace7e79cb91e432e78b3",
        ),
    )
)
IMAGENET = tuple(
    Archive(name, size, f"md5:{md5}", LOGIN)
    for name, size, md5 in (
        ("ILSVRC2012_devkit_t12.tar.gz", 2_568_145, "fa75699e90414af021442c21a62c3abf"),
        ("ILSVRC2012_img_val.tar", 6_744_924_160, "29b22e2961454d5413ddabcf34fc5622"),
        ("ILSVRC2012_img_train.tar", 147_897_477_120, "1d675b47d978889d74fa0da5fadfb00e"),
    )
)
_ENTRIES = (
    Download(
        "voc",
        "PASCAL VOC 2012 with the augmented train list (SBD)",
        "VOCdevkit/VOC2012",
        ("voc",),
        (
            Archive(
                "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
                1_999_639_040,
                "md5:6cd6e144f989b92b3379bac3b3de84fd",
            ),
            Archive(
                "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
                1_419_539_633,
                "md5:82b4d87ceb2ed10f6038a1cba92111cb",
            ),
        ),
        unpack_voc,
        2_100_000_000,
        (
            "JPEGImages",
            "SegmentationClass",
            "SegmentationClassAug",
            "ImageSets",
            "Annotations",
            "SegmentationObject",
        ),
    ),
    Download(
        "voc2007-labels",
        "PASCAL VOC 2007, trainval and test",
        "VOCdevkit/VOC2007",
        ("voc2007-labels",),
        tuple(
            Archive(
                f"https://thor.robots.ox.ac.uk/pascal/VOC/voc2007/VOC{part}_06-Nov-2007.tar",
                size,
                f"md5:{md5}",
            )
            for part, size, md5 in (
                ("trainval", 460_032_000, "c52e279531787c972589f7e41ab4ae64"),
                ("test", 451_020_800, "b6e924de25625d8de591ea690078ad9f"),
            )
        ),
        partial(unpack_merged, "VOCdevkit/VOC2007"),
        920_000_000,
        (
            "JPEGImages",
            "ImageSets",
            "Annotations",
            "SegmentationClass",
            "SegmentationObject",
        ),
    ),
    Download(
        "ade20k",
        "ADE20K scene parsing, 150 classes",
        "ade/ADEChallengeData2016",
        ("ade20k",),
        (
            Archive(
                "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
                967_382_037,
                "sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
            ),
        ),
        partial(unpack_layout, "ADEChallengeData2016"),
        1_100_000_000,
        ("images", "annotations"),
    ),
    Download(
        "coco",
        "COCO 2017 boxes and masks",
        "coco",
        ("coco",),
        COCO,
        partial(unpack_layout, ""),
        21_000_000_000,
        ("train2017", "val2017", "annotations"),
    ),
    Download(
        "nyu",
        "NYU Depth v2, the labelled 795 + 654 images with depth (no normals: bring nyu/normals)",
        "nyu",
        ("nyu-depth",),
        (
            Archive(
                f"{HORATIO}/nyu_depth_v2/{MAT}",
                2_972_037_809,
                "md5:520609c519fba3ba5ac58c8fefcc3530",
            ),
            Archive(f"{HORATIO}/indoor_seg_sup/{SPLITS}", 3_000),
        ),
        unpack_nyu,
        1_200_000_000,
        ("images", "annotations"),
        "h5py",
    ),
    Download(
        "nyu-24k",
        "NYU Depth v2 with the 24,231 raw frames that most published depth heads are trained on",
        "nyu",
        ("nyu-depth",),
        (
            Archive(
                "nyu.zip",
                4_000_000_000,
                manual=(
                    "get it from"
                    " https://drive.google.com/file/d/1wC-io-14RCIL4XTUrQLk6lBqU2AexLVp/view (Lee"
                    " et al. 2019)"
                ),
            ),
        ),
        unpack_nyu_frames,
        4_200_000_000,
        ("images", "annotations"),
    ),
    Download(
        "davis",
        "DAVIS 2017, videos with masks of objects at 480p (train and val)",
        "DAVIS",
        ("davis",),
        (
            Archive(
                "https://data.vision.ee.ethz.ch/csergi/share/davis/DAVIS-2017-trainval-480p.zip",
                830_000_000,
            ),
        ),
        partial(unpack_layout, "DAVIS"),
        850_000_000,
        ("JPEGImages", "Annotations", "ImageSets"),
    ),
    Download(
        "nights",
        "NIGHTS, triplets of images with people's choices (58 GB)",
        "nights",
        ("nights",),
        (Archive("https://data.csail.mit.edu/nights/nights.zip", 58_000_000_000),),
        partial(unpack_layout, "nights"),
        60_000_000_000,
        ("ref", "distort"),
    ),
    Download(
        "flickr30k",
        "Flickr30k: Karpathy's captions and splits, and the images from --archive",
        "flickr30k",
        ("flickr30k",),
        (
            Archive(KARPATHY, 36_745_453),
            Archive(
                "flickr30k-images.tar.gz",
                4_400_000_000,
                manual=(
                    "fill in the form at https://shannon.cs.illinois.edu/DenotationGraph (Flickr's"
                    " terms forbid copies)"
                ),
            ),
        ),
        partial(unpack_flickr, "flickr30k"),
        4_600_000_000,
    ),
    Download(
        "imagenet",
        "ImageNet-1k (ILSVRC 2012), from --archive; without the training images zero-shot runs",
        "imagenet",
        ("imagenet",),
        IMAGENET,
        unpack_imagenet,
        155_000_000_000,
    ),
)
ENTRIES = {entry.name: entry for entry in _ENTRIES}


def find_entry(name: str) -> Download:
    """The entry called ``name``. Raises ``UserError`` naming the nearest if there is none."""
    if name not in ENTRIES:
        if spec := DATASETS.get(name):
            if spec.folder.startswith("wds_"):
                raise UserError(f"{name} is downloaded as {spec.folder}: data get {spec.folder}")
            raise UserError(
                f"{name} is not downloaded automatically; put it into the folder {spec.folder} of"
                f" --data-root: {spec.about}"
            )
        raise UserError(
            f"cannot download dataset {name!r}; {suggest(name, ENTRIES)} (or wds_NAME, a webdataset"
            " folder)"
        )
    return ENTRIES[name]


DOWNLOADS = ".downloads"  # below --to: archives until they are unpacked


def get(
    entry: Download,
    to: Path,
    archives: Sequence[Path],
    progress: Progress,
    log: Callable[[str], None],
) -> Path:
    """Get ``entry`` into its folder below ``to``, completely or not at all; downloaded archives are
    kept until then.

    Args:
        archives: that are on this disk already (``--archive``); they are not changed.
        log: takes lines for the user.
    Returns:
        The dataset's folder.
    Raises:
        UserError: an archive cannot be downloaded, has another checksum or is no archive; the disk
            is too small; files are in the way.
    """
    entry.require_package()
    downloads, target = to / DOWNLOADS / entry.name, to / entry.folder
    with locked(
        lock_path("get", str(downloads.absolute())),
        lambda: log(f"waiting for the process that downloads {entry.name}"),
    ):
        require_absent(target, entry.creates)
        files = collect(entry, downloads, match_archives(entry, archives), progress, log)
        staging = downloads / "unpacked"
        shutil.rmtree(staging, ignore_errors=True)
        try:
            staging.mkdir(parents=True)
            progress.start(f"unpacking {entry.name}", 1)
            entry.unpack(files, staging)
            progress.advance()
            if not any(staging.iterdir()):
                raise UserError(f"{', '.join(files)} alone is not enough; pass the other archives")
            move_into(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(downloads, ignore_errors=True)
        with suppress(OSError):  # other downloads are in it
            downloads.parent.rmdir()
    return target


def collect(
    entry: Download,
    downloads: Path,
    local: dict[str, Path],
    progress: Progress,
    log: Callable[[str], None],
) -> dict[str, Path]:
    """Name → path of the verified archives, in the entry's order; those not in ``local`` are
    downloaded. Manual ones may be missing, but not all."""
    archives = []
    for archive in entry.archives:
        if archive.manual and archive.name not in local:
            log(f"without {archive.name}: {archive.manual}, then pass --archive {archive.name}")
        else:
            archives.append(archive)
    if not archives:
        raise UserError(f"{entry.name} needs manual downloads; see above, then pass --archive PATH")
    paths = {each.name: local.get(each.name, downloads / each.name) for each in archives}
    pending = [archive for archive in archives if not paths[archive.name].is_file()]
    size = sum(archive.size for archive in pending)
    size -= sum(file_size(part) for part in downloads.glob("*.part"))
    share = sum(each.size for each in archives) / max(1, sum(each.size for each in entry.archives))
    require_space(downloads, size + int(entry.unpacked * share), entry.name)
    for archive in archives:
        path = paths[archive.name]
        if archive in pending:
            download(archive.url, path, progress)
        check_archive(archive, path, progress, log, delete=archive.name not in local)
    return paths


def match_archives(entry: Download, paths: Sequence[Path]) -> dict[str, Path]:
    """Archive name → given file: by its name; a single file of another name is the one archive that
    is missing. Raises ``UserError`` for a file that matches none or does not exist."""
    names = [archive.name for archive in entry.archives]
    local = {path.name: path for path in paths if path.name in names}
    unmatched = [path for path in paths if path.name not in names]
    missing = [archive for archive in entry.archives if archive.name not in local]
    for candidates in ([archive for archive in missing if archive.manual], missing):
        if len(unmatched) == len(candidates) == 1:
            local[candidates[0].name] = unmatched.pop()
    if unmatched:
        raise UserError(
            f"--archive {unmatched[0]}: {entry.name} is made of {', '.join(names)}; rename it to"
            " one of these"
        )
    for path in local.values():
        if not path.is_file():
            raise UserError(f"--archive {path}: no such file")
    return local


def check_archive(
    archive: Archive, path: Path, progress: Progress, log: Callable[[str], None], delete: bool
) -> None:
    """Compare an archive with its published checksum, or log its sha256 if there is none.

    Raises:
        UserError: it is another file, which is deleted if ``delete``.
    """
    algorithm, _, published = archive.checksum.partition(":")
    digest = checksum(path, algorithm or "sha256", progress)
    if not algorithm:
        log(f"{archive.name}: sha256 {digest} (its source publishes no checksum)")
    elif digest == published:
        log(f"{archive.name}: {algorithm} {digest} as published")
    else:
        if delete:
            path.unlink()
        action = "it is deleted; run the command again" if delete else "get it again"
        raise UserError(
            f"{path} is damaged or another version: {algorithm} {digest} instead of {published};"
            f" {action}"
        )


def require_absent(target: Path, names: Iterable[str]) -> None:
    """Raise ``UserError`` if one of these exists in the folder ``target``."""
    if existing := next((target / name for name in names if (target / name).exists()), None):
        raise UserError(
            f"{existing} exists; move it away, or choose another --to (downloaded archives are"
            " kept)"
        )


def move_into(staging: Path, target: Path) -> None:
    """Move the unpacked files to the dataset's folder, by one rename if it does not exist yet.

    Raises:
        UserError: another file or folder of the same name exists; nothing is moved then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        staging.replace(target)
        return
    names = sorted(path.name for path in staging.iterdir())
    equal, _, _ = filecmp.cmpfiles(staging, target, names, shallow=False)
    new = [name for name in names if name not in equal]
    require_absent(target, new)
    for name in new:
        (staging / name).replace(target / name)
