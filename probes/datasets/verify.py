"""Is one sample fit for use? Each is decoded once, its ground truth looked at, and its bytes hashed
on the way.

Two ways to fail: ``Unreadable`` for what goes wrong with a single file (it is skipped, counted and
named), and ``UserError`` for what is wrong with the dataset as such (labels out of range, sizes
that differ): going on would train on nonsense.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.coco_masks import mask_error
from common.errors import UserError, report_malformed
from common.files import canonical_json
from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import file, read_json
from probes.features.content_hashes import read_and_hash


class Unreadable(Exception):
    """One sample cannot be used; the message says why."""


def verify(
    spec: DatasetSpec, classes: int, root: Path, sample: Sample, truth: Mapping[Any, Any]
) -> str:
    """Decode ``sample``, look at its ground truth, and return a sha256 over its name and content.

    Args:
        classes: number of classes.
        truth: for detection, what ``coco_truth`` gives; otherwise unused.
    Raises:
        Unreadable: this sample cannot be read or has nothing to learn from or score.
        UserError: the dataset as a whole is not what its declaration says.
    """
    data, sha256 = read(root / sample.image)
    _, size = decoded(data, "image", only_size=True)
    digest = hashlib.sha256(sample.image.encode() + b"\0" + bytes.fromhex(sha256))
    if spec.kind in ("segmentation", "depth", "normals"):
        data, sha256 = read(root / sample.target)
        label, label_size = decoded(data, "label map")
        if label_size != size:
            raise UserError(
                f"{root / sample.target} is {by(label_size)} but its image is {by(size)}; "
                f"the label maps of {spec.name} do not belong to these images"
            )
        {"segmentation": check_labels, "depth": check_depth, "normals": check_normals}[spec.kind](
            spec, classes, root / sample.target, label
        )
        digest.update(bytes.fromhex(sha256))
    elif spec.kind == "classification":
        if not 0 <= sample.target < classes:
            raise UserError(
                f"{root / sample.image} has class {sample.target}, but {spec.name} has {classes}"
                " classes"
            )
        digest.update(str(sample.truth).encode())
    elif spec.kind in ("association", "correspondence"):
        digest.update(encoded(sample.target))
    elif spec.kind == "image-text":
        if not sample.target or not all(caption.strip() for caption in sample.target):
            raise Unreadable("an empty caption" if sample.target else "no caption")
        digest.update(encoded(sample.target))
    else:
        entry = truth[sample.target]
        if size != entry["size"]:
            raise UserError(
                f"{root / sample.image} is {by(size)} but its annotation says {by(entry['size'])}; "
                f"the images of {spec.name} do not belong to these annotations"
            )
        digest.update(encoded(entry["annotations"]))
    return digest.hexdigest()


def read(path: Path) -> tuple[bytes, str]:
    """A file and its sha256, which is kept for whoever asks for it later."""
    try:
        return read_and_hash(path)
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error


def encoded(truth: Any) -> bytes:
    """What is hashed of ground truth. Raises ``Unreadable`` for half of a character that JSON
    writes as two (``\\ud83d``)."""
    try:
        return canonical_json(truth).encode()
    except UnicodeEncodeError as error:
        raise Unreadable(f"its annotation is no text ({error})") from error


def by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def decoded(
    data: bytes, what: str, *, only_size: bool = False
) -> tuple[Image.Image, tuple[int, int]]:
    """An image that decodes whole, and its (width, height). Where ``only_size`` is needed JPEGs are
    decoded at an eighth of
    their size: all bytes are read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
        size = image.size
        if only_size:
            image.draft("RGB", (1, 1))
        image.load()
    # Pillow raises many kinds for broken files, SyntaxError and struct.error among them
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].split(" <_io.")[0]
        raise Unreadable(f"{what} cannot be decoded: {reason}") from error
    return image, size


def check_labels(spec: DatasetSpec, classes: int, path: Path, image: Image.Image) -> None:
    """Every stored value is a class (after ``label_offset``), the ignore value, or what the offset
    makes 'unlabelled'."""
    if image.mode not in ("L", "P", "1") and not image.mode.startswith("I"):
        raise UserError(
            f"{path} is a colour picture ({image.mode}); {spec.name} wants one class index a pixel"
        )
    stored = np.unique(np.asarray(image).astype(np.int64))
    label = stored + spec.label_offset
    wrong = stored[
        ~(
            (label >= 0) & (label < classes)
            | (stored == spec.ignore_index)
            | (stored < -spec.label_offset)
        )
    ]
    if len(wrong):
        first, last = -spec.label_offset, classes - 1 - spec.label_offset
        raise UserError(
            f"{path} has label {', '.join(map(str, wrong[:5]))}; {spec.name} stores its {classes}"
            f" classes as {first}-{last} and {spec.ignore_index} for ignore"
        )


