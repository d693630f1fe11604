"""What ``data get`` can bring, and from where.

A checksum stands here only where it is published and widely used: torchvision has the MD5s of VOC,
SBD and ImageNet, GluonCV the SHA-1s of COCO and ADE20K, several loaders the same MD5 of NYU's file,
Hugging Face the SHA-256 of each shard. For the others the SHA-256 that was found is printed.
"""

from __future__ import annotations

import json
import os
import re
import urllib.error
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

from common.errors import UserError, first_line, nearest
from probes.datasets.download import archives, nyu
from probes.datasets.download.archives import Unpacker
from probes.datasets.download.fetch import name_of, open_url

COCO = "http://images.cocodataset.org"
KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
HORATIO = "http://horatio.cs.nyu.edu/mit/silberman"
IMAGENET = (
    "log in at https://image-net.org/download-images.php, accept its terms, and get it under ILSVRC"
    " 2012"
)
WEBDATASETS = (
    "clip-benchmark/{}",
    "djghosh/{}_test",
)  # CLIP_benchmark's repositories and DataComp's


@dataclass(frozen=True)
class Archive:
    """A file to fetch.

    Attributes:
        url: where it is, or of one that only a person may fetch its name.
        size: in bytes, about.
        checksum: ``md5:…``, ``sha1:…`` or ``sha256:…``; '' where none is known for certain.
        by_hand: what a person has to do for it; then it is taken from ``--archive``, and may be
            left out.
        path: its name among the entry's files, where that is not the URL's.
    """

    url: str
    size: int
    checksum: str = ""
    by_hand: str = ""
    path: str = ""

    @property
    def name(self) -> str:
        return self.path or name_of(self.url)


@dataclass(frozen=True)
class Entry:
    """Something that ``data get`` brings.

    Attributes:
        name: what users call it; about: one line.
        folder: where it is put, below ``--to``.
        datasets: the datasets that it makes.
        archives: in the order in which they are unpacked.
        unpack: makes the folder of them.
        unpacked: bytes that this takes, about; 0 where archives are moved.
        makes: what of the folder must not be there before, since it would be mixed; other things
            are added to what is there.
        needs: a Python package that ``unpack`` imports, and the extra that brings it.
    """

    name: str
    about: str
    folder: str
    datasets: tuple[str, ...]
    archives: Sequence[Archive]
    unpack: Unpacker
    unpacked: int
    makes: tuple[str, ...] = ()
    needs: tuple[str, str] | None = None

    def must_be_installed(self) -> None:
        """Raise ``UserError`` when what ``unpack`` needs is not."""
        if self.needs and not find_spec(self.needs[0]):
            raise UserError(
                f"{self.name} needs {self.needs[0]}: pip install"
                f" 'cliptex-benchmark[{self.needs[1]}]'"
            )


