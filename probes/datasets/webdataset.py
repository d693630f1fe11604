"""Datasets in the webdataset layout of CLIP_benchmark and DataComp: ``wds_NAME`` under
``--data-root`` is dataset NAME.

::

    wds_NAME/classnames.txt                        one class a line, in the order of the labels
    wds_NAME/zeroshot_classification_templates.txt one prompt a line, ``{c}`` stands for the class
    wds_NAME/dataset_type.txt                      ``retrieval``: captions in place of classes
    wds_NAME/test/nshards.txt, 0.tar, 1.tar …      KEY.webp (png, jpg) with KEY.cls, KEY.txt, and
                                                   KEY.npy (its groups)
    wds_NAME/train/…                               likewise, for probes that train

A ``/`` in a name is ``-`` in the folder, and DataComp's own folders end in ``_test``. The 38 tasks,
their sizes and main metrics are those of DataComp's ``tasklist.yml``; OpenCLIP's table has the
same. Any other ``wds_NAME`` is a dataset too, see ``register_folders``.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cliptex_common.errors import UserError, report_malformed
from probes.datasets.base import (
    DatasetSpec,
    Lister,
    Sample,
    Split,
    read_annotations,
    read_lines,
    require_file,
    require_folder,
)
from probes.datasets.ground_truth import Associations, Captions, Question
from probes.datasets.shifts import as_shift
from probes.features.files import IMAGE_MEMBERS, members, read_bytes
from probes.registry import DATASETS, register_dataset

FOLDERS: Mapping[Split, str] = {"train": "train", "val": "test"}
PER_CLASS = {"main_metric": "mean_per_class_recall"}
RETRIEVAL: dict[str, Any] = {"kind": "image-text", "main_metric": "mean_R@1"}
TYPES: Mapping[str, dict[str, Any]] = {"classification": {}, "retrieval": RETRIEVAL}
WORST_TOP1: dict[str, Any] = {"main_metric": "worst_group_top1", "group": 0}
WORST_TOP5: dict[str, Any] = {"main_metric": "worst_group_top5", "group": 0}


def tars(root: Path, split: Split) -> list[str]:
    """The shards of a split, relative to ``root``, in their order; all that ``nshards.txt`` counts
    must be there."""
    split_folder = require_folder(root, FOLDERS[split])
    if (count := split_folder / "nshards.txt").is_file():
        (line,) = read_lines(count)[:1]
        with report_malformed(f"{count} must hold the number of shards"):
            names = [f"{number}.tar" for number in range(int(line))]
        if missing := [name for name in names if not (split_folder / name).is_file()]:
            raise UserError(
                f"{len(missing)} of {line} shards are missing in {split_folder}, such as"
                f" {missing[0]}; get them"
            )
    else:
        names = sorted(
            (path.name for path in split_folder.glob("*.tar")), key=lambda name: (len(name), name)
        )
    if not names:
        raise UserError(f"{split_folder} has no shards (0.tar, 1.tar …)")
    return [f"{FOLDERS[split]}/{name}" for name in names]


def list_samples(root: Path, split: Split, column: int | None = None) -> list[Sample]:
    """Images with what stands beside them: captions (KEY.txt) or class (KEY.cls), and with a
    ``column``, its number in KEY.npy as their group.

    Raises:
        UserError: a shard is missing or damaged, an image has no label, or the labels are not what
            the type says.
    """
    root, samples = Path(root), []
    captions = type_of(root) == "retrieval"
    for tar in tars(root, split):
        names = members(root / tar)
        for name in names:
            key, _, suffix = name.rpartition(".")
            if suffix not in IMAGE_MEMBERS:
                continue
            label = f"{key}.{'txt' if captions else 'cls'}"
            if label not in names:
                raise UserError(
                    f"{root / tar}: {name} has no {label}; dataset_type.txt says what {root.name}"
                    " is (classification where there is none, or retrieval)"
                )
            kind = "text in UTF-8" if captions else "class number"
            with report_malformed(f"{root / tar}: {label} holds no {kind}"):
                text = read_bytes(root / tar / label).decode()
                target = Captions(text.splitlines()) if captions else int(text)
            group = None if column is None else read_group(root / tar / f"{key}.npy", column)
            samples.append(Sample(f"{tar}/{name}", target, group))
    return samples


def read_group(path: Path, column: int) -> int:
    """The number in a column of an image's groups. Raises ``UserError`` if there is none."""
    try:
        values = np.load(io.BytesIO(read_bytes(path)), allow_pickle=False).reshape(-1)
        return int(values[column])
    except (OSError, ValueError, IndexError) as error:
        raise UserError(
            f"{path} must hold the groups of its image, {column + 1} or more numbers"
        ) from error


