"""What is known of an image: a class for each kind of dataset (``KINDS``) has its fields, the files
that belong to it, what makes a sample unusable, and what of it is hashed.

A dense task's ``Sample.target`` is the path of the map itself, a classification's the index of the
class; that of other kinds is an object of these classes.

``Unreadable`` is raised for a single damaged file, ``UserError`` if the dataset is not what its
declaration says (labels out of range, sizes that differ)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, dataclass_transform

import numpy as np
from PIL import Image

from cliptex_common.errors import UserError, report_malformed
from cliptex_common.files import canonical_json
from cliptex_common.images import (
    IMAGE_ERRORS,
    Instances,
    mask_error,
    open_image,
    read_classes,
    read_instances,
    read_labels,
)
from probes.datasets.base import DatasetSpec, Sample, Split, Unreadable, require_file
from probes.dense.tasks import DENSE_TASKS
from probes.features.files import read_bytes

Vectors = Sequence[Sequence[float]]
Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class SplitToCheck:
    """A split of a copy of a dataset.

    Attributes:
        classes: number of classes.
        instances: of ``Boxes``, see ``coco_images``.
    """

    spec: DatasetSpec
    root: Path
    split: Split
    classes: int
    instances: Instances


@dataclass_transform(frozen_default=True)
class GroundTruth:
    """What is known of an image. Subclasses are frozen dataclasses.

    Attributes:
        declared: what datasets of the kind give in ``DatasetSpec.extra``, and its unit.
        is_relation: it says how images are related, which ``--limit`` would break.
        is_indivisible: no sample may be unreadable.
        path_fields: names of the fields that are ``files``.
    """

    declared: ClassVar[Mapping[str, str]] = {}
    is_relation: ClassVar[bool] = False
    is_indivisible: ClassVar[bool] = False
    path_fields: ClassVar[Sequence[str]] = ()

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True)(cls)

    @property
    def files(self) -> list[str]:
        """Paths of what belongs to the image, relative to the dataset's root."""
        return [getattr(self, name) for name in self.path_fields]

    @property
    def listed(self) -> Any:
        """What listing the samples reads of it, as it is hashed: the fields, or the only one."""
        fields = vars(self)
        return fields if len(fields) > 1 else next(iter(fields.values()))

    def hashed(self, data: SplitToCheck, sample: Sample) -> str:
        """What is hashed besides ``files``."""
        return canonical_json(self.listed)

    def check(self, data: SplitToCheck, image: Path, size: Size) -> None:
        """Check that a sample can be used, whose image is in the file ``image``.

        Raises:
            Unreadable: it cannot.
            UserError: the dataset is not what its declaration says.
        """


class Plain(GroundTruth):
    """A value that is the ``Sample.target`` itself; of kinds that are not in ``KINDS``, too."""

    value: Any


class MapFile(Plain):
    """Of dense tasks: the path of the map. Its family checks what is in it
    (``DenseTask.check_file``) and declares what it needs (``DenseTask.declared``)."""

    value: str
    path_fields = ("value",)

    def hashed(self, data: SplitToCheck, sample: Sample) -> str:
        return ""

    def check(self, data: SplitToCheck, image: Path, size: Size) -> None:
        path, task = data.root / self.value, DENSE_TASKS[data.spec.kind]
        if not task.is_picture:
            try:
                values = task.load(str(path), **task.reading(data.spec, data.classes))
            except UserError as error:
                raise Unreadable(str(error)) from error
            require_size(path, values.shape[1::-1], size)
            return
        label, label_size = decode(read_bytes(path), "label map")
        require_size(path, label_size, size)
        task.check_file(data.spec, data.classes, path, label)


class Labels(Plain):
    """Of ``classification``: the index of the class, or of all that are right."""

    value: int | list[int]

    def hashed(self, data: SplitToCheck, sample: Sample) -> str:
        return str(with_group(self, sample))

    def check(self, data: SplitToCheck, image: Path, size: Size) -> None:
        labels = self.value if isinstance(self.value, list) else [self.value]
        if not all(0 <= label < data.classes for label in labels):
            raise UserError(
                f"{image} has class {self.value}, but {data.spec.name} has {data.classes} classes"
            )


class LabelSet(GroundTruth):
    """Of ``multi-label``: the indices of the classes that an image shows, and of those of which
    nobody has said whether it does."""

    present: Sequence[int] = ()
    unknown: Sequence[int] = ()

    def check(self, data: SplitToCheck, image: Path, size: Size) -> None:
        for label in (*self.present, *self.unknown):
            Labels(label).check(data, image, size)


