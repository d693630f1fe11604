"""Verify single samples: decode the image, validate its ground truth, hash its bytes.

``Unreadable`` is raised for a single damaged file, which is skipped and reported; ``UserError`` if
the dataset is not what its declaration says (labels out of range, sizes that differ).
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
    spec: DatasetSpec, classes: int, root: Path, sample: Sample, instances: Mapping[Any, Any]
) -> str:
    """Verify a sample; the sha256 of its name and content.

    Args:
        classes: number of classes.
        instances: for detection, the result of ``coco_images``; otherwise unused.
    Raises:
        Unreadable: this sample cannot be decoded, or has no ground truth.
        UserError: the dataset is not what its declaration says.
    """
    image = root / sample.image
    data, sha256 = read(image)
    _, size = decode(data, "image", size_only=True)
    digest = hashlib.sha256(sample.image.encode() + b"\0" + bytes.fromhex(sha256))
    if spec.kind in LABEL_CHECKS:
        path = root / sample.target
        data, sha256 = read(path)
        label, label_size = decode(data, "label map")
        if label_size != size:
            raise UserError(
                f"{path} is {label_size[0]}x{label_size[1]} but its image is {size[0]}x{size[1]};"
                f" the label maps of {spec.name} do not belong to these images"
            )
        LABEL_CHECKS[spec.kind](spec, classes, path, label)
        digest.update(bytes.fromhex(sha256))
        return digest.hexdigest()
    if spec.kind == "classification":
        if not 0 <= sample.target < classes:
            raise UserError(
                f"{image} has class {sample.target}, but {spec.name} has {classes} classes"
            )
        digest.update(str(sample.ground_truth).encode())
        return digest.hexdigest()
    annotation = sample.target
    if spec.kind == "image-text" and not all(caption.strip() for caption in annotation):
        raise Unreadable("an empty caption")
    if spec.kind == "detection":
        entry = instances[sample.target]
        if size != entry["size"]:
            raise UserError(
                f"{image} is {size[0]}x{size[1]} but its annotation says"
                f" {entry['size'][0]}x{entry['size'][1]}; the images of {spec.name} do not belong"
                " to these annotations"
            )
        annotation = entry["annotations"]
    digest.update(canonical_json(annotation).encode())
    return digest.hexdigest()


def read(path: Path) -> tuple[bytes, str]:
    """A file and its sha256, which is stored for later use."""
    try:
        return read_and_hash(path)
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error


def decode(
    data: bytes, name: str, *, size_only: bool = False
) -> tuple[Image.Image, tuple[int, int]]:
    """A completely decoded image and its (width, height). With ``size_only`` JPEGs are decoded at
    an eighth of their size, which reads all bytes too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
        size = image.size
        if size_only:
            image.draft("RGB", (1, 1))
        image.load()
    # Pillow raises many kinds for broken files, SyntaxError and struct.error among them
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].split(" <_io.")[0]
        raise Unreadable(f"{name} cannot be decoded: {reason}") from error
    return image, size


def check_labels(spec: DatasetSpec, classes: int, path: Path, image: Image.Image) -> None:
    """Every stored value is a class (after ``label_offset``), ignored or unlabelled."""
    if image.mode not in ("L", "P", "1") and not image.mode.startswith("I"):
        raise UserError(
            f"{path} is a colour picture ({image.mode}); {spec.name} stores a class index a pixel"
        )
    stored = np.unique(np.asarray(image).astype(np.int64))
    label = stored + spec.label_offset
    is_class = (label >= 0) & (label < classes)
    is_unlabelled = (stored == spec.ignore_index) | (stored < -spec.label_offset)
    invalid = stored[~(is_class | is_unlabelled)]
    if len(invalid):
        first, last = -spec.label_offset, classes - 1 - spec.label_offset
        raise UserError(
            f"{path} has label {', '.join(map(str, invalid[:5]))}; {spec.name} stores its {classes}"
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
    """Some valid pixels, of unit length within 8-bit precision."""
    encoding = spec.extra["encoding"]
    if image.mode != "RGB":
        raise UserError(
            f"{path} is not an RGB picture ({image.mode}); {spec.name} stores {encoding}"
        )
    stored = np.asarray(image)[::4, ::4].reshape(-1, 3)  # a sample of the pixels
    valid = stored[(stored != np.asarray(spec.extra["invalid"])).any(axis=1)]
    if not len(valid):
        raise Unreadable("no pixel has a normal")
    length = float(np.median(np.linalg.norm(valid / 127.5 - 1, axis=1)))
    if not 0.8 < length < 1.2:
        raise UserError(
            f"{path} does not hold normals: median length {length:.2f} instead of 1 with {encoding}"
        )


LABEL_CHECKS = {"segmentation": check_labels, "depth": check_depth, "normals": check_normals}


def coco_images(spec: DatasetSpec, root: Path, split: Split) -> dict[int, dict[str, Any]]:
    """Image id → {size: (width, height), annotations: list} of a COCO annotation file.

    Raises:
        UserError: duplicate or unknown ids, a category that the declaration lacks, a box outside
            its image or an invalid mask; names the annotation.
    """
    path = file(root, spec.annotations[split])
    content = read_json(path)
    classes = set(spec.class_names(root))
    with report_malformed(f"{path} is not a COCO annotation file"):
        categories = {entry["id"]: entry["name"] for entry in content["categories"]}
        images: dict[int, dict[str, Any]] = {
            entry["id"]: {"size": (entry["width"], entry["height"]), "annotations": []}
            for entry in content["images"]
        }
        if len(images) < len(content["images"]):
            raise UserError(f"{path} has two images with the same id; get the file again")
        for annotation in content["annotations"]:
            name = f"{path} annotation {annotation['id']}"
            image, category = annotation["image_id"], categories.get(annotation["category_id"])
            if image not in images:
                raise UserError(f"{name} belongs to image {image}, which is not in the file")
            if category not in classes:
                raise UserError(
                    f"{name} has category {annotation['category_id']} ({category}), which is not"
                    f" one of the {len(classes)} classes of {spec.name}"
                )
            check_instance(name, annotation, images[image]["size"])
            images[image]["annotations"].append(annotation)
    if not content["annotations"]:
        raise UserError(f"{path} has no annotations; get the file again")
    return images


def check_instance(name: str, annotation: Mapping[str, Any], size: tuple[int, int]) -> None:
    """The box is in the image (within two pixels, for rounding), and the mask has its size.

    Raises:
        UserError: it is not. LookupError, TypeError, ValueError: a field is missing or malformed.
    """
    x, y, width, height = (float(value) for value in annotation["bbox"])
    inside = x >= -2 and y >= -2 and x + width <= size[0] + 2 and y + height <= size[1] + 2
    if not (inside and width >= 0 and height >= 0):  # also for NaN
        raise UserError(
            f"{name} has box {annotation['bbox']} outside its image of {size[0]}x{size[1]}"
        )
    float(annotation["area"])  # scoring needs it
    if error := mask_error(annotation.get("segmentation"), size[1], size[0]):
        raise UserError(f"{name} has {error}")
