"""IoU and AP of each class: what a mean over classes is made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports.analysis import Analysis


@dataclass(frozen=True)
class ClassTable:
    """The classes of one task.

    Attributes:
        title, metric: of the task; ``IoU``, ``box AP``.
        frame: columns ``class``, ``images`` (that hold it), then each backbone (percent, mean over
            its seeds).
    """

    title: str
    metric: str
    frame: pd.DataFrame


def class_tables(analysis: Analysis) -> list[ClassTable]:
    """One for each task whose probe keeps what its metric is made of."""
    tables = []
    for column in analysis.selection.columns:
        there = {
            b: found
            for b in analysis.selection.backbones
            if (found := analysis.classes.get((b, column)))
        }
        first = next(iter(there.values()), [None])[0]
        there = {b: found for b, found in there.items() if first and found[0].names == first.names}
        if first is not None:
            values = {
                b: np.mean([one.values for one in found], axis=0) for b, found in there.items()
            }
            frame = pd.DataFrame({"class": first.names, "images": first.images, **values})
            tables.append(ClassTable(column.title, first.metric, frame[frame["images"] > 0]))
    return tables