def list_candidates(root: Path, split: Split) -> list[Sample]:
    """WinoGAViL (Bitton et al. 2022): images in ``test/*.tar``, questions in ``instances.json``, a
    list of {"cue", "candidates", "associations"} with the images' names (their keys in the
    tars)."""
    path = require_file(Path(root), "instances.json")
    images = {
        name.rpartition(".")[0]: f"{tar}/{name}"
        for tar in tars(Path(root), split)
        for name in members(Path(root) / tar)
        if name.rpartition(".")[2] in IMAGE_MEMBERS
    }
    questions: dict[str, list[Question]] = {}
    with report_malformed(f"{path} must list cue, candidates and associations of each instance"):
        for number, instance in enumerate(read_annotations(path)):
            right = set(map(str, instance["associations"]))
            for name in map(str, instance["candidates"]):
                question = Question(number, str(instance["cue"]), name in right)
                questions.setdefault(name, []).append(question)
    if unknown := next((name for name in questions if name not in images), None):
        raise UserError(f"{path} names the image {unknown!r}, which no shard in {root} holds")
    return [Sample(images[name], Associations(each)) for name, each in questions.items()]


def type_of(root: Path) -> str:
    """What the folder says it is. Raises ``UserError`` for a type that cannot be scored here."""
    path = root / "dataset_type.txt"
    text = read_lines(path)[0].lower() if path.is_file() else "classification"
    if text not in TYPES:
        raise UserError(f"{path} says {text!r}; only {' and '.join(TYPES)} are known here")
    return text


def classes(root: Path) -> tuple[str, ...]:
    return tuple(read_lines(require_file(root, "classnames.txt")))


def adapt(spec: DatasetSpec, root: Path) -> DatasetSpec:
    """With the copy's own prompts, which are part of its identity."""
    path = root / "zeroshot_classification_templates.txt"
    if not path.is_file():
        return spec
    templates = tuple(read_lines(path))
    if wrong := next((line for line in templates if "{c}" not in line), None):
        raise UserError(f"{path}: {wrong!r} has no place {{c}} for the class")
    return replace(spec, extra={**spec.extra, "templates": templates})


def webdataset(
    name: str,
    title: str,
    size: int = 0,
    *,
    kind: str = "classification",
    also: str = "",
    **extra: Any,
) -> DatasetSpec:
    """The dataset in ``wds_NAME``.

    Args:
        name: DataComp's, with ``-`` for ``/``.
        title: as OpenCLIP's table has it.
        size: images of its test set, 0 if there is no official number.
        also: another name of its folder.
        extra: of its spec; without ``main_metric`` it is top-1 accuracy. ``group`` is the column of
            KEY.npy by which it is scored.
    """
    folders = [f"wds_{name}", *filter(None, [also])]
    lister: Lister = list_candidates if kind == "association" else list_samples
    if "group" in extra:
        lister = partial(list_samples, column=extra["group"])
    return DatasetSpec(
        name=name,
        kind=kind,
        folder=folders[0],
        other_folders=(*folders[1:], *(f"{each}_test" for each in folders)),
        list_samples=lister,
        expected={"val": size} if size else {},
        allows_subsets=True,
        classes=classes if kind == "classification" else (),
        extra=extra,
        adapt=adapt if kind == "classification" else None,
        about=(
            f"{title}: webdataset folder {folders[0]} (huggingface.co/clip-benchmark,"
            " huggingface.co/djghosh)"
        ),
    )


def register_folders(data_root: Path) -> list[str]:
    """Register every other ``wds_NAME`` in ``data_root`` as the dataset NAME, if its type is
    supported; returns the new names. Called where options are read, and by each unit of work in its
    own process."""
    registered = []
    for path in sorted(data_root.glob("wds_*")):
        name = path.name.removeprefix("wds_")
        if path.is_dir() and not datasets_of(path.name) and name not in DATASETS:
            with suppress(UserError):
                spec = webdataset(name, name, **TYPES[type_of(path)])
                about = f"webdataset folder {path.name}"
                register_dataset(replace(spec, other_folders=(), about=about))
                registered.append(name)
    return registered


def datasets_of(folder_name: str) -> list[str]:
    """Names of the datasets that lie in a folder of that name."""
    return [
        spec.name for spec in DATASETS.values() if folder_name in (spec.folder, *spec.other_folders)
    ]