class Boxes(GroundTruth):
    """Of ``detection``: the boxes and masks of an image in ``DatasetSpec.annotations``, a file in
    COCO's format, by its id there."""

    image_id: int

    def hashed(self, data: SplitToCheck, sample: Sample) -> str:
        return canonical_json(data.instances[self.image_id]["annotations"])

    def check(self, data: SplitToCheck, image: Path, size: Size) -> None:
        entry = data.instances[self.image_id]
        require_size(f"the annotation of {image}", (entry["width"], entry["height"]), size)


class ImageSet(GroundTruth):
    """Of ``unknown-images``: the name of the set that the image is of."""

    name: str


class Captions(GroundTruth):
    """Of ``image-text``: texts that describe the image."""

    texts: Sequence[str]

    def check(self, data: SplitToCheck, image: Path, size: Size) -> None:
        # retrieval scores are comparable only over the same captions
        expected = data.spec.extra.get("captions_per_image", len(self.texts))
        if len(self.texts) != expected:
            raise UserError(
                f"{image} has {len(self.texts)} captions instead of {expected}; get the annotation"
                " file again"
            )
        if not all(text.strip() for text in self.texts):
            raise Unreadable("an empty caption")


class Question(NamedTuple):
    """Which of several images, this one among them, belong to a cue.

    Attributes:
        number: the same for all images of the question.
        is_associated: whether this one does.
    """

    number: int
    cue: str
    is_associated: bool


class Associations(GroundTruth):
    """Of ``association``: the questions that the image is a candidate of."""

    questions: Sequence[Question]
    is_relation = True


class KeypointPair(NamedTuple):
    """The points of an object that an image and another one show.

    Attributes:
        image: the other one.
        source: points in the image: (x, y) in pixels.
        target: the same points in the other one.
        box: of the object there: left, top, right, bottom in pixels.
    """

    image: str
    source: Vectors
    target: Vectors
    box: Sequence[float]


class Correspondences(GroundTruth):
    """Of ``correspondence``: the pairs that the image is the source of."""

    pairs: Sequence[KeypointPair]
    is_relation = True

    @property
    def listed(self) -> list[dict[str, Any]]:
        return [pair._asdict() for pair in self.pairs]


class Objects(GroundTruth):
    """Of ``objects``, whatever their classes.

    Attributes:
        boxes: left, top, right, bottom in pixels, of which the last two are excluded.
        mask: path of a map of classes: 0 for no object, 255 for unknown; '' for none.
    """

    boxes: Vectors = ()
    mask: str = ""

    @property
    def files(self) -> list[str]:
        return [self.mask] if self.mask else []

    @property
    def listed(self) -> Any:
        return self.boxes

    def check(self, data: SplitToCheck, image: Path, size: Size) -> None:
        for name in self.files:
            _, mask_size = decode(read_bytes(data.root / name), name)
            require_size(data.root / name, mask_size, size)


class GalleryImage(GroundTruth):
    """Of ``instance-retrieval``.

    Attributes:
        gallery: that the image is in; '' if none.
        searches: the gallery that it is a query of; '' if none. The others are of queries.
        box: of what is searched for: left, top, right, bottom in pixels; empty for all of it.
        positives, junk: level → images of the gallery that are right, and that do not count.
    """

    gallery: str = ""
    searches: str = ""
    box: Sequence[float] = ()
    positives: Mapping[str, Sequence[str]] = field(default_factory=dict)
    junk: Mapping[str, Sequence[str]] = field(default_factory=dict)
    is_relation = True
    declared: ClassVar = {"average_precision": "'steps' or 'trapezoids'"}

    @property
    def listed(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value}


class Triplet(GroundTruth):
    """Of ``triplets``: two images, one of which people find more like the sample's.

    Attributes:
        left, right: their paths.
        right_share: of the people who find the right one more like it, 0 to 1.
        votes: how many people were asked.
        subset: name of the part of the dataset, by which scores are told apart, too.
    """

    left: str
    right: str
    right_share: float
    votes: int
    subset: str
    path_fields = ("left", "right")

    def check(self, data: SplitToCheck, image: Path, size: Size) -> None:
        for path in self.files:
            decode(read_bytes(data.root / path), path)


