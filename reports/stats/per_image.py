"""Per-image scores → a task's metrics over any resample of images, as the probe computes them over
all.

Retrieval keeps the ranks found among all images and captions: the query is resampled, the gallery
stays whole.
"""

from __future__ import annotations

import gzip
import json
import zipfile
import zlib
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from reports.detections import FILE as DETECTIONS
from reports.detections import TYPES, Columns, to_columns
from reports.errors import damaged
from reports.mlflow.query import Store, StoredRun
from reports.stats.average_precision import Matches, image_f1

Weights = np.ndarray
OLDER_DETECTIONS = "detections.json.gz"  # a COCO result list, of older stores
DETECTION_WORK = (
    1_000_000  # right detections over all IoU thresholds × resamples: a fifth of a second
)


@dataclass(frozen=True)
class ClassScores:
    """What a cell says of each class.

    Attributes:
        metric: ``IoU`` or ``box AP``.
        names: (C,), as the probe kept them, else numbers.
        images: (C,) how many hold an object or a pixel of it.
        values: (C,) percent; NaN where there is none.
    """

    metric: str
    names: tuple[str, ...]
    images: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class ImageScores:
    """What a cell says of each image.

    Attributes:
        images: names, sorted; the columns of weights.
        metrics: metric → function from weights (R, N), how often each image is in each resample, to
            values (R,).
        each: (N,) one score an image, to choose pictures by; NaN where it has none.
        each_name, each_sign: its name, and +1 where higher is better.
        most_resamples: more resamples than this would take too long.
        classes: the metric of each class, of kinds that have them.
    """

    images: tuple[str, ...]
    metrics: dict[str, Callable[[Weights], np.ndarray]]
    each: np.ndarray
    each_name: str
    each_sign: int
    most_resamples: int = 1_000_000
    classes: ClassScores | None = None


def load_scores(store: Store, run: StoredRun, kind: str) -> ImageScores | None:
    """The per-image scores of a task's run; None where it kept none.

    Raises:
        TrackingError: the artifact is there but cannot be read.
    """
    path = store.artifact(run, "per_image.npz")
    if path is None:
        return None
    names = (DETECTIONS, OLDER_DETECTIONS) if kind == "detection" else ()
    found = next(filter(None, (store.artifact(run, name) for name in names)), None)
    try:
        arrays, detections = _arrays(path), None
        if found is not None and found.suffix == ".gz":
            detections = to_columns(json.loads(gzip.decompress(found.read_bytes())))
        elif found is not None:
            detections = _arrays(found, TYPES)
        return image_scores(kind, arrays, detections)
    except (
        ValueError,
        TypeError,
        OSError,
        KeyError,
        IndexError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise damaged(path.name, run.id, run.name, error) from error


def _arrays(path: Path, wanted: Container[str] | None = None) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files if wanted is None or name in wanted}


def image_scores(
    kind: str, arrays: dict[str, np.ndarray], detections: Columns | None = None
) -> ImageScores | None:
    """See ``ImageScores``; None for a kind that keeps nothing per image.

    Args:
        arrays: as the probes write them, first axis images, with ``image``; ``classes`` are names.
    """
    named = arrays.get("classes")
    arrays = {name: values for name, values in arrays.items() if name != "classes"}
    order = np.argsort(arrays["image"], kind="stable")
    count = len(order)
    arrays = {
        name: values[order] if values.shape[:1] == (count,) else values
        for name, values in arrays.items()
    }
    images = tuple(str(name) for name in arrays["image"])
    build = {
        "depth": _depth,
        "normals": _normals,
        "classification": _classification,
        "image-text": _retrieval,
        "association": _association,
        "correspondence": _correspondence,
    }
    if kind in build:
        return build[kind](images, arrays)
    scores = _detection(images, arrays, detections) if kind == "detection" else None
    scores = _segmentation(images, arrays) if kind == "segmentation" else scores
    if (
        scores is None
        or scores.classes is None
        or named is None
        or len(named) != len(scores.classes.names)
    ):
        return scores
    return replace(scores, classes=replace(scores.classes, names=tuple(map(str, named))))


