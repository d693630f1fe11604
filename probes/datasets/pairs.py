"""Datasets of pairs: images and captions (Flickr), two views (NAVI, ScanNet, SPair), frames of a
video (DAVIS), queries and galleries (AmsterTime, Revisited Oxford and Paris).

Layouts are those that the datasets' own archives unpack to."""

from __future__ import annotations

import zipfile
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from cliptex_common.errors import UserError, report_malformed
from probes.datasets.base import (
    DatasetSpec,
    Sample,
    Split,
    read_annotations,
    read_lines,
    require_file,
    require_folder,
    walk,
    walk_images,
)
from probes.datasets.ground_truth import (
    CameraPose,
    Captions,
    Correspondences,
    GalleryImage,
    KeypointPair,
    ObjectMasks,
    View,
)
from probes.registry import register_dataset

TIMES = {"new": "old", "old": "new"}


def list_amstertime(root: Path, split: Split) -> list[Sample]:
    """``old/0000.jpg`` and ``new/0000.png``: old photographs of Amsterdam (Yildiz et al., ICPR
    2022), and what a street view of each place shows today. Each image is a query that searches its
    place among those of the other time."""
    if split == "train":
        return []
    images = {
        time: {Path(name).stem: f"{time}/{name}" for name in walk_images(root, time)}
        for time in TIMES
    }
    if single := images["new"].keys() ^ images["old"].keys():
        raise UserError(
            f"{root} has {min(single)} in only one of new and old; get the other image again or"
            " remove it"
        )
    return [
        Sample(
            image,
            GalleryImage(
                time,
                searches=gallery,
                positives={"all": [images[gallery][name]]},
                junk={"all": []},
            ),
        )
        for time, gallery in TIMES.items()
        for name, image in images[time].items()
    ]


def places(root: Path) -> dict[str, str]:
    """Image → its place, which two images show."""
    return {sample.image: Path(sample.image).stem for sample in list_amstertime(root, "val")}


register_dataset(
    DatasetSpec(
        name="amstertime",
        kind="instance-retrieval",
        folder="AmsterTime",
        list_samples=list_amstertime,
        expected={"train": 0, "val": 2 * 1231},
        extra={"average_precision": "steps", "main_metric": "mAP_all"},
        units=places,
        about=(
            "AmsterTime, 1,231 places then and now: old/0000.jpg and new/0000.png"
            " (doi.org/10.4121/19580806)"
        ),
    )
)


def list_davis(root: Path, split: Split) -> list[Sample]:
    """The frames of the videos of a split's list, in their order; objects are outlined in each
    (Pont-Tuset et al. 2017).

    ``JPEGImages/480p/VIDEO/00000.jpg``, ``Annotations/480p/VIDEO/00000.png`` and the lists
    ``ImageSets/2017/{train,val}.txt``.
    """
    samples = []
    for video in read_lines(require_file(root, f"ImageSets/2017/{split}.txt")):
        frames, masks = f"JPEGImages/480p/{video}", f"Annotations/480p/{video}"
        present = {
            f"{folder}/{name}"
            for folder, suffix in ((frames, ".jpg"), (masks, ".png"))
            for name in walk(root, folder, (suffix,))
        }
        if wrong := [path for path in sorted(present) if not Path(path).stem.isdecimal()]:
            raise UserError(f"{root / wrong[0]} is no frame of DAVIS; frames are 00000, 00001 …")
        count = 1 + max((int(Path(path).stem) for path in present), default=-1)
        if count < 3:
            raise UserError(
                f"{root / frames} has {count} frames; the first and the last are not scored: get"
                " the video again"
            )
        pairs = [(f"{frames}/{i:05}.jpg", f"{masks}/{i:05}.png") for i in range(count)]
        if absent := [path for pair in pairs for path in pair if path not in present]:
            raise UserError(f"{root / absent[0]} is missing; get the video again")
        samples += [Sample(frame, ObjectMasks(mask)) for frame, mask in pairs]
    return samples


register_dataset(
    DatasetSpec(
        name="davis",
        kind="video",
        folder="DAVIS",
        list_samples=list_davis,
        expected={"val": 1999},
        about="DAVIS 2017, 30 videos with masks of objects (davischallenge.org; `data get davis`)",
    )
)