_SPECS = (
    webdataset("vtab-caltech101", "Caltech-101", 6085, **PER_CLASS),
    webdataset("cifar10", "CIFAR-10", 10000, also="wds_vtab-cifar10"),
    webdataset("vtab-cifar100", "CIFAR-100", 10000),
    webdataset("vtab-clevr_count_all", "CLEVR Counts", 15000),
    webdataset("vtab-clevr_closest_object_distance", "CLEVR Distance", 15000),
    webdataset("country211", "Country211", 21100),
    webdataset("vtab-dtd", "Describable Textures", 1880),
    webdataset("vtab-eurosat", "EuroSAT", 5400),
    webdataset("fgvc_aircraft", "FGVC Aircraft", 3333, **PER_CLASS),
    webdataset("food101", "Food-101", 25250),
    webdataset("gtsrb", "GTSRB", 12630),
    webdataset("imagenet1k", "ImageNet 1k", 50000),
    webdataset("imagenet_sketch", "ImageNet Sketch", 50889),
    webdataset("imagenetv2", "ImageNet v2", 10000),
    webdataset("imagenet-a", "ImageNet-A", 7500),
    webdataset("imagenet-o", "ImageNet-O", 2000),
    webdataset("imagenet-r", "ImageNet-R", 30000),
    webdataset("vtab-kitti_closest_vehicle_distance", "KITTI Vehicle Distance", 711),
    webdataset("mnist", "MNIST", 10000),
    webdataset("objectnet", "ObjectNet", 18574),
    webdataset("vtab-flowers", "Oxford Flowers-102", 6149, **PER_CLASS),
    webdataset("vtab-pets", "Oxford-IIIT Pet", 3669, **PER_CLASS),
    webdataset("voc2007", "Pascal VOC 2007", 14976),
    webdataset("vtab-pcam", "PatchCamelyon", 32768),
    webdataset("renderedsst2", "Rendered SST2", 1821),
    webdataset("vtab-resisc45", "RESISC45", 6300),
    webdataset("cars", "Stanford Cars", 8041),
    webdataset("stl10", "STL-10", 8000),
    webdataset("sun397", "SUN397", 108754),
    webdataset("vtab-svhn", "SVHN", 26032),
    webdataset(
        "retrieval-flickr_1k_test_image_text_retrieval",
        "Flickr",
        1000,
        also="wds_flickr30k",
        **RETRIEVAL,
    ),
    webdataset(
        "retrieval-mscoco_2014_5k_test_image_text_retrieval",
        "MSCOCO",
        5000,
        also="wds_mscoco_captions",
        **RETRIEVAL,
    ),
    webdataset("misc-winogavil", "WinoGAViL", kind="association", also="wds_winogavil"),
    webdataset("wilds-iwildcam", "iWildCam", 42791, main_metric="f1_macro"),
    webdataset("wilds-camelyon17", "Camelyon17", 85054),
    # WILDS leaves the region "Other" (four images of the test set) out; DataComp's code, and so the
    # published numbers, do not
    webdataset("wilds-fmow", "FMoW", 22108, **WORST_TOP1),
    webdataset(
        "fairness-dollar_street", "Dollar Street", 3503, also="wds_dollar_street", **WORST_TOP5
    ),
    webdataset("fairness-geode", "GeoDE", 12488, also="wds_geode", **WORST_TOP1),
)
DATACOMP = tuple(register_dataset(as_shift(spec)) for spec in _SPECS)  # its 38 datasets

# VTAB's tasks that are not among them; of those that are, VTAB scores top-1 accuracy
for _spec in (
    replace(
        webdataset("vtab-sun397", "SUN397", 21750),
        about="SUN397 as VTAB splits it (TFDS' sun397/tfds), to be written as wds_vtab-sun397",
    ),
    webdataset("vtab-diabetic_retinopathy", "Diabetic Retinopathy", 42670),
    webdataset("vtab-dmlab", "DMLab Frames", 22735),
    webdataset("vtab-dsprites_label_x_position", "dSprites Location", 73728),
    webdataset("vtab-dsprites_label_orientation", "dSprites Orientation", 73728),
    webdataset("vtab-smallnorb_label_azimuth", "SmallNORB Azimuth", 12150),
    webdataset("vtab-smallnorb_label_elevation", "SmallNORB Elevation", 12150),
):
    register_dataset(_spec)
# its groups (Zhai et al. 2019, section 3.1) → datasets
VTAB = {
    "natural": (
        "vtab-caltech101",
        "vtab-cifar100",
        "vtab-dtd",
        "vtab-flowers",
        "vtab-pets",
        "vtab-sun397",
        "vtab-svhn",
    ),
    "specialised": (
        "vtab-pcam",
        "vtab-eurosat",
        "vtab-resisc45",
        "vtab-diabetic_retinopathy",
    ),
    "structured": (
        "vtab-clevr_count_all",
        "vtab-clevr_closest_object_distance",
        "vtab-dmlab",
        "vtab-kitti_closest_vehicle_distance",
        "vtab-dsprites_label_x_position",
        "vtab-dsprites_label_orientation",
        "vtab-smallnorb_label_azimuth",
        "vtab-smallnorb_label_elevation",
    ),
}
