"""The table in the terminal at the end of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from benchmark.execution.progress import console
from benchmark.records import Cell, PlannedTask
from benchmark.results.average import Average
from reports.parts.tables import MARKS, Number

if TYPE_CHECKING:
    from reports.report import Report

Judged = Mapping[tuple[str, str, str], Number]  # (backbone, task, metric) → number of the report
FIGURE = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w])")


def show(
    tasks: Sequence[PlannedTask],
    cells: Sequence[Cell],
    average: Average | None = None,
    report: Report | None = None,
) -> None:
    """Print the table and the report's verdict, then notes and missing values, a line each. Notes
    of a task that differ only in figures are merged."""
    judged: dict[tuple[str, str, str], Number] = {}
    for part in report.tables if report else ():
        for _, row in part.rows:
            judged |= {(entry.backbone, entry.task, entry.metric): entry for entry in row}
    table = results_table(tasks, cells, judged)
    if not console.is_terminal:  # a log has no width, and a number must not be broken in two
        options = console.options.update(width=1000)
        console.width = max(console.width, Measurement.get(console, options, table).maximum)
    console.print(table)
    if report and len(report.backbones) > 1:
        console.print(f"  {report.verdict.headline}", style="bold", markup=False)
    if average:
        for line in average.lines(cells):
            console.print(f"  {line}", markup=False)
        if average.absent:
            console.print(
                f"  missing · no data of {len(average.absent)} tasks: {', '.join(average.absent)}",
                markup=False,
            )
    for task in tasks:
        of_task = [cell for cell in cells if cell.task == task.name]
        for backbones, note in merged_notes(of_task):
            console.print(f"  note · {task.name}{backbones}: {note}", style="dim", markup=False)
        for cell in of_task:
            if cell.status in ("failed", "not applicable"):
                console.print(
                    f"  missing · {task.name} · {cell.backbone} · seed {cell.seed}: {cell.status},"
                    f" {cell.reason}",
                    markup=False,
                )


def results_table(tasks: Sequence[PlannedTask], cells: Sequence[Cell], judged: Judged) -> Table:
    """Tasks down, backbones across: means over seeds with the report's intervals where it has
    them, otherwise with standard errors. The best mean of a row is bold unless the report calls it
    undecided."""
    names = list(dict.fromkeys(cell.backbone for cell in cells))
    seeds = list(dict.fromkeys(cell.seed for cell in cells))
    title = f"mean over {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    if judged:
        title += "; 95 % interval; against the baseline ▲ better, ▼ worse, = undecided, ? not known"
    table = Table(title=title, title_justify="left", title_style="dim", box=box.SIMPLE_HEAD)
    table.add_column("task")
    table.add_column("metric")
    for name in names:
        table.add_column(name, justify="right")
    for task in tasks:
        label = task.name
        for metric, about in task.probe.metrics.items():
            if not about.shown and metric != next(iter(task.probe.metrics)):
                continue
            texts: list[str | Text] = []
            means = []
            for name in names:
                row = [c for c in cells if c.backbone == name and c.task == task.name]
                text, mean = _entry(metric, row, judged.get((name, task.name, metric)))
                texts.append(text)
                means.append(mean * about.direction)
            if len(names) > 1 and np.isfinite(means).any():
                best = int(np.nanargmax(means))
                verdict = judged.get((names[best], task.name, metric))
                if verdict is None or verdict.best:
                    texts[best] = Text(str(texts[best]), style="bold")
            table.add_row(label, f"{metric} {'↑' if about.direction > 0 else '↓'}", *texts)
            label = ""
    return table


def _entry(metric: str, cells: Sequence[Cell], judged: Number | None) -> tuple[str, float]:
    """Text and mean of one backbone's cells of a task, one for each seed."""
    values = np.array([cell.metrics.get(metric, np.nan) for cell in cells])
    if not len(values) or not np.isfinite(values).all():
        has_metrics = any(cell.metrics for cell in cells)
        return cells[0].status if cells and not has_metrics else "–", np.nan
    mean = float(values.mean())
    digits = 3 if abs(mean) < 10 else 1
    text = f"{mean:.{digits}f}"
    if judged and judged.interval:
        mark = f" {MARKS[judged.verdict]}" if judged.verdict else ""
        text = f"{judged.text} {judged.interval}{mark}"
    elif len(values) > 1:
        text += f" ± {values.std(ddof=1) / np.sqrt(len(values)):.{digits}f}"
    return text, mean


def merged_notes(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """Each note of a task's cells once, as (" · BACKBONES" unless all have it, text), with a range
    for figures that differ."""
    similar: dict[str, list[tuple[str, str]]] = {}
    for cell in cells:
        for note in cell.notes:
            similar.setdefault(FIGURE.sub("#", note), []).append((cell.backbone, note))
    with_notes = {cell.backbone for cell in cells if cell.notes}
    merged = []
    for entries in similar.values():
        names = list(dict.fromkeys(name for name, _ in entries))
        columns = zip(*(FIGURE.findall(note) for _, note in entries), strict=True)
        ranges = iter([_range(column) for column in columns])
        note = FIGURE.sub(lambda _, ranges=ranges: next(ranges), entries[0][1])  # type: ignore[misc]
        merged.append(("" if set(names) == with_notes else f" · {', '.join(names)}", note))
    return merged


def _range(figures: Sequence[str]) -> str:
    low, high = min(figures, key=float), max(figures, key=float)
    return low if float(low) == float(high) else f"{low}–{high}"


def number(value: float | None) -> str:
    """A metric for people, a dash if it is missing."""
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