def check_depth(spec: DatasetSpec, classes: int, path: Path, image: Image.Image) -> None:
    """16 bits a pixel, and some of them within the valid range."""
    if not image.mode.startswith("I"):
        raise UserError(
            f"{path} is not 16-bit ({image.mode}); {spec.name} stores depth in units of "
            f"{spec.extra['depth_scale']} m as 16-bit PNG"
        )
    depth = np.asarray(image).astype(np.float64) * spec.extra["depth_scale"]
    if not (measured := depth[depth > 0]).size:
        raise Unreadable("no pixel has a depth")
    low, high = spec.extra["min_depth"], spec.extra["max_depth"]
    if not ((measured >= low) & (measured <= high)).any():
        raise Unreadable(f"no depth within {low:g}-{high:g} m (median {np.median(measured):g} m)")


def check_normals(spec: DatasetSpec, classes: int, path: Path, image: Image.Image) -> None:
    """Some valid pixels, and those are of unit length, as far as 8 bits allow."""
    if image.mode != "RGB":
        raise UserError(
            f"{path} is not an RGB picture ({image.mode}); {spec.name} stores"
            f" {spec.extra['encoding']}"
        )
    stored = np.asarray(image)[::4, ::4].reshape(-1, 3)  # every 16th pixel tells as much
    valid = stored[(stored != np.asarray(spec.extra["invalid"])).any(axis=1)]
    if not len(valid):
        raise Unreadable("no pixel has a normal")
    length = float(np.median(np.linalg.norm(valid / 127.5 - 1, axis=1)))
    if not 0.8 < length < 1.2:
        encoding = spec.extra["encoding"]
        raise UserError(
            f"{path} does not hold normals: median length {length:.2f} instead of 1 with {encoding}"
        )


def coco_truth(spec: DatasetSpec, root: Path, split: Split) -> dict[int, dict[str, Any]]:
    """Image id → {size: (width, height), annotations: list} of a COCO annotation file, checked as a
    whole.

    Raises:
        UserError: ids that occur twice or belong to nothing, a category the declaration lacks, a
            box or mask that makes no sense; names the annotation.
    """
    path = file(root, spec.annotations[split])
    content = read_json(path)
    classes = set(spec.class_names(root))
    with report_malformed(f"{path} is not a COCO annotation file"):
        categories = {entry["id"]: entry["name"] for entry in content["categories"]}
        images: dict[int, dict[str, Any]] = {}
        for entry in content["images"]:
            if entry["id"] in images:
                raise UserError(f"{path} has two images with id {entry['id']}; get the file again")
            images[entry["id"]] = {"size": (entry["width"], entry["height"]), "annotations": []}
        for annotation in content["annotations"]:
            name = f"{path} annotation {annotation['id']}"
            if annotation["image_id"] not in images:
                raise UserError(
                    f"{name} belongs to image {annotation['image_id']}, which is not in the file"
                )
            if annotation["category_id"] not in categories:
                raise UserError(
                    f"{name} has category {annotation['category_id']}, which is not in the file"
                )
            if categories[annotation["category_id"]] not in classes:
                raise UserError(
                    f"{name} is a {categories[annotation['category_id']]!r}, not one of the "
                    f"{len(classes)} classes of {spec.name}"
                )
            image = images[annotation["image_id"]]
            check_instance(name, annotation, image["size"])
            image["annotations"].append(annotation)
    if not content["annotations"]:
        raise UserError(f"{path} has no annotations; nothing can be learnt from it or scored")
    return images


def check_instance(name: str, annotation: Mapping[str, Any], size: tuple[int, int]) -> None:
    """The box lies in the image (a pixel or two of rounding allowed), the mask is one of this
    image."""
    x, y, width, height = (float(value) for value in annotation["bbox"])
    inside = x >= -2 and y >= -2 and x + width <= size[0] + 2 and y + height <= size[1] + 2
    if not (inside and width >= 0 and height >= 0):  # a NaN is never inside
        raise UserError(f"{name} has box {annotation['bbox']} outside its image of {by(size)}")
    if wrong := mask_error(annotation.get("segmentation"), size[1], size[0]):
        raise UserError(f"{name} has {wrong}")
    if not 0 <= float(annotation["area"]) < float("inf"):
        raise UserError(f"{name} has area {annotation['area']}")