def list_captions(name: str, root: Path, split: Split) -> list[Sample]:
    """Samples of Flickr8k or Flickr30k: ``dataset_NAME.json`` (Karpathy's) and the images in one
    folder, in any of their usual places. ``val`` is the test split, which retrieval is scored on;
    captions are the raw ones."""
    path = require_file(
        root, *(f"{folder}dataset_{name}.json" for folder in ("", "annotations/", "karpathy/"))
    )
    images = ("images", f"{name}-images", f"{name}_images", "Images", "Flicker8k_Dataset")
    folder_name = next((folder for folder in images if (Path(root) / folder).is_dir()), None)
    if folder_name is None:
        raise UserError(f"image folder {' or '.join(images)} is missing in {root}")
    content, part = read_annotations(path), {"train": "train", "val": "test"}[split]
    with report_malformed(f"{path} is not a Karpathy caption file"):
        return [
            Sample(
                f"{folder_name}/{entry['filename']}",
                Captions([str(sentence["raw"]) for sentence in entry["sentences"]]),
            )
            for entry in content["images"]
            if entry["split"] == part
        ]


FLICKR30K, FLICKR8K = (
    register_dataset(
        DatasetSpec(
            name=title.lower(),
            kind="image-text",
            folder=title.lower(),
            list_samples=partial(list_captions, title.lower()),
            expected={"train": train, "val": 1000},
            extra={"captions_per_image": 5, "split": "Karpathy test"},
            about=(
                f"{title} with five captions an image, Karpathy's json"
                " (cs.stanford.edu/people/karpathy/deepimagesent)"
            ),
        )
    )
    for title, train in (("Flickr30k", 29000), ("Flickr8k", 6000))
)


PAIRS = "custom_splits/pairwise_pixel_correspondences/pairs-wild_set.txt"


def list_navi(root: Path, split: Split) -> list[Sample]:
    """The images of all objects, in the order of their names: of 36 objects with poses and depth
    (Jampani et al. 2023) the 35 collections in the wild.

    ``OBJECT/wild_set/{annotations.json,images/000.jpg,depth/000.png}`` and the list ``PAIRS``.
    """
    if split == "train":
        return []
    pairs = listed_pairs(root)
    samples = []
    for path in sorted(root.glob("*/wild_set/annotations.json")):
        folder = path.parent.relative_to(root).as_posix()
        with report_malformed(f"{path} is no annotation file of NAVI"):
            for entry in sorted(read_annotations(path), key=lambda entry: entry["filename"]):
                image = f"{folder}/images/{entry['filename']}"
                depth = f"{folder}/depth/{PurePath(image).stem}.png"
                camera = entry["camera"]
                view = View(
                    rotation=rotation_matrix(*camera["q"]),
                    translation=[value / 1000 for value in camera["t"]],
                    camera=camera["focal_length"] / min(entry["image_size"]),
                    pairs=pairs.pop(image, []),
                    depth=depth,
                )
                for file in (image, depth):
                    require_file(root, file)
                samples.append(Sample(image, view))
    if unknown := next(iter(pairs), None):
        raise UserError(f"{PAIRS} lists {unknown}, which has no annotation")
    if not samples:
        raise UserError(f"no OBJECT/wild_set/annotations.json in {root}")
    return samples


def listed_pairs(root: Path) -> dict[str, list[str]]:
    """Image → those that the list of pairs names with it. Empty without the list."""
    pairs: dict[str, list[str]] = defaultdict(list)
    if (root / PAIRS).is_file():
        for line in read_lines(root / PAIRS):
            with report_malformed(f"{root / PAIRS} is no list of pairs of NAVI"):
                first, second, _ = line.split()
            require_file(root, second)
            pairs[first].append(second)
    return pairs


def rotation_matrix(w: float, x: float, y: float, z: float) -> list[list[float]]:
    """The rotation of a quaternion, 3 × 3."""
    s = 2 / (w * w + x * x + y * y + z * z)
    return [
        [1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)],
        [s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)],
        [s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)],
    ]


def adapt(spec: DatasetSpec, root: Path) -> DatasetSpec:
    """With the list of pairs that the copy has."""
    pairs = "wild_set" if (root / PAIRS).is_file() else "none"
    return replace(spec, extra={**spec.extra, "listed_pairs": pairs})


register_dataset(
    DatasetSpec(
        name="navi",
        kind="object-views",
        folder="navi_v1",
        other_folders=("navi_v1.5",),
        list_samples=list_navi,
        expected={"train": 0, "val": 2298},
        adapt=adapt,
        image_set="navi",
        about="NAVI v1.0, objects in the wild with pose and depth (unpack navi_v1.0.tar.gz of"
        " github.com/google/navi there)",
    )
)


