"""Verify single samples: decode the image, validate its ground truth, hash its bytes.

``Unreadable`` is raised for a single damaged file, which is skipped and reported; ``UserError`` if
the dataset is not what its declaration says (labels out of range, sizes that differ).
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliptex_common.dense_maps.coco_masks import Instances, mask_error, read_instances
from cliptex_common.dense_maps.read import read_classes
from cliptex_common.errors import UserError, report_malformed
from cliptex_common.files import canonical_json
from cliptex_common.images import IMAGE_ERRORS, open_image
from probes.datasets.base import DatasetSpec, Sample, Split, Unreadable
from probes.datasets.layouts import require_file
from probes.dense.tasks import DENSE_TASKS
from probes.features.content_hashes import HashedFile, read_and_hash


def verify(
    spec: DatasetSpec, classes: int, root: Path, sample: Sample, instances: Mapping[Any, Any]
) -> tuple[str, list[HashedFile]]:
    """Verify a sample; the sha256 of its name and content, and the hashes of its files.

    Args:
        classes: number of classes.
        instances: for detection, the result of ``coco_images``; otherwise unused.
    Raises:
        OSError: a file cannot be read.
        Unreadable: this sample cannot be decoded, or has no ground truth.
        UserError: the dataset is not what its declaration says.
    """
    image = root / sample.image
    data, hashed = read_and_hash(image)
    files = [hashed]
    _, size = decode(data, "image", size_only=True)
    if spec.kind in DENSE_TASKS:
        files.append(_check_map(spec, classes, root / sample.target, size))
        ground_truth = bytes.fromhex(files[1][2])
    elif spec.kind == "detection":
        ground_truth = _check_instances(spec, image, instances[sample.target], size)
    elif spec.kind == "classification":
        labels = sample.target if isinstance(sample.target, list) else [sample.target]
        if not all(0 <= label < classes for label in labels):
            raise UserError(
                f"{image} has class {sample.target}, but {spec.name} has {classes} classes"
            )
        ground_truth = str(sample.ground_truth).encode()
    else:
        if spec.kind == "image-text":
            _check_captions(spec, image, sample.target)
        elif spec.kind == "video":
            _check_masks(root / sample.target, size)
        elif spec.kind.endswith("-views"):
            _check_depth(root / sample.files[0])
        ground_truth = canonical_json(sample.target).encode()
        for path in sample.files:
            files.append(read_and_hash(root / path)[1])
            ground_truth += bytes.fromhex(files[-1][2])
    content = sample.image.encode() + b"\0" + bytes.fromhex(hashed[2])
    return hashlib.sha256(content + ground_truth).hexdigest(), files


def _check_map(spec: DatasetSpec, classes: int, path: Path, size: tuple[int, int]) -> HashedFile:
    data, hashed = read_and_hash(path)
    label, label_size = decode(data, "label map")
    if label_size != size:
        raise UserError(
            f"{path} is {label_size[0]}x{label_size[1]} but its image is {size[0]}x{size[1]};"
            f" the label maps of {spec.name} do not belong to these images"
        )
    DENSE_TASKS[spec.kind].check_file(spec, classes, path, label)
    return hashed


def _check_masks(path: Path, size: tuple[int, int]) -> None:
    try:
        masks = read_classes(path)
    except IMAGE_ERRORS as error:
        raise UserError(f"{path} cannot be read ({error}); get the file again") from error
    if masks.shape[::-1] != size:
        raise UserError(
            f"{path} is {masks.shape[1]}x{masks.shape[0]} but its frame is {size[0]}x{size[1]}"
        )
    if int(path.stem) == 0:
        objects = set(np.unique(masks).tolist()) - {0, 255}
        if empty := set(range(1, max(objects, default=1) + 1)) - objects:
            raise UserError(f"{path}: object {min(empty)} has no pixel in the first frame")


def _check_depth(path: Path) -> None:
    depth, _ = decode(path.read_bytes(), path.name)
    if not np.asarray(depth).any():
        raise Unreadable(f"{path.name} has no pixel with a depth")


def _check_instances(
    spec: DatasetSpec, image: Path, entry: Mapping[str, Any], size: tuple[int, int]
) -> bytes:
    declared = entry["width"], entry["height"]
    if size != declared:
        raise UserError(
            f"{image} is {size[0]}x{size[1]} but its annotation says {declared[0]}x{declared[1]};"
            f" the images of {spec.name} do not belong to these annotations"
        )
    return canonical_json(entry["annotations"]).encode()


def _check_captions(spec: DatasetSpec, image: Path, captions: Sequence[str]) -> None:
    # retrieval scores are comparable only over the same captions
    expected = spec.extra.get("captions_per_image", len(captions))
    if len(captions) != expected:
        raise UserError(
            f"{image} has {len(captions)} captions instead of {expected}; get the annotation file"
            " again"
        )
    if not all(caption.strip() for caption in captions):
        raise Unreadable("an empty caption")


def decode(
    data: bytes, name: str, *, size_only: bool = False
) -> tuple[Image.Image, tuple[int, int]]:
    """A completely decoded image and its (width, height). With ``size_only`` JPEGs are decoded at
    an eighth of their size, which reads all bytes too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = open_image(io.BytesIO(data))
        size = image.size
        if size_only:
            image.draft("RGB", (1, 1))
        image.load()
    # Pillow raises many kinds for broken files, SyntaxError and struct.error among them
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].split(" <_io.")[0]
        raise Unreadable(f"{name} cannot be decoded: {reason}") from error
    return image, size


def coco_images(spec: DatasetSpec, root: Path, split: Split) -> Instances:
    """The images of a split's annotation file, see ``read_instances``.

    Raises:
        UserError: the file is malformed or has no annotations, or one has a category that the
            declaration lacks, a box outside its image or an invalid mask.
    """
    path = require_file(root, spec.annotations[split])
    categories, images = read_instances(path)
    classes = set(spec.class_names(root))
    with report_malformed(f"{path} is not a COCO annotation file"):
        for image in images.values():
            for annotation in image["annotations"]:
                name = f"{path} annotation {annotation['id']}"
                category = categories.get(annotation["category_id"])
                if category not in classes:
                    raise UserError(
                        f"{name} has category {annotation['category_id']} ({category}), which is"
                        f" not one of the {len(classes)} classes of {spec.name}"
                    )
                check_instance(name, annotation, (image["width"], image["height"]))
    if not any(image["annotations"] for image in images.values()):
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
