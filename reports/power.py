"""What a comparison can find, before it is run: from the noise of stored results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from reports.comparison import Judgement, first_level
from reports.selection import TaskColumn
from reports.statistics import Estimate
from reports.tables import count


def typical(gaps: Sequence[Estimate]) -> Estimate | None:
    """The difference whose detectable size is the median; None if nothing is judged."""
    judged = sorted((gap for gap in gaps if gap.is_judged), key=Estimate.detectable)
    return judged[len(judged) // 2] if judged else None


def power_frame(
    judged: Judgement,
    seeds: Sequence[int] = (1, 3, 5),
    images: int = 0,
    difference: float = 0.0,
    tasks: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """A row for each task: differences to a baseline that are decided with 80 %, of one backbone.

    They are of the main metric, if the task is the only one that differs. Columns: metric, unit,
    images, ``1 seed`` …, ``noise``: of which task and of how many comparisons.

    Args:
        judged: stored results, of which the noise is known.
        images: 0 for as many as stored.
        difference: adds the columns ``seeds needed`` and ``images needed`` (with the most seeds).
        tasks: name → kind of each; default: those stored.
    """
    columns: dict[str, TaskColumn] = {column.task: column for column in judged.selection.columns}
    tasks = {task: column.kind for task, column in columns.items()} if tasks is None else tasks
    level = first_level(len({task.partition(":")[0] for task in tasks}))
    rows: dict[str, dict[str, Any]] = {}
    for task, kind in tasks.items():
        column = columns.get(task) or _alike(task, kind, [*columns.values()])
        gaps = [
            replace(gap, level=level)
            for (_, of, metric), gap in judged.differences.items()
            if of == column and metric == of.main
        ]
        if (gap := typical(gaps)) is None or column is None:
            rows[task] = {"noise": "unknown"}
            continue
        metric = column.metric(column.main)
        row: dict[str, Any] = {
            "metric": metric.label or column.main,
            "unit": metric.unit,
            "images": images or gap.images,
            **{count(n, "seed"): gap.detectable(n, images) for n in seeds},
        }
        if difference:
            row["seeds needed"] = gap.seeds_to_decide(difference, images)
            row["images needed"] = gap.images_to_decide(difference, max(seeds))
        rows[task] = {**row, "noise": f"{column.title}, {count(len(gaps), 'comparison')}"}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("task")


def _alike(task: str, kind: str, columns: Sequence[TaskColumn]) -> TaskColumn | None:
    """A stored task of the same kind, best with the same probe."""
    probe = task.partition(":")[0].rpartition("/")[2]
    same = [column for column in columns if column.kind == kind]
    return max(same, key=lambda column: column.base.endswith(f"/{probe}"), default=None)
