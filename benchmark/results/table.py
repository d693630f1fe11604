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
from benchmark.results.run_result import RunResult
from reports.cell import Cell
from reports.parts.tables import MARKS, Number

if TYPE_CHECKING:
    from reports.report import Report

# (backbone, task, metric) → the number in the report
ReportNumbers = Mapping[tuple[str, str, str], Number]
FIGURE = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w])")


def show(result: RunResult, report: Report | None = None) -> None:
    """Print the table and the report's verdict, then the best values of axes, averages, notes and
    missing values, a line each."""
    report_numbers: dict[tuple[str, str, str], Number] = {}
    for part in report.tables if report else ():
        for _, row in part.rows:
            report_numbers |= {(entry.backbone, entry.task, entry.metric): entry for entry in row}
    table = results_table(result, report_numbers)
    if not console.is_terminal:  # a log has no width, and a number must not be broken in two
        options = console.options.update(width=1000)
        console.width = max(console.width, Measurement.get(console, options, table).maximum)
    console.print(table)
    if report and len(report.backbones) > 1:
        console.print(f"  {report.verdict.headline}", style="bold", markup=False)
    for line in report.axes if report else ():
        console.print(f"  {line}", markup=False)
    for name, seed in result.run_ids:
        average = result.average(name, seed)
        if average is not None:
            title = result.suite.average
            console.print(f"  {title} · {name} · seed {seed}: {average:.2f}", markup=False)
    for name in dict.fromkeys(task.name.partition(":")[0] for task in result.absent):
        console.print(f"  missing · {name}: no data", markup=False)
    for task in result.tasks:
        of_task = [cell for cell in result.cells if cell.task == task.name]
        for line in note_lines(of_task):
            console.print(f"  note · {task.name}{line}", style="dim", markup=False)
        for cell in of_task:
            if cell.status in ("failed", "not applicable"):
                console.print(
                    f"  missing · {task.name} · {cell.backbone} · seed {cell.seed}: {cell.status},"
                    f" {cell.reason}",
                    markup=False,
                )


def results_table(result: RunResult, report_numbers: ReportNumbers) -> Table:
    """Tasks down, backbones across: means over seeds with the report's intervals where it has
    them, otherwise with standard errors. The best mean of a row is bold if the report calls it best
    or has no number for it."""
    names, seeds = result.backbones, result.seeds
    title = f"mean over {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    if report_numbers:
        title += "; 95 % interval; against the baseline ▲ better, ▼ worse, = undecided, ? not known"
    table = Table(title=title, title_justify="left", title_style="dim", box=box.SIMPLE_HEAD)
    table.add_column("task")
    table.add_column("metric")
    for name in names:
        table.add_column(name, justify="right")
    for task in result.tasks:
        label = task.name
        for metric, about in task.probe.metrics.items():
            if not about.shown and metric != task.main_metric:
                continue
            texts: list[str | Text] = []
            means = []
            for name in names:
                row = [c for c in result.cells if c.backbone == name and c.task == task.name]
                text, mean = _entry(metric, row, report_numbers.get((name, task.name, metric)))
                texts.append(text)
                means.append(mean * about.direction)
            if len(names) > 1 and np.isfinite(means).any():
                best = int(np.nanargmax(means))
                verdict = report_numbers.get((names[best], task.name, metric))
                if verdict is None or verdict.best:
                    texts[best] = Text(str(texts[best]), style="bold")
            table.add_row(label, f"{metric} {'↑' if about.direction > 0 else '↓'}", *texts)
            label = ""
    return table


def _entry(metric: str, cells: Sequence[Cell], number: Number | None) -> tuple[str, float]:
    """Text and mean of a metric.

    Args:
        cells: of one backbone on one task, one cell per seed.
    """
    values = np.array([cell.metrics.get(metric, np.nan) for cell in cells])
    if not np.isfinite(values).all():
        has_metrics = any(cell.metrics for cell in cells)
        return "–" if has_metrics else cells[0].status, np.nan
    mean = float(values.mean())
    digits = 3 if abs(mean) < 10 else 1
    text = f"{mean:.{digits}f}"
    if number and number.interval:
        mark = f" {MARKS[number.verdict]}" if number.verdict else ""
        text = f"{number.text} {number.interval}{mark}"
    elif len(values) > 1:
        text += f" ± {values.std(ddof=1) / np.sqrt(len(values)):.{digits}f}"
    return text, mean


def note_lines(cells: Sequence[Cell]) -> list[str]:
    """The notes of a task's cells; of notes that differ only in numbers, the first one and the
    count of the others."""
    similar: dict[str, list[str]] = {}
    for cell in cells:
        for note in cell.notes:
            line = f" · {cell.backbone} · seed {cell.seed}: {note}"
            similar.setdefault(FIGURE.sub("#", note), []).append(line)
    lines = []
    for first, *others in similar.values():
        lines.append(f"{first} (and {len(others)} more like it)" if others else first)
    return lines


def format_number(value: float | None) -> str:
    """A metric for people, a dash if it is missing."""
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
