"""The table in the terminal at the end of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
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

Numbers = Mapping[tuple[str, str, str], Number]  # (backbone, task, metric) → number
NUMERAL = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w])")


def show(result: RunResult, report: Report | None = None) -> None:
    """Print the report's numbers and verdict, then the best values of axes, averages, notes and
    missing values, a line each. Without a report, or where it has no number, means over seeds."""
    numbers = mean_numbers(result)
    if report:
        numbers |= report.numbers()
    table = results_table(result, numbers)
    if not console.is_terminal:  # a log has no width, and a number must not be broken in two
        options = console.options.update(width=1000)
        console.width = max(console.width, Measurement.get(console, options, table).maximum)
    console.print(table)
    if report and len(report.backbones) > 1:
        console.print(f"  {report.summary.headline}", style="bold")
    for line in [*report.axes, *report.mode_changes] if report else ():
        console.print(f"  {line}")
    for name, seed in result.run_ids:
        average = result.average(name, seed)
        if average is not None:
            title = result.suite.average
            console.print(f"  {title} · {name} · seed {seed}: {average:.2f}")
    for name in dict.fromkeys(task.name.partition(":")[0] for task in result.absent):
        console.print(f"  missing · {name}: no data")
    for task in result.tasks:
        of_task = [cell for cell in result.cells if cell.task == task.name]
        for line in note_lines(of_task):
            console.print(f"  note · {task.name}{line}", style="dim")
        for cell in of_task:
            if cell.status in ("failed", "not applicable"):
                console.print(
                    f"  missing · {task.name} · {cell.backbone} · seed {cell.seed}: {cell.status},"
                    f" {cell.reason}",
                )


def results_table(result: RunResult, numbers: Numbers) -> Table:
    """Tasks down, backbones across; the best number of a row is bold."""
    names, seeds = result.backbones, result.seeds
    title = f"mean over {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    if any(number.verdict for number in numbers.values()):
        title += "; 95 % interval; against the baseline ▲ better, ▼ worse, = undecided, ? not known"
    table = Table(title=title, title_justify="left", title_style="dim", box=box.SIMPLE_HEAD)
    table.add_column("task")
    table.add_column("metric")
    for name in names:
        table.add_column(name, justify="right")
    for task in result.tasks:
        label = task.name
        for metric, about in task.probe.metrics.items():
            if about.shown or metric == task.main_metric:
                row = [numbers[name, task.name, metric] for name in names]
                texts = [Text(_cell(n), style="bold" if n.best else "") for n in row]
                table.add_row(label, f"{metric} {'↑' if about.direction > 0 else '↓'}", *texts)
                label = ""
    return table


def _cell(number: Number) -> str:
    """Value, interval or else standard error, and mark."""
    if number.missing:
        return number.missing.partition(":")[0]
    spread = number.interval or (f"± {number.error}" if number.error else "")
    return " ".join(filter(None, [number.text, spread, MARKS[number.verdict]]))


def mean_numbers(result: RunResult) -> dict[tuple[str, str, str], Number]:
    """The mean over seeds of every metric, the best of several backbones marked; missing where a
    seed has none."""
    numbers: dict[tuple[str, str, str], Number] = {}
    for task in result.tasks:
        for metric, about in task.probe.metrics.items():
            row = {
                name: _mean_number(
                    Number(name, task.name, "", metric, about.direction),
                    [c for c in result.cells if (c.backbone, c.task) == (name, task.name)],
                )
                for name in result.backbones
            }
            values = {n: about.direction * number.value for n, number in row.items()}
            best = max(values, key=lambda name: np.nan_to_num(values[name], nan=-np.inf))
            if len(row) > 1 and np.isfinite(values[best]):
                row[best] = replace(row[best], best=True)
            numbers |= {(name, task.name, metric): number for name, number in row.items()}
    return numbers


def _mean_number(empty: Number, cells: Sequence[Cell]) -> Number:
    """The mean over the cells of one backbone on one task, one for each seed."""
    values = np.array([cell.metrics.get(empty.metric, np.nan) for cell in cells])
    if not np.isfinite(values).all():
        has_metrics = any(cell.metrics for cell in cells)
        return replace(empty, missing="–" if has_metrics else cells[0].status)
    count, mean = len(values), float(values.mean())
    error = values.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
    digits = 3 if abs(mean) < 10 else 1
    return replace(empty, value=mean, standard_error=error, seeds=count, digits=digits)


def note_lines(cells: Sequence[Cell]) -> list[str]:
    """The notes of a task's cells; of notes that differ only in numbers, the first one and the
    count of the others."""
    similar: dict[str, list[str]] = {}
    for cell in cells:
        for note in cell.notes:
            line = f" · {cell.backbone} · seed {cell.seed}: {note}"
            similar.setdefault(NUMERAL.sub("#", note), []).append(line)
    lines = []
    for first, *others in similar.values():
        lines.append(f"{first} (and {len(others)} more like it)" if others else first)
    return lines