def _segmentation(images: tuple[str, ...], arrays: dict[str, np.ndarray]) -> ImageScores:
    hit, predicted, true = (
        arrays[name].astype(np.float64) for name in ("intersection", "prediction", "label")
    )

    def iou(weights: Weights) -> np.ndarray:
        return _nanmean(_ratio(weights @ hit, weights @ (predicted + true - hit)))

    def accuracy(weights: Weights) -> np.ndarray:
        return _nanmean(_ratio(weights @ hit, weights @ true))

    def overall(weights: Weights) -> np.ndarray:
        return _ratio(weights @ hit.sum(axis=1), weights @ true.sum(axis=1))

    each = _nanmean(_ratio(hit, predicted + true - hit))
    classes = _classes("IoU", true, _ratio(hit.sum(axis=0), (predicted + true - hit).sum(axis=0)))
    metrics: dict[str, Callable[[Weights], np.ndarray]] = {
        "mIoU": iou,
        "mAcc": accuracy,
        "aAcc": overall,
    }
    return ImageScores(images, metrics, each, "mIoU of the image", 1, classes=classes)


def _classes(metric: str, there: np.ndarray, values: np.ndarray) -> ClassScores:
    return ClassScores(metric, tuple(map(str, range(len(values)))), (there > 0).sum(axis=0), values)


def _depth(images: tuple[str, ...], arrays: dict[str, np.ndarray]) -> ImageScores:
    names = [name for name in arrays if name not in ("image", "pixels")]
    metrics = {name: _weighted(arrays[name], np.ones(len(images))) for name in names}
    return ImageScores(images, metrics, arrays["abs_rel"], "abs_rel", -1)


def _normals(images: tuple[str, ...], arrays: dict[str, np.ndarray]) -> ImageScores:
    shares = [name for name in arrays if name.startswith("normal_") and name != "normal_median"]
    metrics = {
        name: _weighted(arrays[name], arrays["pixels"].astype(np.float64)) for name in shares
    }
    metrics["normal_image_mean"] = _weighted(arrays["normal_mean"], np.ones(len(images)))
    if (
        "error_histogram" in arrays
    ):  # the median over all pixels does not follow from the images' medians
        metrics["normal_median"] = _histogram_median(arrays["error_histogram"].astype(np.float32))
    return ImageScores(images, metrics, arrays["normal_mean"], "normal_mean", -1)


def _histogram_median(counts: np.ndarray) -> Callable[[Weights], np.ndarray]:
    """The median error in degrees of all pixels of a resample, from (N, bins) pixels by error, in
    bins of equal width over [0°, 180°]; within a bin they lie evenly."""

    def median(weights: Weights) -> np.ndarray:
        so_far = np.cumsum(weights.astype(np.float32) @ counts, axis=1, dtype=np.float64)
        half = so_far[:, -1:] / 2
        place = np.minimum((so_far < half).sum(axis=1, keepdims=True), counts.shape[1] - 1)
        above = np.take_along_axis(so_far, place, axis=1)
        below = np.where(
            place > 0, np.take_along_axis(so_far, np.maximum(place - 1, 0), axis=1), 0.0
        )
        within = np.divide(
            half - below, above - below, out=np.full(half.shape, np.nan), where=above > below
        )
        return (place + within)[:, 0] * 180 / counts.shape[1]

    return median


def _classification(images: tuple[str, ...], arrays: dict[str, np.ndarray]) -> ImageScores:
    rank = arrays["rank"]
    metrics = {f"top{k}": _weighted(100.0 * (rank < k), np.ones(len(images))) for k in (1, 5)}
    if "prediction" in arrays:
        metrics |= _by_class(rank == 0, arrays["label"], arrays["prediction"])
    if "group" in arrays:
        member = arrays["group"][:, None] == np.unique(arrays["group"])
        for k in (1, 5):
            metrics[f"worst_group_top{k}"] = _worst(member & (rank < k)[:, None], member)
    return ImageScores(images, metrics, -rank.astype(np.float64), "rank of the true class", 1)


def _by_class(
    hit: np.ndarray, label: np.ndarray, prediction: np.ndarray
) -> dict[str, Callable[[Weights], np.ndarray]]:
    """Mean per-class recall and macro F1 over the classes that a resample has."""
    shape = len(label), 1 + int(max(label.max(), prediction.max()))

    def counted(weights: Weights, classes: np.ndarray, values: np.ndarray) -> np.ndarray:
        """(R, classes): the weighted sum of the images of each class."""
        return weights @ csr_array(
            (values.astype(np.float64), (np.arange(len(classes)), classes)), shape
        )

    ones = np.ones(len(label))

    def recall(weights: Weights) -> np.ndarray:
        return _nanmean(_ratio(counted(weights, label, hit), counted(weights, label, ones)))

    def f1(weights: Weights) -> np.ndarray:
        true, predicted = (counted(weights, each, ones) for each in (label, prediction))
        found = _ratio(2 * counted(weights, label, hit), true + predicted)
        return _nanmean(np.where(true > 0, found, np.nan))

    return {"mean_per_class_recall": recall, "f1_macro": f1}


