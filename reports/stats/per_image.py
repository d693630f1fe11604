"""Per-image scores → a task's metrics over any resample of images, as the probe computes them.

Retrieval uses the ranks among all images and captions: the queries are resampled, the gallery is
fixed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array

from cliptex_common.registry import Registry
from reports.artifacts import DETECTIONS, PER_IMAGE
from reports.cell import Cell
from reports.detections import TYPES, Columns
from reports.errors import damaged
from reports.mlflow.query import Store
from reports.stats.average_precision import Matches, image_f1

Weights = np.ndarray
Metric = Callable[[Weights], np.ndarray]
# correct detections over all IoU thresholds × resamples: a fifth of a second
DETECTION_WORK = 1_000_000
TOLERANCE = 1e-3  # relative difference between a metric and its value from per-image scores


@dataclass(frozen=True)
class ClassScores:
    """The scores of each of C classes.

    Attributes:
        metric: ``IoU`` or ``box AP``.
        names: (C,), as the probe stored them, else numbers.
        images: (C,) number of images with an object or a pixel of the class.
        values: (C,) percent; NaN without any.
    """

    metric: str
    names: tuple[str, ...]
    images: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class ImageScores:
    """The scores of each of N images.

    Attributes:
        images: names, sorted.
        units: names of the U units that are resampled: the images, or what they are made of.
        metrics: metric → function from weights (R, U), how often each unit is in each resample, to
            values (R,).
        each: (N,) one score an image, to choose pictures by; NaN where it has none.
        each_name, each_sign: its name, and +1 where higher is better.
        most_resamples: more resamples than this would take too long.
        classes: the metric of each class, for kinds that have classes.
    """

    images: tuple[str, ...]
    metrics: dict[str, Metric]
    each: np.ndarray
    each_name: str
    each_sign: int
    most_resamples: int = 1_000_000
    classes: ClassScores | None = None
    units: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.units:
            object.__setattr__(self, "units", self.images)

    def resampled_by(self, members: np.ndarray) -> ImageScores:
        """The same over resamples of units: an image has the product of its units' weights.

        Pairs of images that recur are not independent, but the images are (the pigeonhole
        bootstrap; Owen, Ann. Appl. Stat. 1, 2007).

        Args:
            members: (N,) or (N, k) names of each image's units.
        """
        units, index = np.unique(members, return_inverse=True)
        index = index.reshape(len(members), -1)

        def over_units(metric: Metric) -> Metric:
            def compute(weights: Weights) -> np.ndarray:
                product = weights[:, index[:, 0]]
                for column in index.T[1:]:
                    product = product * weights[:, column]
                return metric(product)

            return compute

        metrics = {name: over_units(metric) for name, metric in self.metrics.items()}
        return replace(self, units=tuple(map(str, units)), metrics=metrics)

    def value(self, metric: str) -> float:
        """The metric over all images."""
        return float(self.metrics[metric](np.ones((1, len(self.units)), np.float32))[0])


def agrees(computed: ArrayLike, stored: ArrayLike) -> np.ndarray:
    """Whether stored metrics are those that their per-image scores give; of the shape of both."""
    return np.isclose(computed, stored, rtol=TOLERANCE, atol=1e-6)


def load_scores(store: Store, cell: Cell) -> ImageScores | None:
    """The per-image scores of a cell; None if it stored none.

    Raises:
        TrackingError: the artifact exists but cannot be read.
    """
    arrays = store.arrays(cell, PER_IMAGE)
    detections = store.arrays(cell, DETECTIONS, TYPES) if cell.kind == "detection" else None
    try:
        return image_scores(cell.kind, arrays, detections) if arrays else None
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise damaged(PER_IMAGE, cell.run_id, cell.name, error) from error


def image_scores(
    kind: str, arrays: dict[str, np.ndarray], detections: Columns | None = None
) -> ImageScores | None:
    """See ``ImageScores``; None for a kind without per-image scores.

    Args:
        arrays: as the probes write them, first axis images, with ``image`` and, where these are not
            independent, ``unit``; ``classes`` are names.
    """
    arrays, names = dict(arrays), arrays["image"]
    images, order = _sorted(names.tobytes(), names.dtype)
    if order is not None:
        for name, values in arrays.items():
            if values.shape[:1] == order.shape and name != "classes":
                arrays[name] = values[order]
    if kind == "detection":
        return _detection(images, arrays, detections)
    if kind not in SCORERS:
        return None
    units = arrays.pop("unit", None)
    try:
        scores = SCORERS[kind](images, arrays)
    except Exception:
        if not SCORERS.origin(kind):
            raise
        return None  # another version of the plugin than the one that it ran with
    return scores if units is None else scores.resampled_by(units)


@functools.lru_cache(maxsize=32)  # the data sets of a table
def _sorted(content: bytes, dtype: np.dtype) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Names from their bytes, sorted, and the order that sorts them; None if they are sorted."""
    names = np.frombuffer(content, dtype)
    order = np.argsort(names, kind="stable")
    in_order = np.array_equal(order, np.arange(len(names)))
    return tuple(map(str, names[order])), None if in_order else order


