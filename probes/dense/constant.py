"""The best constant prediction, from the training ground truth alone, as a baseline."""

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
from probes.dense.data import FIELDS
from probes.dense.ground_truth import LoadGroundTruth, ground_truth_config
from probes.dense.settings import METRICS

# of train, and of each of its images, evenly spread: a constant needs no more
IMAGES, PIXELS = 200, 20_000
# many heads are scored on one dataset
_constants: dict[tuple[str, ...], Any] = {}
_scores: dict[tuple[str, ...], float] = {}


def constant_note(
    data: PreparedDataset,
    metrics: Mapping[str, float],
    per_image: Any,
    config: Any = None,
    val: Any = None,
) -> list[str]:
    """A note if ``metrics`` are no better than those of the best constant prediction on ``val``.

    Args:
        per_image: per-image scores: segmentation is scored from ``label``.
        config: the probe's, with ``val_evaluator``; segmentation needs none.
        val: the dataset of the config's ``val_dataloader``; segmentation needs none.
    """
    kind = data.spec.kind
    main, metric = next(iter(METRICS[kind].items()))
    if not np.isfinite(metrics[main]):
        return []
    root = data.spec.name, str(data.root), data.fingerprint
    if root not in _constants:
        _constants[root] = best_constant(data)
    constant = _constants[root]
    if kind == "segmentation":
        # the IoU of its class is its share of the pixels, that of other classes is 0
        areas = np.asarray(per_image["label"]).sum(axis=0)
        score = 100 * areas[constant] / max(areas.sum(), 1) / max(np.count_nonzero(areas), 1)
        name = f"{data.classes[constant]!r}"
    else:
        dataset = config.val_dataloader["dataset"]
        images = dataset if "pipeline" in dataset else dataset["dataset"]  # of cached features
        key = (*root, repr(config.val_evaluator), repr(images["pipeline"]))
        if key not in _scores:
            _scores[key] = float(_score(val, kind, config.val_evaluator, constant)[main])
        score = _scores[key]
        name = f"{constant:.3g} m" if kind == "depth" else "the mean normal"
    if metric.direction * metrics[main] > metric.direction * score:
        return []
    return [
        f"does not beat the best constant prediction: {main} {metrics[main]:.4g}, and {score:.4g}"
        f" with {name} everywhere"
    ]


def best_constant(data: PreparedDataset) -> Any:
    """The best prediction for every pixel of ``train``: the most frequent class; the depth (metres)
    with the least mean |c - t| / t, which is the median weighted with 1 / t; or the mean normal
    (3,), of unit length."""
    config = ground_truth_config(data.spec, len(data.classes))
    del config["type"]
    samples, load = data.samples["train"], LoadGroundTruth(**config)
    pixels = []
    for sample in samples[:: max(1, len(samples) // IMAGES)]:
        ground_truth = load.read(str(data.root / sample.target))
        flat = ground_truth.reshape(-1, *ground_truth.shape[2:])
        pixels.append(flat[:: max(1, len(flat) // PIXELS)])
    values, extra = np.concatenate(pixels), data.spec.extra
    if data.spec.kind == "segmentation":
        labels = values[values != data.spec.ignore_index]
        return int(np.bincount(labels, minlength=len(data.classes)).argmax())
    if data.spec.kind == "normals":
        mean = values.sum(axis=0, dtype=np.float64)
        return (mean / max(np.linalg.norm(mean), 1e-9)).astype(np.float32)
    valid = (values > 0) & (values >= extra["min_depth"]) & (values <= extra["max_depth"])
    if not valid.any():
        return float(extra["max_depth"])
    values = np.sort(values[valid])
    weight = np.cumsum(1 / values, dtype=np.float64)
    return float(values[np.searchsorted(weight, weight[-1] / 2)])


def _score(val: Any, kind: str, evaluator: Any, constant: Any) -> dict[str, float]:
    """The metrics of ``constant`` at every pixel of ``val``."""
    metric, field = EVALUATORS.build(dict(evaluator)), FIELDS[kind]
    for index in range(len(val)):
        sample = val[index]["data_samples"]
        target = sample.get(field).data
        prediction = torch.as_tensor(constant).reshape(-1, 1, 1).expand_as(target)
        maps = {field: target, field.replace("gt", "pred"): prediction}
        arrays = {name: {"data": values} for name, values in maps.items()}
        metric.process(None, [{"image": sample.image, **arrays}])
    return metric.compute_metrics(metric.results)