def _worst(hit: np.ndarray, member: np.ndarray) -> Callable[[Weights], np.ndarray]:
    """The least share of hits of a group, of those that a resample has."""
    hit, member = hit.astype(np.float64), member.astype(np.float64)
    return lambda weights: np.nanmin(
        np.nan_to_num(_ratio(weights @ hit, weights @ member), nan=np.inf), axis=1
    )


def _association(images: tuple[str, ...], arrays: dict[str, np.ndarray]) -> ImageScores:
    score, sizes = arrays["jaccard"], arrays["candidates"]
    parts = {"jaccard_10-12": sizes >= 10, "jaccard_5-6": sizes <= 6, "jaccard": sizes > 0}
    metrics = {name: _weighted(score, part.astype(np.float64)) for name, part in parts.items()}
    return ImageScores(images, metrics, score, "Jaccard index", 1)


def _correspondence(images: tuple[str, ...], arrays: dict[str, np.ndarray]) -> ImageScores:
    """The images are pairs."""
    points = arrays["points"].astype(np.float64)
    share = {name: _ratio(arrays[f"right_{name}"], points) for name in ("0.05", "0.1")}
    metrics = {
        f"PCK@{name}": _weighted(share[name], np.ones(len(images))) for name in ("0.1", "0.05")
    }
    metrics["PCK@0.1_point"] = _weighted(share["0.1"], points)
    return ImageScores(images, metrics, share["0.1"], "share of right keypoints", 1)


def _retrieval(images: tuple[str, ...], arrays: dict[str, np.ndarray]) -> ImageScores:
    one, many = arrays["i2t_rank"], arrays["t2i_rank"]
    captions = (many >= 0).sum(axis=1).astype(np.float64)
    metrics = {}
    for k in (1, 5, 10):
        metrics[f"i2t_R@{k}"] = _weighted(100.0 * (one < k), np.ones(len(images)))
        right = 100.0 * ((many >= 0) & (many < k)).sum(axis=1)
        # an image is resampled with all its captions: they are not independent
        metrics[f"t2i_R@{k}"] = _weighted(_ratio(right, captions) / 100, captions)
    ways = [metrics[f"{way}_R@1"] for way in ("i2t", "t2i")]
    metrics["mean_R@1"] = lambda weights: (ways[0](weights) + ways[1](weights)) / 2
    return ImageScores(images, metrics, -one.astype(np.float64), "rank of the right caption", 1)


def _detection(
    images: tuple[str, ...], arrays: dict[str, np.ndarray], detections: Columns | None
) -> ImageScores | None:
    if detections is None or "class_objects" not in arrays:
        return None
    metrics: dict[str, Callable[[Weights], np.ndarray]] = {}
    # what a resample costs grows with these
    right = int(np.unpackbits(detections["bbox_hits"].astype(">u2").view(np.uint8)).sum())
    most = int(np.clip(DETECTION_WORK / max(right, 1), 200, 1000))
    for kind in ("bbox", "segm"):
        if f"{kind}_hits" not in detections:
            continue
        matches = Matches(arrays["image_id"], arrays["class_objects"], detections, kind)
        metrics[f"{kind}_mAP"] = _mean_precision(matches)
        if kind == "bbox":
            each_class = 100 * matches.by_class(np.ones((1, len(images))))[0].mean(axis=1)
    each = image_f1(arrays["image_id"], arrays["class_objects"].sum(axis=1), detections)
    classes = _classes("box AP", arrays["class_objects"], each_class)
    return ImageScores(images, metrics, each, "F-measure at IoU 0.5", 1, most, classes)


def _mean_precision(matches: Matches) -> Callable[[Weights], np.ndarray]:
    return lambda weights: 100 * matches.precision(weights).mean(axis=1)


def _weighted(values: np.ndarray, size: np.ndarray) -> Callable[[Weights], np.ndarray]:
    """Mean of the images' values weighted by ``size``; images whose value is NaN are left out, as
    the probes do."""
    known = ~np.isnan(values) & (size > 0)
    weight = np.where(known, size, 0.0)
    product = np.where(known, values, 0.0) * weight

    def mean(weights: Weights) -> np.ndarray:
        return _ratio(weights @ product, weights @ weight) / 100

    return mean


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Percent; NaN where there is nothing below."""
    return np.divide(
        100 * above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0
    )


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Over the last axis, of those that are there."""
    known = ~np.isnan(values)
    return np.divide(
        np.where(known, values, 0.0).sum(axis=-1),
        known.sum(axis=-1),
        out=np.full(values.shape[:-1], np.nan),
        where=known.any(axis=-1),
    )