def _segmentation(images: tuple[str, ...], arrays: dict[str, np.ndarray]) -> ImageScores:
    hit, predicted, true = (
        arrays[name].astype(np.float64) for name in ("intersection", "prediction", "label")
    )
    union = predicted + true - hit
    metrics: dict[str, Metric] = {
        "mIoU": lambda weights: _nanmean(_ratio(weights @ hit, weights @ union)),
        "mAcc": lambda weights: _nanmean(_ratio(weights @ hit, weights @ true)),
        "aAcc": lambda weights: _ratio(weights @ hit.sum(axis=1), weights @ true.sum(axis=1)),
    }
    classes = _classes("IoU", arrays, true, _ratio(hit.sum(axis=0), union.sum(axis=0)))
    each = _nanmean(_ratio(hit, union))
    return ImageScores(images, metrics, each, "mIoU of the image", 1, classes=classes)


def _classes(
    metric: str, arrays: dict[str, np.ndarray], amounts: np.ndarray, values: np.ndarray
) -> ClassScores:
    names = tuple(map(str, arrays.get("classes", range(len(values)))))
    return ClassScores(metric, names, (amounts > 0).sum(axis=0), values)


def _depth(images: tuple[str, ...], arrays: dict[str, np.ndarray]) -> ImageScores:
    names = [name for name in arrays if name not in ("image", "pixels")]
    metrics = {name: _weighted(arrays[name]) for name in names}
    return ImageScores(images, metrics, arrays["abs_rel"], "abs_rel", -1)


def _normals(images: tuple[str, ...], arrays: dict[str, np.ndarray]) -> ImageScores:
    shares = [name for name in arrays if name.startswith("normal_") and name != "normal_median"]
    pixels = arrays["pixels"].astype(np.float64)
    metrics = {name: _weighted(arrays[name], pixels) for name in shares}
    metrics |= {name.replace("_", "_image_"): _weighted(arrays[name]) for name in shares}
    if "image_rmse" in arrays:
        metrics["normal_image_rmse"] = _weighted(arrays["image_rmse"])
    if "error_histogram" in arrays:
        metrics["normal_median"] = _histogram_median(arrays["error_histogram"].astype(np.float32))
    return ImageScores(images, metrics, arrays["normal_mean"], "normal_mean", -1)


def _histogram_median(counts: np.ndarray) -> Metric:
    """The median error in degrees over all pixels of a resample.

    Args:
        counts: (N, bins) pixels by error, in bins of equal width over [0°, 180°]; within a bin they
            are taken as uniform.
    """

    def median(weights: Weights) -> np.ndarray:
        total = np.cumsum(weights.astype(np.float32) @ counts, axis=1, dtype=np.float64)
        half = total[:, -1:] / 2
        bin_ = np.minimum((total < half).sum(axis=1, keepdims=True), counts.shape[1] - 1)
        above = np.take_along_axis(total, bin_, axis=1)
        before = np.take_along_axis(total, np.maximum(bin_ - 1, 0), axis=1)
        below = np.where(bin_ > 0, before, 0.0)
        within = np.divide(
            half - below, above - below, out=np.full(half.shape, np.nan), where=above > below
        )
        return (bin_ + within)[:, 0] * 180 / counts.shape[1]

    return median


def _classification(images: tuple[str, ...], arrays: dict[str, np.ndarray]) -> ImageScores:
    rank = arrays["rank"]
    metrics = {f"top{k}": _weighted(100.0 * (rank < k)) for k in (1, 5)}
    if "prediction" in arrays:
        metrics |= _by_class(rank == 0, arrays["label"], arrays["prediction"])
    if "group" in arrays:
        member = arrays["group"][:, None] == np.unique(arrays["group"])
        for k in (1, 5):
            metrics[f"worst_group_top{k}"] = _worst(member & (rank < k)[:, None], member)
    return ImageScores(images, metrics, -rank.astype(np.float64), "rank of the true class", 1)


