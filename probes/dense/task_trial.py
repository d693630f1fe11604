"""A family of dense tasks is tried on zeros when it is registered, not after hours of training."""

from __future__ import annotations

import re

import numpy as np
import torch

from cliptex_common.errors import UserError
from probes.dense.objectives import TaskObjective
from probes.dense.segmentation import Segmentation
from probes.dense.task import DenseTask

SIDE = 64


def try_task(task: DenseTask) -> None:
    """Check the attributes of a task, and compute loss, prediction, score and metrics of zeros.

    Raises:
        UserError: something is missing or does not fit.
        Exception: what the task's own methods raise.
    """
    if not re.fullmatch(r"[\w-]+", task.name):
        raise UserError(f"dense task {task.name!r}: a name has letters, digits and hyphens")
    if not task.metrics:
        raise UserError(f"dense task {task.name!r} needs metrics")
    if task.has_classes != isinstance(task, Segmentation):
        raise UserError(f"dense task {task.name!r}: one with classes is a subclass of Segmentation")
    if isinstance(task, Segmentation) and task.field != Segmentation.field:
        raise UserError(f"dense task {task.name!r}: the field of classes is {Segmentation.field!r}")
    kind = type(task)
    overridden = {name for name in ("objective", "evaluator") if _overrides(kind, name)}
    needed = [
        name for name, by in (("loss", "objective"), ("score", "evaluator")) if by not in overridden
    ]
    if missing := [name for name in needed if not _overrides(kind, name)]:
        raise UserError(f"dense task {task.name!r} has no {' and no '.join(missing)}")
    target = torch.zeros(2, task.channels, SIDE, SIDE)
    prediction = target
    if "objective" not in overridden:
        objective = TaskObjective(task)
        raw = torch.zeros(2, task.outputs, SIDE, SIDE, requires_grad=True)
        objective(raw, target).backward()
        prediction = objective.decode(raw.detach())
        if prediction.shape != target.shape:
            raise UserError(
                f"dense task {task.name!r}: predict gives {tuple(prediction.shape[1:])}, and the"
                f" ground truth is {tuple(target.shape[1:])}"
            )
    if "evaluator" not in overridden:
        scores = [task.score(*pair) for pair in zip(prediction, target, strict=True)]
        arrays = {name: np.stack([each[name].numpy() for each in scores]) for name in scores[0]}
        summary = task.summary(arrays, np.ones((1, 2)))
        if missing := [name for name in task.metrics if name not in summary]:
            raise UserError(f"dense task {task.name!r}: summary gives no {', '.join(missing)}")


def _overrides(kind: type[DenseTask], name: str) -> bool:
    return getattr(kind, name) is not getattr(DenseTask, name)
