"""What a comparison can find, before it is run: from the noise of stored results, else from that of
published seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from reports.comparison import Judgement, first_level
from reports.published.table import SEEDS, read_rows
from reports.records import DECLARERS
from reports.selection import TaskColumn
from reports.statistics import MIN_IMAGES, Estimate
from reports.tables import count


def typical(gaps: Sequence[Estimate]) -> Estimate | None:
    """The difference whose detectable size is the median; None if nothing is judged."""
    judged = sorted((gap for gap in gaps if gap.is_judged), key=Estimate.detectable)
    return judged[len(judged) // 2] if judged else None


def power_frame(
    judged: Judgement | None,
    seeds: Sequence[int] = (1, 3, 5),
    images: int = 0,
    difference: float = 0.0,
    tasks: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """A row for each task: differences to a baseline that are decided with 80 %, of one backbone.

    They are of the main metric, if the task is the only one that differs. Columns: metric, unit,
    images, ``1 seed`` …, ``noise``: of which task and of how many comparisons. Where no stored
    results know it, it is that of published seeds alone, without the images'.

    Args:
        judged: stored results, of which the noise is known; None for no results.
        images: 0 for as many as stored.
        difference: adds the columns ``seeds needed`` and ``images needed`` (with the most seeds).
        tasks: name → kind of each; default: those stored.
    """
    stored = judged.selection.columns if judged else ()
    columns: dict[str, TaskColumn] = {column.task: column for column in stored}
    tasks = {task: column.kind for task, column in columns.items()} if tasks is None else tasks
    level = first_level(len({task.partition(":")[0] for task in tasks}))
    rows: dict[str, dict[str, Any]] = {}
    for task, kind in tasks.items():
        column = columns.get(task) or _alike(task, kind, [*columns.values()])
        gaps = [
            replace(gap, level=level)
            for (_, of, metric), gap in (judged.differences.items() if judged else ())
            if of == column and metric == of.main
        ]
        if (gap := typical(gaps)) is None or column is None:
            rows[task] = _of_published_seeds(task, kind, level, seeds, difference)
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


def _of_published_seeds(
    task: str, kind: str, level: float, seeds: Sequence[int], difference: float
) -> dict[str, Any]:
    """The row of a task by the seeds of ``seeds.csv``: of the task, else of one with the same
    probe and main metric."""
    declared = next(filter(None, (declare(task, kind, "") for declare in DECLARERS)), {})
    main, base = next(iter(declared), ""), task.partition(":")[0]
    rows = [row for row in read_rows("seeds") if row["metric"] == main]
    rows = [row for row in rows if row["task"].rpartition("/")[2] == base.rpartition("/")[2]]
    if not rows:
        return {"noise": "unknown"}
    row = max(rows, key=lambda row: row["task"] == base)
    # a difference of two backbones has both deviations
    variance = 2 * float(row["value"]) ** 2 / SEEDS
    gap = Estimate(0.0, 0.0, variance, SEEDS - 1, SEEDS, MIN_IMAGES, level=level)
    detectable = {count(n, "seed"): gap.detectable(n) if n > 1 else None for n in seeds}
    needed = {"seeds needed": gap.seeds_to_decide(difference)} if difference else {}
    sources = {each["source"]: each["title"] for each in read_rows("sources")}
    noise = f"{row['task']}, seeds alone, {sources[row['source']].partition(',')[0]}"
    metric = declared[main]
    about = {"metric": metric.label or main, "unit": metric.unit}
    return {**about, **detectable, **needed, "noise": noise}