def list_poses(root: Path, split: Split) -> list[Sample]:
    """The views of a split, as the annotations say, of the objects photographed on a table:
    ``OBJECT/multiview_…/{annotations.json,images/000.jpg}``."""
    samples = []
    for path in sorted(root.glob("*/multiview_*/annotations.json")):
        folder = path.parent.relative_to(root).as_posix()
        with report_malformed(f"{path} is no annotation file of NAVI"):
            for entry in sorted(read_annotations(path), key=lambda entry: entry["filename"]):
                image, camera = f"{folder}/images/{entry['filename']}", entry["camera"]
                require_file(root, image)
                metres = [value / 1000 for value in camera["t"]]
                if entry["split"] == split:
                    samples.append(Sample(image, CameraPose(camera["q"], metres)))
    if not samples:
        raise UserError(f"no OBJECT/multiview_*/annotations.json in {root} has views of {split}")
    return samples


register_dataset(
    DatasetSpec(
        name="navi-multiview",
        kind="view-pose",
        folder="navi_v1",
        other_folders=("navi_v1.5",),
        list_samples=list_poses,
        image_set="navi",
        about="NAVI, views of objects on a table with the camera's pose (unpack navi_v1.0.tar.gz"
        " of github.com/google/navi there)",
    )
)


def list_revisited(name: str, root: Path, split: Split) -> list[Sample]:
    """The gallery and, after it, the 70 queries, which are no part of it: photographs of landmarks
    (Radenović et al., CVPR 2018).

    ``jpg/NAME.jpg`` and ``gnd_NAME.mat``, the official lists and ground truth. Those in a ``.pkl``
    are not read: it could run any code.
    """
    from scipy.io import loadmat

    if split == "train":
        return []
    require_folder(root, "jpg")
    path = require_file(root, f"gnd_{name}.mat")
    try:
        content = loadmat(path, simplify_cells=True)
    except Exception as error:
        raise UserError(f"cannot read {path} ({error}); get the file again") from error
    with report_malformed(f"{path} is not the ground truth of {name}"):
        gallery, queries = (
            [f"jpg/{Path(str(image)).stem}.jpg" for image in np.atleast_1d(content[key])]
            for key in ("imlist", "qimlist")
        )
        targets = [_query(name, entry, gallery) for entry in np.atleast_1d(content["gnd"])]
        samples = [Sample(image, GalleryImage(name)) for image in gallery]
        return samples + [
            Sample(image, target) for image, target in zip(queries, targets, strict=True)
        ]


def _query(name: str, entry: dict[str, Any], gallery: list[str]) -> GalleryImage:
    """The ground truth of a query. Of each level the others' images are junk."""
    easy, hard, junk = (
        [gallery[number - 1] for number in np.atleast_1d(entry[key]).astype(int) if number > 0]
        for key in ("easy", "hard", "junk")
    )
    return GalleryImage(
        searches=name,
        box=np.asarray(entry["bbx"], np.float64).reshape(4).tolist(),
        positives={"hard": hard, "medium": easy + hard, "easy": easy},
        junk={"hard": junk + easy, "medium": junk, "easy": junk + hard},
    )


for _name, _images, _about in (
    (
        "roxford5k",
        4993,
        "Revisited Oxford: oxbuild_images-v1.tgz of www.robots.ox.ac.uk/~vgg/data/oxbuildings",
    ),
    (
        "rparis6k",
        6322,
        "Revisited Paris: paris_{1,2}-v1.tgz of www.robots.ox.ac.uk/~vgg/data/parisbuildings",
    ),
):
    register_dataset(
        DatasetSpec(
            name=_name,
            kind="instance-retrieval",
            folder=_name,
            list_samples=partial(list_revisited, _name),
            expected={"train": 0, "val": _images + 70},
            extra={"average_precision": "trapezoids"},
            about=(
                f"{_about} unpacked to jpg/NAME.jpg without folders, and"
                f" cmp.felk.cvut.cz/revisitop/data/datasets/{_name}/gnd_{_name}.mat"
            ),
        )
    )


