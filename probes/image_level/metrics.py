"""Metrics of whole images as functions of how often each image counts, in percent; see
``reports.per_image``. Importing this imports nothing that computes but numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from cliptex_common.metrics import CONFIDENCE_BINS, Arrays, bins_of, mean_of_images, ratio
from probes.image_level.settings import ALEXNET_ERRORS, OOD_SCORES, RECALL_AT
from reports.per_image import SCORERS, ImageScores, MetricFunction

KNOWN = "known"  # the set of the images whose classes were trained on


def classification(images: tuple[str, ...], arrays: Arrays) -> ImageScores:
    """``top1``, ``top5``; ``mean_per_class_recall`` and ``f1_macro`` over the classes that have
    images; ``worst_group_top…`` where images have groups; ``mCE`` where they are corrupted; the
    metrics of calibration where there is a ``confidence``. Of images that search their class those
    of ``class_retrieval``.

    Args:
        arrays: of each image the ``rank`` of the true class, ``label``, ``prediction``, ``group``,
            ``corruption`` (``fog/3``); with and without ``_scaled`` its ``confidence``, ``nll`` and
            ``brier``.
    """
    if "first_rank" in arrays:
        return class_retrieval(images, arrays)
    rank = arrays["rank"]
    metrics: dict[str, MetricFunction] = {
        f"top{k}": partial(_share, 100.0 * (rank < k)) for k in (1, 5)
    }
    if "prediction" in arrays:
        metrics |= _by_class(arrays["label"], arrays["prediction"], rank == 0)
    if "group" in arrays:
        member = (arrays["group"][:, None] == np.unique(arrays["group"])).astype(np.float64)
        for k in (1, 5):
            hits = 100.0 * (rank < k)[:, None] * member
            metrics[f"worst_group_top{k}"] = partial(_worst, hits, member)
    if "corruption" in arrays:
        metrics["mCE"] = partial(_corruption_error, arrays["corruption"], 100.0 * (rank > 0))
    for suffix in ("", "_scaled"):
        if (confidence := arrays.get(f"confidence{suffix}")) is not None:
            gap = (rank == 0) - confidence
            metrics |= {
                f"ece{suffix}": partial(_calibration_error, confidence, gap),
                f"ece_adaptive{suffix}": partial(_adaptive_error, confidence, gap),
                f"nll{suffix}": partial(mean_of_images, arrays[f"nll{suffix}"]),
                f"brier{suffix}": partial(mean_of_images, arrays[f"brier{suffix}"]),
            }
    # weights of all images at once have to fit the memory
    most = max(100, 200_000_000 // len(images))
    label = arrays.get("label", np.zeros(0))
    return ImageScores(
        images,
        metrics,
        lambda: -rank.astype(float),
        "rank of the true class",
        1,
        most,
        traits=lambda: {f"class {number}": label == number for number in np.unique(label)},
    )


def class_retrieval(images: tuple[str, ...], arrays: Arrays) -> ImageScores:
    """``mAP``, the mean of the queries' ``AP``, and ``recall@…``, the share whose ``first_rank``,
    that of the first image of their class, is below k; the images are queries."""
    metrics: dict[str, MetricFunction] = {"mAP": partial(mean_of_images, arrays["AP"])}
    for k in RECALL_AT:
        metrics[f"recall@{k}"] = partial(_share, 100.0 * (arrays["first_rank"] < k))
    return ImageScores(images, metrics, lambda: arrays["AP"], "average precision", 1)


def _calibration_error(confidence: np.ndarray, gap: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """In percent: the mean over images of their bin's difference of accuracy and confidence."""
    member = (bins_of(confidence)[:, None] == np.arange(CONFIDENCE_BINS)).astype(np.float64)
    gaps = np.abs(weights @ (gap[:, None] * member)).sum(axis=1)
    return 100 * ratio(gaps, weights.sum(axis=1, dtype=np.float64))


