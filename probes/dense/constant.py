"""The best constant prediction, from the training ground truth alone, as a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from probes.datasets.base import PreparedDataset
from probes.dense.metrics import METRICS as EVALUATORS
from probes.dense.tasks import DENSE_TASKS

# of train, and of each of its images, evenly spread: a constant needs no more
IMAGES, PIXELS = 200, 20_000
# by the copy of the dataset, on which many heads are scored; and by how predictions are scored
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
        per_image: per-image scores, see ``DenseTask.constant_score``; where that gives None:
        config: the probe's, with ``val_evaluator``.
        val: the dataset of the config's ``val_dataloader``.
    """
    task = DENSE_TASKS.find(data.spec.kind)
    main, metric = next(iter(task.metrics.items()))
    if not np.isfinite(metrics[main]):
        return []
    copy = data.spec.name, str(data.root), data.fingerprint
    if copy not in _constants:
        _constants[copy] = best_constant(data)
    constant = _constants[copy]
    score = task.constant_score(constant, per_image)
    if score is None:
        pipeline = config.val_dataloader["dataset"]["pipeline"]
        key = (*copy, repr(config.val_evaluator), repr(pipeline))
        if key not in _scores:
            _scores[key] = float(_score(val, task.field, config.val_evaluator, constant)[main])
        score = _scores[key]
    if not np.isfinite(score) or metric.direction * metrics[main] > metric.direction * score:
        return []
    return [
        f"does not beat the best constant prediction: {main} {metrics[main]:.4g}, and {score:.4g}"
        f" with {task.constant_name(constant, data)} everywhere"
    ]


def best_constant(data: PreparedDataset) -> Any:
    """The best prediction for every pixel of ``train``, see ``DenseTask.best_constant``."""
    task, samples = DENSE_TASKS.find(data.spec.kind), data.samples["train"]
    options = task.reading(data.spec, len(data.classes))
    pixels = []
    for sample in samples[:: max(1, len(samples) // IMAGES)]:
        ground_truth = task.load(str(data.root / sample.target), **options)
        flat = ground_truth.reshape(-1, *ground_truth.shape[2:])
        pixels.append(flat[:: max(1, len(flat) // PIXELS)])
    return task.best_constant(np.concatenate(pixels), data)


def _score(val: Any, field: str, evaluator: Any, constant: Any) -> dict[str, float]:
    """The metrics of ``constant`` at every pixel of ``val``."""
    metric = EVALUATORS.build(dict(evaluator))
    for index in range(len(val)):
        sample = val.ground_truth(index)
        target = sample.get(f"gt_{field}").data
        prediction = torch.as_tensor(constant).reshape(-1, 1, 1).expand_as(target)
        maps = {f"gt_{field}": {"data": target}, f"pred_{field}": {"data": prediction}}
        metric.process(None, [{"image": sample.image, **maps}])
    return metric.compute_metrics(metric.results)