_ENTRIES = (
    Entry(
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
        archives.voc,
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
    Entry(
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
        archives.plain("ADEChallengeData2016"),
        1_100_000_000,
        ("images", "annotations"),
    ),
    Entry(
        "coco",
        "COCO 2017 boxes and masks",
        "coco",
        ("coco",),
        (
            Archive(
                f"{COCO}/zips/train2017.zip",
                19_336_861_798,
                "sha1:10ad623668ab00c62c096f0ed636d6aff41faca5",
            ),
            Archive(
                f"{COCO}/zips/val2017.zip",
                815_585_330,
                "sha1:4950dc9d00dbe1c933ee0170f5797584351d2a41",
            ),
            Archive(
                f"{COCO}/annotations/annotations_trainval2017.zip",
                252_907_541,
                "sha1:8551ee4bb5860311e79dace7e79cb91e432e78b3",
            ),
        ),
        archives.plain(),
        21_000_000_000,
        ("train2017", "val2017", "annotations"),
    ),
    Entry(
        "nyu",
        "NYU Depth v2, the labelled 795 + 654 images with depth (no normals: bring nyu/normals)",
        "nyu",
        ("nyu-depth",),
        (
            Archive(
                f"{HORATIO}/nyu_depth_v2/{nyu.MAT}",
                2_972_037_809,
                "md5:520609c519fba3ba5ac58c8fefcc3530",
            ),
            Archive(f"{HORATIO}/indoor_seg_sup/{nyu.SPLITS}", 3_000),
        ),
        nyu.labelled,
        1_200_000_000,
        ("images", "annotations"),
        ("h5py", "nyu"),
    ),
    Entry(
        "nyu-24k",
        "NYU Depth v2 with the 24,231 raw frames that most published depth heads are trained on",
        "nyu",
        ("nyu-depth",),
        (
            Archive(
                "nyu.zip",
                4_000_000_000,
                by_hand=(
                    "get it from"
                    " https://drive.google.com/file/d/1wC-io-14RCIL4XTUrQLk6lBqU2AexLVp/view (Lee"
                    " et al. 2019)"
                ),
            ),
        ),
        nyu.raw_frames,
        4_200_000_000,
        ("images", "annotations"),
    ),
    Entry(
        "flickr30k",
        "Flickr30k: Karpathy's captions and splits, and the images from --archive",
        "flickr30k",
        ("flickr30k",),
        (
            Archive(KARPATHY, 36_745_453),
            Archive(
                "flickr30k-images.tar.gz",
                4_400_000_000,
                by_hand=(
                    "fill in the form at https://shannon.cs.illinois.edu/DenotationGraph (Flickr's"
                    " terms forbid copies)"
                ),
            ),
        ),
        partial(archives.flickr, "flickr30k"),
        4_600_000_000,
    ),
    Entry(
        "imagenet",
        "ImageNet-1k (ILSVRC 2012), from --archive; without the training images zero-shot runs",
        "imagenet",
        ("imagenet",),
        (
            Archive(
                "ILSVRC2012_devkit_t12.tar.gz",
                2_568_145,
                "md5:fa75699e90414af021442c21a62c3abf",
                IMAGENET,
            ),
            Archive(
                "ILSVRC2012_img_val.tar",
                6_744_924_160,
                "md5:29b22e2961454d5413ddabcf34fc5622",
                IMAGENET,
            ),
            Archive(
                "ILSVRC2012_img_train.tar",
                147_897_477_120,
                "md5:1d675b47d978889d74fa0da5fadfb00e",
                IMAGENET,
            ),
        ),
        archives.imagenet,
        155_000_000_000,
    ),
)
ENTRIES = {entry.name: entry for entry in _ENTRIES}


def entry(name: str, train: bool = False) -> Entry:
    """What ``name`` stands for.

    Args:
        train: also the training shards of a ``wds_NAME``.
    Raises:
        UserError: nothing is called so, or Hugging Face does not answer.
    """
    if name in ENTRIES:
        return ENTRIES[name]
    if name.startswith("wds_"):
        return webdataset(name, train)
    raise UserError(
        f"no dataset {name!r} can be got; {nearest(name, ENTRIES)} (or wds_NAME, a webdataset"
        " folder)"
    )


def webdataset(name: str, train: bool = False) -> Entry:
    """The folder ``wds_NAME`` as Hugging Face has it, with the SHA-256 of each shard.

    Raises:
        UserError: there is none, or Hugging Face does not answer.
    """
    name = name.replace("/", "-")
    for pattern in WEBDATASETS:
        repository = pattern.format(name.removesuffix("_test"))
        if files := _tree(repository):
            break
    else:
        raise UserError(
            f"Hugging Face has no {' or '.join(pattern.format(name) for pattern in WEBDATASETS)};"
            " see https://huggingface.co/clip-benchmark for the names"
        )
    wanted = [
        Archive(
            f"{_hub()}/datasets/{repository}/resolve/main/{each['path']}",
            int(each.get("size", 0)),
            f"sha256:{each['lfs']['oid']}" if each.get("lfs") else "",
            path=each["path"],
        )
        for each in files
        if each["type"] == "file"
        and (train or not each["path"].startswith("train/"))
        and each["path"][0] != "."
    ]
    return Entry(name, f"webdataset folder of {repository}", name, (), wanted, archives.moved, 0)


def _hub() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _tree(repository: str) -> list[dict]:
    """The files of a dataset's repository; none where there is no such repository."""
    url, found = f"{_hub()}/api/datasets/{repository}/tree/main?recursive=true", list[dict]()
    while url:
        try:
            with open_url(url) as answer:
                found += json.load(answer)
                following = re.search(r'<([^>]+)>;\s*rel="next"', answer.headers.get("Link", ""))
        except urllib.error.HTTPError as error:
            if error.code in (
                401,
                404,
            ):  # what Hugging Face says of repositories that are not there
                return []
            raise UserError(
                f"{url} cannot be read: {error.code} {error.reason}; try again later"
            ) from error
        except OSError as error:
            raise UserError(
                f"{url} cannot be read ({first_line(error)}); is there a network?"
            ) from error
        url = following[1] if following else ""
    return found