def list_scannet(root: Path, split: Split) -> list[Sample]:
    """The frames of all pairs, in the order of the list: the 1,500 pairs of 100 rooms of ScanNet
    (Dai et al. 2017) that matchers are tested on (Sarlin et al. 2020).

    ``scene0707_00/{color/N.jpg,depth/N.png,pose/N.txt}`` … and the lists ``test.npz`` and
    ``intrinsics.npz``, all in one folder; LoFTR's repository has the lists and says where the
    frames are.
    """
    if split == "train":
        return []
    pairs, cameras = (read_list(root, name) for name in ("test.npz", "intrinsics.npz"))
    others: dict[str, list[str]] = {}
    for room, sequence, *frames in read_pairs(pairs, root):
        scene = f"scene{room:04d}_{sequence:02d}"
        first, second = (f"{scene}/color/{frame}.jpg" for frame in frames)
        others.setdefault(first, []).append(second)
        others.setdefault(second, [])
    return [Sample(image, read_view(root, image, others[image], cameras)) for image in others]


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


def read_view(root: Path, image: str, pairs: list[str], cameras: Any) -> View:
    """What is known of a frame."""
    scene, _, name = image.split("/")
    number = name.removesuffix(".jpg")
    depth = f"{scene}/depth/{number}.png"
    for file in (image, depth):
        require_file(root, file)
    path = require_file(root, f"{scene}/pose/{number}.txt")
    with report_malformed(f"{path} or {root / 'intrinsics.npz'} is no camera of ScanNet"):
        to_camera = np.linalg.inv(np.loadtxt(path).reshape(4, 4))
        rotation, translation = to_camera[:3, :3].tolist(), to_camera[:3, 3].tolist()
        camera = cameras[scene].reshape(3, 3).tolist()
    if not np.isfinite(to_camera).all():
        raise UserError(f"{path} is no pose; get the file again")
    return View(rotation, translation, camera, pairs, depth)


register_dataset(
    DatasetSpec(
        name="scannet",
        kind="scene-views",
        folder="scannet_test_1500",
        list_samples=list_scannet,
        expected={"train": 0},
        about="1,500 pairs of ScanNet (frames, and test.npz and intrinsics.npz beside them, from"
        " where github.com/zju3dv/LoFTR says)",
    )
)


PARTS = {"train": "trn", "val": "test"}


def list_spair(root: Path, split: Split) -> list[Sample]:
    """The images of a split's pairs, in the order of their names, each with the pairs that it is
    the source of: photographs of 18 categories with the keypoints that both show (Min et al. 2019);
    12,234 of the 70,958 pairs are tested.

    ``JPEGImages/CATEGORY/NAME.jpg``, ``PairAnnotation/test/*.json`` and the list
    ``Layout/large/test.txt``.
    """
    root, part = Path(root), PARTS[split]
    annotations = require_folder(root, f"PairAnnotation/{part}")
    pairs_of_image: dict[str, list[KeypointPair]] = {}
    for name in read_lines(require_file(root, f"Layout/large/{part}.txt")):
        # some file systems allow no colon in names, and copies there have an underscore for it
        path = require_file(annotations, f"{name}.json", f"{name.replace(':', '_')}.json")
        annotation = read_annotations(path)
        with report_malformed(f"{path} is no pair of SPair-71k"):
            source, target = (
                f"JPEGImages/{annotation['category']}/{annotation[f'{side}_imname']}"
                for side in ("src", "trg")
            )
            points, box = (annotation["src_kps"], annotation["trg_kps"]), annotation["trg_bndbox"]
            for each in points:
                np.asarray(each, np.float64).reshape(len(each), 2)
            np.asarray(box, np.float64).reshape(4)
            pair = KeypointPair(target, *points, box)
        if not pair.source or len(pair.source) != len(pair.target):
            raise UserError(
                f"{path} has {len(pair.source)} and {len(pair.target)} keypoints; get the file"
                " again"
            )
        pairs_of_image.setdefault(source, []).append(pair)
        pairs_of_image.setdefault(target, [])  # an image that is a target only is a sample, too
    return [
        Sample(image, Correspondences(pairs)) for image, pairs in sorted(pairs_of_image.items())
    ]


register_dataset(
    DatasetSpec(
        name="spair",
        kind="correspondence",
        folder="SPair-71k",
        list_samples=list_spair,
        about="SPair-71k keypoints (cvlab.postech.ac.kr/research/SPair-71k)",
    )
)


def list_images(root: Path, split: Split) -> list[Sample]:
    """Every image in the folder, nested or not."""
    return [] if split == "train" else [Sample(name) for name in walk_images(root, ".")]


register_dataset(
    DatasetSpec(
        name="images",
        kind="warped-images",
        folder="homography-images",
        list_samples=list_images,
        about="any images, which are warped at random (place them with --data images=DIR)",
    )
)