def _adaptive_error(confidence: np.ndarray, gap: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The same with bins of equal numbers of images; an image on an edge counts in part on both
    sides."""
    order = np.argsort(confidence, kind="stable")
    errors = []
    for row in weights[:, order].astype(np.float64):
        count, gaps = (np.concatenate([[0], np.cumsum(each)]) for each in (row, row * gap[order]))
        edges = np.interp(np.linspace(0, count[-1], CONFIDENCE_BINS + 1), count, gaps)
        errors.append(np.abs(np.diff(edges)).sum() / count[-1])
    return 100 * np.array(errors)


def _corruption_error(corruption: np.ndarray, error: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean over corruptions of the error, mean of the levels, in percent of AlexNet's."""
    names, index = np.unique(corruption, return_inverse=True)
    level = (index[:, None] == np.arange(len(names))).astype(np.float64)
    errors = ratio(weights @ (error[:, None] * level), weights @ level)
    kinds = [name.partition("/")[0] for name in names.tolist()]
    relative = [
        100 * errors[:, [each == kind for each in kinds]].mean(axis=1) / ALEXNET_ERRORS[kind]
        for kind in dict.fromkeys(kinds)
    ]
    return np.mean(relative, axis=0)


def _share(hits: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return ratio(weights @ hits, weights.sum(axis=1, dtype=np.float64))


def _worst(hits: np.ndarray, member: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The least share of hits among the groups in a set."""
    return np.nan_to_num(ratio(weights @ hits, weights @ member), nan=np.inf).min(axis=1)


def _by_class(
    label: np.ndarray, prediction: np.ndarray, hit: np.ndarray
) -> dict[str, MetricFunction]:
    """Mean per-class recall and macro F1 over the classes in a set."""
    shape = len(label), 1 + int(max(label.max(), prediction.max()))

    def count(weights: np.ndarray, classes: np.ndarray, counted: np.ndarray) -> np.ndarray:
        """(R, classes) images of each class that are counted."""
        from scipy.sparse import csr_array

        index = np.arange(len(classes)), classes
        return weights @ csr_array((counted.astype(np.float64), index), shape)

    every = np.ones(len(label))

    def recall(weights: np.ndarray) -> np.ndarray:
        return 100 * _mean(ratio(count(weights, label, hit), count(weights, label, every)))

    def f1(weights: np.ndarray) -> np.ndarray:
        true, predicted = (count(weights, each, every) for each in (label, prediction))
        score = ratio(2 * count(weights, label, hit), true + predicted)
        return 100 * _mean(np.where(true > 0, score, np.nan))

    return {"mean_per_class_recall": recall, "f1_macro": f1}


def _mean(values: np.ndarray) -> np.ndarray:
    """``mean_of_classes``, added in the order of torch: stored metrics have its last digits."""
    import torch

    rows = torch.from_numpy(values)
    return np.array([row[~row.isnan()].mean().item() for row in rows])


def association(images: tuple[str, ...], arrays: Arrays) -> ImageScores:
    """The mean of ``jaccard`` over instances of 10 or 12 ``candidates``, of 5 or 6, and all."""
    score, sizes = arrays["jaccard"], arrays["candidates"]
    parts = {"jaccard_10-12": sizes >= 10, "jaccard_5-6": sizes <= 6, "jaccard": sizes > 0}
    metrics = {
        name: partial(mean_of_images, np.where(part, score, np.nan)) for name, part in parts.items()
    }
    return ImageScores(images, metrics, lambda: score, "Jaccard index", 1)


def correspondence(images: tuple[str, ...], arrays: Arrays) -> ImageScores:
    """``PCK@…``, the mean over pairs of the share of ``points`` that are ``right_…``, and the share
    of all points; the images are pairs."""
    points = arrays["points"].astype(np.float64)
    share = {name: ratio(arrays[f"right_{name}"], points) for name in ("0.05", "0.1")}

    def of_pairs(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return 100 * mean_of_images(values, weights)

    def of_points(weights: np.ndarray) -> np.ndarray:
        return 100 * ratio(weights @ arrays["right_0.1"].astype(np.float64), weights @ points)

    metrics: dict[str, MetricFunction] = {
        f"PCK@{name}": partial(of_pairs, values) for name, values in share.items()
    }
    metrics["PCK@0.1_point"] = of_points
    return ImageScores(images, metrics, lambda: 100 * share["0.1"], "share of correct keypoints", 1)


def retrieval(images: tuple[str, ...], arrays: Arrays) -> ImageScores:
    """Recall at 1, 5 and 10 of captions by image and images by caption, and ``mean_R@1``.

    Args:
        arrays: ``i2t_rank`` (N,) of the first right answer, and ``t2i_rank`` (N, captions), filled
            with -1.
    """
    image_rank, text_ranks = arrays["i2t_rank"], arrays["t2i_rank"]
    captions = (text_ranks >= 0).sum(axis=1).astype(np.float64)

    def recall(hits: np.ndarray, queries: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return 100 * ratio(weights @ hits, weights @ queries)

    metrics: dict[str, MetricFunction] = {}
    for k in RECALL_AT:
        hits = (image_rank < k).astype(np.float64)
        metrics[f"i2t_R@{k}"] = partial(recall, hits, np.ones(len(hits)))
    for k in RECALL_AT:
        # an image is resampled with all its captions: they are not independent
        hits = ((text_ranks >= 0) & (text_ranks < k)).sum(axis=1).astype(np.float64)
        metrics[f"t2i_R@{k}"] = partial(recall, hits, captions)
    first = [metrics["i2t_R@1"], metrics["t2i_R@1"]]
    metrics["mean_R@1"] = lambda weights: (first[0](weights) + first[1](weights)) / 2
    name = "rank of the correct caption"
    return ImageScores(images, metrics, lambda: -image_rank.astype(float), name, 1)


def detection_of_unknown(images: tuple[str, ...], arrays: Arrays) -> ImageScores:
    """``auroc_SCORE`` and ``fpr95_SCORE`` in percent, each the plain mean over the sets of unknown
    images, and over the near and the far ones.

    Unknown images are the positive ones: FPR95 is the share of known images with a score as high as
    the lowest of the highest 95 % of unknown ones (as OpenOOD; others reverse the roles).

    Args:
        arrays: of each image its ``set``, ``KNOWN`` or ``near/…`` or ``far/…``, and the scores
            ``msp``, ``energy`` and ``knn``, higher for unknown images.
    """
    sets = arrays["set"]
    metrics: dict[str, MetricFunction] = {}
    for distance in ("", "near", "far"):
        names = [each for each in np.unique(sets) if each != KNOWN and each.startswith(distance)]
        prefix = f"{distance}_" if distance else ""
        for score in OOD_SCORES if names else ():
            values = arrays[score]
            metrics[f"{prefix}auroc_{score}"] = partial(_of_sets, _auroc, values, sets, names)
            metrics[f"{prefix}fpr95_{score}"] = partial(_of_sets, _fpr95, values, sets, names)
    return ImageScores(images, metrics, lambda: arrays["energy"], "energy", 1)


def _of_sets(
    metric: Callable[..., float],
    values: np.ndarray,
    sets: np.ndarray,
    names: Sequence[str],
    weights: np.ndarray,
) -> np.ndarray:
    """The mean over sets of unknown images of a metric between each and the known images."""
    distinct, rank = np.unique(values, return_inverse=True)
    members = [np.flatnonzero(sets == name) for name in (KNOWN, *names)]
    rows = []
    for row in weights:
        familiar, *ood = (np.bincount(rank[m], row[m], len(distinct)) for m in members)
        rows.append(np.mean([metric(familiar, each) for each in ood]))
    return 100 * np.array(rows)


def _auroc(familiar: np.ndarray, ood: np.ndarray) -> float:
    """The share of pairs in which the unknown image scores higher, ties counting half; arrays are
    how many images have each score, ascending."""
    below = np.cumsum(familiar) - familiar / 2
    return float(ood @ below / (familiar.sum() * ood.sum())) if ood.any() else np.nan


def _fpr95(familiar: np.ndarray, ood: np.ndarray) -> float:
    detected = np.cumsum(ood[::-1]) / max(ood.sum(), 1)
    flagged = np.cumsum(familiar[::-1]) / max(familiar.sum(), 1)
    return float(flagged[np.argmax(detected >= 0.95 - 1e-12)]) if ood.any() else np.nan


for _kind, _scorer in {
    "classification": classification,
    "association": association,
    "correspondence": correspondence,
    "image-text": retrieval,
    "unknown-images": detection_of_unknown,
}.items():
    SCORERS.register(_kind, _scorer)