class ObjectMasks(GroundTruth):
    """Of ``video``: the path of the masks of a frame: a number for each object, 0 for background,
    255 for unknown. The first frame shows every object."""

    path: str
    is_relation = is_indivisible = True
    path_fields = ("path",)

    def check(self, data: SplitToCheck, image: Path, size: Size) -> None:
        path = data.root / self.path
        try:
            masks = read_classes(path)
        except IMAGE_ERRORS as error:
            raise UserError(f"{path} cannot be read ({error}); get the file again") from error
        require_size(path, masks.shape[::-1], size)
        if int(path.stem) == 0:
            objects = set(np.unique(masks).tolist()) - {0, 255}
            if empty := set(range(1, max(objects, default=1) + 1)) - objects:
                raise UserError(f"{path}: object {min(empty)} has no pixel in the first frame")


class View(GroundTruth):
    """Of ``object-views`` and ``scene-views``.

    Attributes:
        rotation, translation: from the world to the camera: 3 × 3, and metres.
        camera: its 3 × 3 matrix, in pixels; of objects its focal length in short sides of the
            image.
        pairs: the other images of the pairs that are listed.
        depth: path of its depth.
    """

    rotation: Vectors
    translation: Sequence[float]
    camera: Vectors | float
    pairs: Sequence[str]
    depth: str
    is_relation = is_indivisible = True
    path_fields = ("depth",)

    @property
    def listed(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "depth"}

    def check(self, data: SplitToCheck, image: Path, size: Size) -> None:
        path = data.root / self.depth
        depth, _ = decode(read_bytes(path), path.name)
        if not np.asarray(depth).any():
            raise Unreadable(f"{path.name} has no pixel with a depth")


class CameraPose(GroundTruth):
    """Of ``view-pose``: from the world to the camera of a view.

    Attributes:
        rotation: a quaternion (w, x, y, z).
        translation: in metres.
    """

    rotation: Sequence[float]
    translation: Sequence[float]


KINDS: Mapping[str, type[GroundTruth]] = {
    "detection": Boxes,
    "classification": Labels,
    "multi-label": LabelSet,
    "unknown-images": ImageSet,
    "image-text": Captions,
    "association": Associations,
    "warped-images": Plain,
    "correspondence": Correspondences,
    "instance-retrieval": GalleryImage,
    "triplets": Triplet,
    "video": ObjectMasks,
    "objects": Objects,
    "object-views": View,
    "scene-views": View,
    "view-pose": CameraPose,
}


def class_of(kind: str) -> type[GroundTruth]:
    """The ground truth of datasets of a kind."""
    return MapFile if kind in DENSE_TASKS else KINDS.get(kind, Plain)


def ground_truth(spec: DatasetSpec, sample: Sample) -> GroundTruth:
    """That of a sample. Raises ``UserError`` if its target is not of its kind's class."""
    expected = class_of(spec.kind)
    if issubclass(expected, Plain):
        return expected(sample.target)
    if not isinstance(sample.target, expected):
        raise UserError(
            f"{sample.image} has the target {sample.target!r:.60}; datasets of kind {spec.kind}"
            f" have probes.datasets.ground_truth.{expected.__name__}"
        )
    return sample.target


def with_group(truth: GroundTruth, sample: Sample) -> Any:
    """What is listed of a sample and its group, if it has one, as they are hashed."""
    return truth.listed if sample.group is None else [truth.listed, sample.group]


def require_size(name: object, size: Sequence[int], of_image: Size) -> None:
    """Raise ``UserError`` if what belongs to an image has another (width, height)."""
    if tuple(size) != of_image:
        raise UserError(
            f"{name} is {size[0]}x{size[1]} but its image is {of_image[0]}x{of_image[1]}: they do"
            " not belong together"
        )


def require_labels(data: SplitToCheck, samples: Sequence[Sample]) -> None:
    """Raise ``UserError`` if no label map of a split has a class."""
    spec = data.spec
    options = spec.label_offset, spec.ignore_index, data.classes
    paths = (str(data.root / sample.target) for sample in samples)
    if spec.kind == "segmentation" and all(
        (read_labels(path, *options) == spec.ignore_index).all() for path in paths
    ):
        raise UserError(
            f"{spec.name}: no image of {data.split} has a labelled pixel (in {data.root}); correct"
            " the label maps, or ignore_index and label_offset"
        )


def coco_images(spec: DatasetSpec, root: Path, split: Split) -> Instances:
    """The images of a split's annotation file, see ``cliptex_common.images.read_instances``.

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
