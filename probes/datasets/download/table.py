"""The datasets that ``data get`` downloads, and their sources.

Checksums are those that are published and widely used: torchvision has the MD5s of VOC, SBD and
ImageNet, GluonCV the SHA-1s of COCO and ADE20K, several loaders the same MD5 of NYU's file. For the
others the SHA-256 of the file is printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

from cliptex_common.errors import UserError, suggest
from probes.datasets.download import archives, nyu
from probes.datasets.download.archives import Unpacker
from probes.registry import DATASETS

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
        checksum: ``md5:…``, ``sha1:…`` or ``sha256:…``; empty if none is published.
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
        partial(archives.unchanged, "ADEChallengeData2016"),
        1_100_000_000,
        ("images", "annotations"),
    ),
    Download(
        "coco",
        "COCO 2017 boxes and masks",
        "coco",
        ("coco",),
        COCO,
        partial(archives.unchanged, ""),
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
                f"{HORATIO}/nyu_depth_v2/{nyu.MAT}",
                2_972_037_809,
                "md5:520609c519fba3ba5ac58c8fefcc3530",
            ),
            Archive(f"{HORATIO}/indoor_seg_sup/{nyu.SPLITS}", 3_000),
        ),
        nyu.labelled,
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
        nyu.raw_frames,
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
        partial(archives.unchanged, "DAVIS"),
        850_000_000,
        ("JPEGImages", "Annotations", "ImageSets"),
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
        partial(archives.flickr, "flickr30k"),
        4_600_000_000,
    ),
    Download(
        "imagenet",
        "ImageNet-1k (ILSVRC 2012), from --archive; without the training images zero-shot runs",
        "imagenet",
        ("imagenet",),
        IMAGENET,
        archives.imagenet,
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
