"""NAVI (Jampani et al. 2023): photographs of 36 objects with poses and depth; here its 35
collections in the wild, 2,298 images.

``OBJECT/wild_set/{annotations.json,images/000.jpg,depth/000.png}`` and the list of pairs
``custom_splits/pairwise_pixel_correspondences/pairs-wild_set.txt``, as its archive unpacks.
"""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path, PurePath

from cliptex_common.errors import UserError, report_malformed
from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import read_annotations, read_lines, require_file
from probes.registry import register_dataset

PAIRS = "custom_splits/pairwise_pixel_correspondences/pairs-wild_set.txt"


def list_samples(root: Path, split: Split) -> list[Sample]:
    """The images of all objects, in the order of their names."""
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
                target = {
                    "rotation": rotation_matrix(*camera["q"]),
                    "translation": [value / 1000 for value in camera["t"]],
                    "camera": camera["focal_length"] / min(entry["image_size"]),
                    "pairs": pairs.pop(image, []),
                }
                for file in (image, depth):
                    require_file(root, file)
                samples.append(Sample(image, target, files=(depth,)))
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
        list_samples=list_samples,
        expected={"train": 0, "val": 2298},
        adapt=adapt,
        about="NAVI v1.0, objects in the wild with pose and depth (unpack navi_v1.0.tar.gz of"
        " github.com/google/navi there)",
    )
)
