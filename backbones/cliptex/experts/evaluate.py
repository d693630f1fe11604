"""How right an expert is: its hard labels against truth. An expert is allowed to err; we say how much."""

from __future__ import annotations

import numpy as np

from backbones.cliptex.experts.base import Expert
from backbones.cliptex.experts.data import ExpertData
from backbones.cliptex.protocols import Progress, Silent
from backbones.cliptex.tasks import find_task


def evaluate(
    expert: Expert, data: ExpertData, *, batch_size: int = 32, progress: Progress | None = None
) -> dict[str, float]:
    """Accuracy of an expert's labels.

    Returns: what the expert's task scores, see ``Task.score``.
    """
    progress = progress or Silent()
    progress.start(f"measuring the {expert.task} expert", len(data))
    kept: dict[str, list[np.ndarray]] = {}
    truths = []
    for images, real in data.batches(batch_size):
        for name, maps in expert.predict(images).items():
            kept.setdefault(name, []).append(maps)
        truths.append(real.numpy())
        progress.advance(len(images))
    labels, truth = {name: np.concatenate(parts) for name, parts in kept.items()}, np.concatenate(truths)
    task = find_task(expert.task)
    if task.has_classes:
        truth = _renumbered(truth, data.classes, expert)
    return task.score(labels, truth, len(expert.classes))


def _renumbered(truth: np.ndarray, classes: tuple[str, ...], expert: Expert) -> np.ndarray:
    """Truth in the expert's own class numbers, by name; classes that it does not know are not scored."""
    if classes == expert.classes:
        return truth
    table = np.full(256, 65535, np.int64)
    for place, name in enumerate(classes):
        if name in expert.classes:
            table[place] = expert.classes.index(name)
    return table[truth]
