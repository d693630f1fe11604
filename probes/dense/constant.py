"""The best constant prediction, from the training ground truth alone: what a probe that has learnt
anything beats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import probes.runner.bridge

# isort: split
import numpy as np
import torch
from mmseg.registry import METRICS as EVALUATORS

import probes.dense.metrics  # noqa: F401  registers what an evaluator's config names
from probes.datasets.base import PreparedDataset
from probes.dense.data import FIELDS, channels_first, read_depth, read_labels, read_normals
from probes.dense.probe import METRICS

IMAGES, PIXELS = (
    200,
    20_000,
)  # of train, and of each of them, evenly spread: a constant is known well by less
_KNOWN: dict[tuple[str, ...], tuple[float, str]] = {}  # many heads are scored on one dataset


def constant_note(
    data: PreparedDataset,
    evaluator: Mapping[str, Any],
    metrics: Mapping[str, float],
    per_image: Any,
) -> list[str]:
    """One line where ``metrics`` are no better than the best constant prediction's on ``val``; else
    none.

    Args:
        evaluator: config of the metric that gave ``metrics``.
        per_image: what it kept of each image: segmentation is scored from ``label``.
    """
    kind = data.spec.kind
    main, declared = next(iter(METRICS[kind].items()))
    sign = declared.direction
    if not np.isfinite(metrics[main]):
        return []
    key = (
        data.spec.name,
        str(data.root),
        data.fingerprint,
        str(sorted(evaluator.items(), key=str)),
    )
    if key not in _KNOWN:
        constant = best_constant(data)
        if kind == "segmentation":
            areas = np.asarray(per_image["label"]).sum(axis=0)
            # its own class has its share of the pixels as IoU, the others that are there have none
            score = (
                100 * areas[int(constant)] / max(areas.sum(), 1) / max(np.count_nonzero(areas), 1)
            )
            told = f"{data.classes[int(constant)]!r} everywhere"
        else:
            score = _score(data, evaluator, constant)[main]
            told = (
                f"{constant:.3g} m everywhere" if kind == "depth" else "the mean normal everywhere"
            )
        _KNOWN[key] = float(score), told
    score, told = _KNOWN[key]
    if sign * metrics[main] > sign * score:
        return []
    return [
        f"does not beat the best constant prediction: {main} {metrics[main]:.4g}, and {score:.4g}"
        f" with {told}"
    ]


def best_constant(data: PreparedDataset) -> Any:
    """What to predict everywhere, as learnt from ``train``: the most frequent class; the depth
    (metres) that has the least mean |c - t| / t, which is the median weighted with 1 / t; or the
    mean normal (3,), of unit length."""
    samples = data.samples["train"]
    kept = []
    for sample in samples[:: max(1, len(samples) // IMAGES)]:
        truth = _truth(data, sample.target)
        values = truth.reshape(-1, *truth.shape[2:])
        kept.append(values[:: max(1, len(values) // PIXELS)])
    values, extra = np.concatenate(kept), data.spec.extra
    if data.spec.kind == "segmentation":
        return np.bincount(
            values[values != data.spec.ignore_index], minlength=len(data.classes)
        ).argmax()
    if data.spec.kind == "normals":
        mean = values.sum(axis=0, dtype=np.float64)
        return (mean / max(np.linalg.norm(mean), 1e-9)).astype(np.float32)
    values = np.sort(
        values[(values > 0) & (values >= extra["min_depth"]) & (values <= extra["max_depth"])]
    )
    weight = np.cumsum(1 / values, dtype=np.float64)
    return (
        float(values[np.searchsorted(weight, weight[-1] / 2)])
        if len(values)
        else float(extra["max_depth"])
    )


def _truth(data: PreparedDataset, target: str) -> np.ndarray:
    """(H, W) labels or metres, (H, W, 3) normals."""
    spec, path = data.spec, str(data.root / target)
    if spec.kind == "segmentation":
        return read_labels(path, spec.label_offset, spec.ignore_index, len(data.classes))
    return (
        read_depth(path, spec.extra["depth_scale"]) if spec.kind == "depth" else read_normals(path)
    )


def _score(data: PreparedDataset, evaluator: Mapping[str, Any], constant: Any) -> dict[str, float]:
    """The metrics on ``val`` of ``constant`` at every pixel."""
    metric, field = EVALUATORS.build(dict(evaluator)), FIELDS[data.spec.kind]
    for sample in data.samples["val"]:
        truth = channels_first(_truth(data, sample.target))
        predicted = torch.as_tensor(constant).reshape(-1, 1, 1).expand_as(truth)
        metric.process(
            None,
            [
                {
                    "image": sample.image,
                    field: {"data": truth},
                    field.replace("gt", "pred"): {"data": predicted},
                }
            ],
        )
    return metric.compute_metrics(metric.results)
