"""The probes that match patches or whole images, without training: their settings, every field of
which is part of a task's identity, their metrics in percent as functions of how often each object
or pair counts (see ``reports.per_image``), and their declarations. Importing this imports nothing
that computes but numpy."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from cliptex_common.metrics import Arrays, mean_of_images
from cliptex_common.settings import Axis, settings_dataclass
from probes.base import FeatureProbe, KeypointLayers
from probes.image_level.settings import EmbeddingSettings, EncodeSettings, Encoding
from probes.registry import register_probe
from reports.per_image import SCORERS, ImageScores
from reports.records import KIND_LEVELS, Metric

NO_POSITIVE = -1.0  # the average precision of a query without any


@settings_dataclass
class InstanceSettings(EmbeddingSettings):
    """Protocol of instance retrieval.

    Attributes:
        size: of the long side, or of the squares; none for the backbone's own.
        resize: ``long-side``: images keep their shape, each side rounded to the backbone's divisor;
            ``square``: they are squeezed to squares. Nothing is cut off.
        crop_queries: a query that has a box is this part of its image alone, as its authors ask;
            without it the complete image, as DINO's code takes it.
    """

    resize: Literal["long-side", "square"] = "long-side"
    crop_queries: bool = True

    def feeds_only(self, size: tuple[int, int]) -> bool:
        """Whether the backbone sees images of ``size`` only, which is its own."""
        return self.resize == "square" and super().feeds_only(size)


def instance_retrieval(images: tuple[str, ...], arrays: Arrays) -> ImageScores:
    """``mAP_LEVEL``, the mean of the queries' ``AP_LEVEL`` without those that have no positive; the
    images are queries."""
    precisions = {
        f"mAP_{level}": np.where(values == NO_POSITIVE, np.nan, values)
        for level in ("hard", "medium", "easy", "all")
        if (values := arrays.get(f"AP_{level}")) is not None
    }
    metrics = {name: partial(mean_of_images, values) for name, values in precisions.items()}
    main = next(iter(precisions.values()))
    return ImageScores(images, metrics, lambda: main, "average precision", 1)


SCORERS.register("instance-retrieval", instance_retrieval)
RETRIEVAL = register_probe(
    FeatureProbe(
        "retrieval",
        "instance-retrieval",
        InstanceSettings,
        {
            "mAP_hard": Metric(label="mAP hard"),
            "mAP_medium": Metric(label="mAP medium", shown=True),
            "mAP_easy": Metric(label="mAP easy", shown=True),
        },
        "probes.matching.instances",
        splits=("val",),
        other_metrics={"mAP_all": Metric(label="mAP")},
    )
)


# kind → (recall, unit of the error, limit); the first is the main one
RECALLS: dict[str, list[tuple[str, str, float]]] = {
    "object-views": [
        ("recall_2cm", "m", 0.02),
        ("recall_1cm", "m", 0.01),
        ("recall_5cm", "m", 0.05),
        ("recall_5px", "px", 5),
        ("recall_25px", "px", 25),
        ("recall_50px", "px", 50),
    ],
    "scene-views": [("recall_10px", "px", 10), ("recall_5px", "px", 5), ("recall_20px", "px", 20)],
}
ANGLES = {"object-views": (0, 30, 60, 90, 120), "scene-views": (0, 15, 30, 60, 180)}


def video(images: tuple[str, ...], arrays: Arrays) -> ImageScores:
    """``J``, ``F`` and their mean ``J_and_F``, means over objects, which are the images."""
    scores = {"J_and_F": (arrays["J"] + arrays["F"]) / 2, "J": arrays["J"], "F": arrays["F"]}
    metrics = {name: partial(mean_of_images, 100 * score) for name, score in scores.items()}
    return ImageScores(images, metrics, lambda: 100 * scores["J_and_F"], "J&F", 1)


def view_pairs(kind: str, images: tuple[str, ...], arrays: Arrays) -> ImageScores:
    """``recall_…`` within a distance, means over pairs, which are the images; the main one also of
    the pairs whose ``angle`` is in a bin: ``recall_…_0-30``."""
    scores = {name: arrays[name] for name, _, _ in RECALLS[kind]}
    main, angle = next(iter(scores)), arrays["angle"]
    for (low, high), name in zip(pairwise(ANGLES[kind]), binned_recalls(kind), strict=True):
        scores[name] = np.where((angle >= low) & (angle < high), scores[main], np.nan)
    metrics = {name: partial(mean_of_images, 100 * score) for name, score in scores.items()}
    return ImageScores(images, metrics, lambda: 100 * scores[main], "recall", 1)


def binned_recalls(kind: str) -> list[str]:
    """Names of the recalls by bins of the angle."""
    return [f"{RECALLS[kind][0][0]}_{low}-{high}" for low, high in pairwise(ANGLES[kind])]


SCORERS.register("video", video)
for _kind in ANGLES:
    SCORERS.register(_kind, partial(view_pairs, _kind))


def grouping(images: tuple[str, ...], arrays: Arrays) -> ImageScores:
    """Means over the images that have boxes or masks of what ``tokencut`` stores of each."""
    names = [name for name in GROUPING if name in arrays]
    metrics = {name: partial(mean_of_images, 100 * arrays[name]) for name in names}
    return ImageScores(images, metrics, lambda: 100 * arrays[names[0]], names[0], 1)


SCORERS.register("objects", grouping)

PIXELS = (10, 5, 2, 1)  # limits of errors of warped images, in those of a square of 224
RECALLS["warped-images"] = [(f"recall_{limit}px", "px", limit) for limit in PIXELS]


def warped_images(images: tuple[str, ...], arrays: Arrays) -> ImageScores:
    """Means over images of what ``homography`` stores of each."""
    metrics = {name: partial(mean_of_images, 100 * arrays[name]) for name in WARPED}
    main = RECALLS["warped-images"][0][0]
    return ImageScores(images, metrics, lambda: 100 * arrays[main], "recall", 1)


SCORERS.register("warped-images", warped_images)


def view_poses(images: tuple[str, ...], arrays: Arrays) -> ImageScores:
    """Means over pairs, which are the images, of the errors of poses."""
    turn = arrays["rotation"]
    scores = {"rotation_error": turn, "translation_error": arrays["translation"]}
    scores |= {f"rotation_{limit}": 100.0 * (turn <= limit) for limit in (15, 30)}
    metrics = {name: partial(mean_of_images, score) for name, score in scores.items()}
    return ImageScores(images, metrics, lambda: turn, "rotation error", -1)


SCORERS.register("view-pose", view_poses)
KINDS = (*RECALLS, "objects", "correspondence", "video", "view-pose")
KIND_LEVELS.update(dict.fromkeys(KINDS, "mid"))


@settings_dataclass
class LabelPropagationSettings(EncodeSettings):
    """Protocol of label propagation; the defaults are DINO's.

    Attributes:
        size: short side of frames in pixels.
        resize: ``dino``: OpenCV's bilinear, the long side rounded down to 64 pixels (then both
            sides up to the backbone's divisor); ``dinov3``: Pillow's bicubic, both sides rounded up
            to that divisor.
        encode_batch_size: frames that the backbone sees at once.
        layers: whose feature map is matched: the ``last`` of the backbone's own, or one layer, by
            its number from 1 on or as a share of the depth (``50%``).
        previous_frames: whose labels are read, beside the first frame.
        neighbourhood, radius: patches at most ``radius`` away, in a ``square`` or a ``circle``.
        neighbours: so many most similar patches give a patch its label.
        temperature: a neighbour at cosine s counts exp(s / temperature).
        upsampling: of labels to the frame, before each pixel gets its best one.
    """

    size: Annotated[PositiveInt | None, Axis()] = 480
    resize: Literal["dino", "dinov3"] = "dino"
    encode_batch_size: PositiveInt | None = 8
    layers: KeypointLayers = "last"
    previous_frames: PositiveInt = 7
    neighbourhood: Literal["square", "circle"] = "square"
    radius: PositiveInt = 12
    neighbours: Annotated[PositiveInt, Axis("k")] = 5
    temperature: PositiveFloat = 0.1
    upsampling: Literal["bilinear", "nearest"] = "bilinear"

    def feeds_only(self, size: tuple[int, int]) -> bool:
        """No: the size follows from that of the frames."""
        return False


@settings_dataclass
class SceneViewSettings(EncodeSettings):
    """Protocol of the matching of views of rooms; the defaults are probe3d's.

    Attributes:
        size: short side of images in pixels.
        encode_batch_size: views that the backbone sees at once.
        layers: whose feature map is matched, see ``LabelPropagationSettings``.
        matches: the clearest of a pair, which are scored; fewer where there are fewer points.
    """

    size: Annotated[PositiveInt, Axis()] = 480
    encode_batch_size: PositiveInt | None = 8
    layers: KeypointLayers = "last"
    matches: PositiveInt = 1000

    def feeds_only(self, size: tuple[int, int]) -> bool:
        """No: images are not square."""
        return False


@settings_dataclass
class ObjectViewSettings(SceneViewSettings):
    """Protocol of the matching of views of objects; the defaults are probe3d's.

    Attributes:
        size: side in pixels of the square around the object.
        pairs: ``sampled``: to every fourth image another one at random, at most 120 degrees away;
            or those that are ``listed`` with the dataset.
    """

    size: Annotated[PositiveInt, Axis()] = 512
    pairs: Literal["sampled", "listed"] = "sampled"

    def feeds_only(self, size: tuple[int, int]) -> bool:
        """Whether the square is of ``size``."""
        return size == (self.size, self.size)


@settings_dataclass
class HomographySettings(SceneViewSettings):
    """Protocol of the matching of images with their warped copies.

    Attributes:
        size: side in pixels of the square in the middle of an image, rounded up to the backbone's
            divisor; errors are in pixels of a square of 224, whatever it is.
        warp: share of the side by which each corner moves at most, across and down.
    """

    size: Annotated[PositiveInt, Axis()] = 224
    warp: Annotated[float, Field(gt=0, lt=0.5), Axis()] = 0.2

    def feeds_only(self, size: tuple[int, int]) -> bool:
        """Whether the square is of ``size``."""
        return size == (self.size, self.size)


@settings_dataclass
class RelativePoseSettings(EmbeddingSettings):
    """Protocol of relative poses; the defaults are VisBench's.

    Attributes:
        partners: of each view of train, at most; a view of val has one.
        max_angle: between the cameras of a pair, in degrees.
        pair_seed: of the pairs.
        widths: of the hidden layers.
        epochs: passes of AdamW over the pairs of train; a cosine takes its rate to zero.
    """

    partners: PositiveInt = 8
    max_angle: Annotated[float, Field(gt=0, le=180)] = 120.0
    pair_seed: NonNegativeInt = 8
    widths: tuple[PositiveInt, ...] = (512, 256, 128)
    epochs: PositiveInt = 30
    batch_size: Annotated[int, Field(ge=2)] = 128
    lr: PositiveFloat = 0.001
    weight_decay: NonNegativeFloat = 0.0001

    def encoding(self, device: str) -> Encoding:
        return replace(super().encoding(device), upright=True)


@settings_dataclass
class GroupingSettings(EncodeSettings):
    """Protocol of TokenCut.

    Attributes:
        size: long side of images in pixels; none for their own.
        encode_batch_size: images that the backbone sees at once.
        layers: whose feature map is cut, see ``LabelPropagationSettings``.
        threshold: cosine above which patches are alike; the authors' τ.
    """

    encode_batch_size: PositiveInt | None = 8
    layers: KeypointLayers = "last"
    threshold: Annotated[float, Field(gt=-1, lt=1), Axis()] = 0.2

    def feeds_only(self, size: tuple[int, int]) -> bool:
        """No: images keep their shape."""
        return False


MASKS = {
    "J_and_F": Metric(label="J&F"),
    "J": Metric(label="J (region)", shown=True),
    "F": Metric(label="F (contour)", shown=True),
}
untrained = partial(FeatureProbe, splits=("val",))


def recalls(kind: str) -> dict[str, Metric]:
    """The metrics of views, the main one first."""
    names = [name for name, _, _ in RECALLS[kind]] + binned_recalls(kind)
    return {name: Metric(label=_label(name), shown=name in names[1:3]) for name in names}


def _label(name: str) -> str:
    """``recall within 2 cm, 0-30°``."""
    _, distance, *angles = name.split("_")
    text = f"recall within {distance[:-2]} {distance[-2:]}"
    return f"{text}, {angles[0]}°" if angles else text


LABEL_PROPAGATION = register_probe(
    untrained(
        "label-propagation",
        "video",
        LabelPropagationSettings,
        MASKS,
        "probes.matching.videos",
        version=2,
    )
)
OBJECT_VIEWS, SCENE_VIEWS = (
    register_probe(
        untrained(
            "view-matching",
            kind,
            settings,
            recalls(kind),
            "probes.matching.views",
        )
    )
    for kind, settings in (("object-views", ObjectViewSettings), ("scene-views", SceneViewSettings))
)
# with each score the ceiling of the grid: what a match is that is always the nearest patch
WARPED = {
    f"{prefix}{name}_{limit}px": Metric(
        label=f"{words}{label} {limit} px",
        shown=not prefix and limit > 2 and name == "recall",  # the ceiling stands beside the score
    )
    for limit in PIXELS
    for prefix, words in (("", ""), ("ceiling_", "ceiling of the grid: "))
    for name, label in (("recall", "recall within"), ("auc", "area below recall up to"))
}
HOMOGRAPHY = register_probe(
    untrained(
        "homography", "warped-images", HomographySettings, WARPED, "probes.matching.homographies"
    )
)
GROUPING = {
    "CorLoc": Metric(),
    "IoU": Metric(shown=True),
    "F": Metric(label="F (boundary)", shown=True),
    "ceiling_F": Metric(label="ceiling of F"),
    **{
        f"{bound}_{name}": Metric(label=f"{bound} of {name}")
        for name in ("CorLoc", "IoU")
        for bound in ("ceiling", "floor")
    },
}
TOKENCUT = register_probe(
    untrained(
        "tokencut",
        "objects",
        GroupingSettings,
        GROUPING,
        "probes.matching.grouping",
        other_metrics={"IoU": GROUPING["IoU"]},
        version=2,
    )
)
RELATIVE_POSE = register_probe(
    FeatureProbe(
        "relative-pose",
        "view-pose",
        RelativePoseSettings,
        {
            "rotation_error": Metric(-1, "°", 0.0, 180.0, "rotation error"),
            "translation_error": Metric(-1, "m", 0.0, None, "translation error", True),
            "rotation_15": Metric(label="within 15°", shown=True),
            "rotation_30": Metric(label="within 30°", shown=True),
        },
        "probes.matching.poses",
    )
)