def _by_class(hit: np.ndarray, label: np.ndarray, prediction: np.ndarray) -> dict[str, Metric]:
    """Mean per-class recall and macro F1 over the classes in a resample."""
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
        ratio = _ratio(2 * counted(weights, label, hit), true + predicted)
        return _nanmean(np.where(true > 0, ratio, np.nan))

    return {"mean_per_class_recall": recall, "f1_macro": f1}


def _worst(hit: np.ndarray, member: np.ndarray) -> Metric:
    """The least share of hits among the groups in a resample."""
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
    metrics = {f"PCK@{name}": _weighted(share[name]) for name in ("0.1", "0.05")}
    metrics["PCK@0.1_point"] = _weighted(share["0.1"], points)
    return ImageScores(images, metrics, share["0.1"], "share of correct keypoints", 1)


def _retrieval(images: tuple[str, ...], arrays: dict[str, np.ndarray]) -> ImageScores:
    image_rank, text_ranks = arrays["i2t_rank"], arrays["t2i_rank"]
    captions = (text_ranks >= 0).sum(axis=1).astype(np.float64)
    metrics = {}
    for k in (1, 5, 10):
        metrics[f"i2t_R@{k}"] = _weighted(100.0 * (image_rank < k))
        hits = 100.0 * ((text_ranks >= 0) & (text_ranks < k)).sum(axis=1)
        # an image is resampled with all its captions: they are not independent
        metrics[f"t2i_R@{k}"] = _weighted(_ratio(hits, captions) / 100, captions)
    ways = [metrics[f"{way}_R@1"] for way in ("i2t", "t2i")]
    metrics["mean_R@1"] = lambda weights: (ways[0](weights) + ways[1](weights)) / 2
    return ImageScores(
        images, metrics, -image_rank.astype(np.float64), "rank of the correct caption", 1
    )


def _detection(
    images: tuple[str, ...], arrays: dict[str, np.ndarray], detections: Columns | None
) -> ImageScores | None:
    if detections is None or "class_objects" not in arrays:
        return None
    metrics: dict[str, Metric] = {}
    hits = int(np.unpackbits(detections["bbox_hits"].astype(">u2").view(np.uint8)).sum())
    most = int(np.clip(DETECTION_WORK / max(hits, 1), 200, 1000))
    for kind in ("bbox", "segm"):
        if f"{kind}_hits" not in detections:
            continue
        matches = Matches(arrays["image_id"], arrays["class_objects"], detections, kind)
        metrics[f"{kind}_mAP"] = _mean_precision(matches)
        if kind == "bbox":
            each_class = 100 * matches.by_class(np.ones((1, len(images))))[0].mean(axis=1)
    each = image_f1(arrays["image_id"], arrays["class_objects"].sum(axis=1), detections)
    classes = _classes("box AP", arrays, arrays["class_objects"], each_class)
    return ImageScores(images, metrics, each, "F-measure at IoU 0.5", 1, most, classes)


def _mean_precision(matches: Matches) -> Metric:
    return lambda weights: 100 * matches.precision(weights).mean(axis=1)


def _weighted(values: np.ndarray, size: np.ndarray | float = 1.0) -> Metric:
    """Mean of the images' values weighted by ``size``, without NaN, as in the probes."""
    valid = ~np.isnan(values) & (size > 0)
    weight = np.where(valid, size, 0.0)
    product = np.where(valid, values, 0.0) * weight

    def mean(weights: Weights) -> np.ndarray:
        return _ratio(weights @ product, weights @ weight) / 100

    return mean


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Percent; NaN where the denominator is not positive."""
    return np.divide(
        100 * above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0
    )


def _nanmean(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis without NaN; NaN where there is no value."""
    valid = ~np.isnan(values)
    return np.divide(
        np.where(valid, values, 0.0).sum(axis=-1),
        valid.sum(axis=-1),
        out=np.full(values.shape[:-1], np.nan),
        where=valid.any(axis=-1),
    )


# kind of task → the scores of its arrays
SCORERS: Registry[Callable[[tuple[str, ...], dict[str, np.ndarray]], ImageScores]] = Registry(
    "scorer of images", "scorers"
)
for _kind, _scorer in {
    "segmentation": _segmentation,
    "depth": _depth,
    "normals": _normals,
    "classification": _classification,
    "image-text": _retrieval,
    "association": _association,
    "correspondence": _correspondence,
}.items():
    SCORERS.register(_kind, _scorer)


def why_unscored(kind: str) -> str:
    """Why a run of a kind of task has no per-image scores here."""
    if kind == "detection" or (kind in SCORERS and not SCORERS.origin(kind)):
        return "it has no per-image scores"
    return f"its per-image scores need the plugin of {kind!r} that it ran with (--plugin FILE)"
