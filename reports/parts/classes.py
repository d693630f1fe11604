"""IoU and AP of each class: the parts of a mean over classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports.analysis import Analysis


@dataclass(frozen=True)
class ClassTable:
    """The classes of one task.

    Attributes:
        title: of the task.
        metric: ``IoU`` or ``box AP``.
        frame: columns ``class``, ``images`` (that contain it), then each backbone (percent, mean
            over its seeds).
    """

    title: str
    metric: str
    frame: pd.DataFrame


def class_tables(analysis: Analysis) -> list[ClassTable]:
    """One for each task whose probe stores the scores of each class."""
    tables = []
    for column in analysis.selection.columns:
        scores = {
            name: seeds
            for name in analysis.selection.backbones
            if (seeds := analysis.classes.get((name, column)))
        }
        if not scores:
            continue
        first = next(iter(scores.values()))[0]
        values = {
            name: np.mean([seed.values for seed in seeds], axis=0)
            for name, seeds in scores.items()
            if seeds[0].names == first.names
        }
        frame = pd.DataFrame({"class": first.names, "images": first.images, **values})
        tables.append(ClassTable(column.title, first.metric, frame[frame["images"] > 0]))
    return tables
