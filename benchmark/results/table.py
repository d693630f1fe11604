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

from benchmark.cell import Cell
from benchmark.execution.progress import console
from benchmark.plan import PlannedTask
from benchmark.results.average import Average
from reports.parts.tables import MARKS, Number

if TYPE_CHECKING:
    from reports.report import Report


Known = Mapping[tuple[str, str, str], Number]  # backbone, task, metric


def results_table(tasks: Sequence[PlannedTask], cells: Sequence[Cell], known: Known) -> Table:
    """Tasks down, backbones across: means over seeds, with a report's intervals where they are
    ``known``, else with the standard error. The best mean of a row is bold, where a report calls it
    better than all others."""
    names = list(dict.fromkeys(cell.backbone for cell in cells))
    seeds = list(dict.fromkeys(cell.seed for cell in cells))
    title = (
        f"mean over {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}" if seeds else ""
    )
    if known:
        title += "; 95 % interval; against the baseline ▲ better, ▼ worse, = undecided, ? not known"
    table = Table(title=title, title_justify="left", title_style="dim", box=box.SIMPLE_HEAD)
    table.add_column("task")
    table.add_column("metric")
    for name in names:
        table.add_column(name, justify="right")
    for task in tasks:
        main = next(iter(task.probe.metrics))
        shown = [
            (name, one.direction)
            for name, one in task.probe.metrics.items()
            if one.shown or name == main
        ]
        for number, (metric, sign) in enumerate(shown):
            texts: list[str | Text] = []
            means = []
            for name in names:
                mine = [c for c in cells if c.backbone == name and c.task == task.name]
                values = np.array([c.metrics.get(metric, np.nan) for c in mine])
                text, mean = _cell(values, mine, known.get((name, task.name, metric)))
                texts.append(text)
                means.append(mean * sign)
            if len(names) > 1 and np.isfinite(means).any():
                best = int(np.nanargmax(means))
                judged = known.get((names[best], task.name, metric))
                if judged is None or judged.best:  # never over what the report holds for undecided
                    texts[best] = Text(str(texts[best]), style="bold")
            arrow = "↑" if sign > 0 else "↓"
            table.add_row(task.name if number == 0 else "", f"{metric} {arrow}", *texts)
    return table


def _cell(values: np.ndarray, cells: Sequence[Cell], known: Number | None) -> tuple[str, float]:
    if not len(values) or not np.isfinite(values).all():
        return (
            cells[0].status if cells and not any(cell.metrics for cell in cells) else "–"
        ), np.nan
    mean = float(values.mean())
    digits = 3 if abs(mean) < 10 else 1
    text = f"{mean:.{digits}f}"
    if known and known.interval:
        text = f"{known.text} {known.interval}{f' {MARKS[known.verdict]}' if known.verdict else ''}"
    elif len(values) > 1:
        text += f" ± {values.std(ddof=1) / np.sqrt(len(values)):.{digits}f}"
    return text, mean


def show(
    tasks: Sequence[PlannedTask],
    cells: Sequence[Cell],
    average: Average | None = None,
    report: Report | None = None,
) -> None:
    """Print the table and the report's sentence, then notes and what is missing, a line each; notes
    of a task that differ only in numbers are one."""
    known = (
        {
            (n.backbone, n.task, n.metric): n
            for table in report.tables
            for _, row in table.rows
            for n in row
        }
        if report
        else {}
    )
    table = results_table(tasks, cells, known)
    if not console.is_terminal:  # a log file has no width: a number must not be broken in two there
        wanted = Measurement.get(console, console.options.update(width=1000), table).maximum
        console.width = max(console.width, wanted)
    console.print(table)
    if report and len(report.backbones) > 1:
        console.print(f"  {report.verdict.headline}", style="bold", markup=False)
    for line in average.lines(cells) if average else ():
        console.print(f"  {line}", markup=False)
    if average and average.absent:
        console.print(
            f"  missing · no data of {len(average.absent)} tasks: {', '.join(average.absent)}",
            markup=False,
        )
    for task in [task.name for task in tasks]:
        mine = [cell for cell in cells if cell.task == task]
        for who, note in merged_notes(mine):
            console.print(f"  note · {task}{who}: {note}", style="dim", markup=False)
        for cell in mine:
            if cell.status in ("failed", "not applicable"):
                who = f"{task} · {cell.backbone} · seed {cell.seed}"
                console.print(f"  missing · {who}: {cell.status}, {cell.reason}", markup=False)


NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w])")


def merged_notes(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """Each note of a task's cells once: (whose it is, its text), with a range in the place of
    numbers that differ."""
    found: dict[str, list[tuple[str, str]]] = {}
    for cell in cells:
        for note in cell.notes:
            found.setdefault(NUMBER.sub("#", note), []).append((cell.backbone, note))
    told, having = [], {cell.backbone for cell in cells if cell.notes}
    for same in found.values():
        who = list(dict.fromkeys(backbone for backbone, _ in same))
        columns = zip(*(NUMBER.findall(note) for _, note in same), strict=True)
        ranges = [_range(list(values)) for values in columns]
        told.append(
            (f" · {', '.join(who)}" if set(who) != having else "", _filled(same[0][1], ranges))
        )
    return told


def _filled(note: str, numbers: Sequence[str]) -> str:
    left = iter(numbers)
    return NUMBER.sub(lambda _: next(left), note)


def _range(values: Sequence[str]) -> str:
    low, high = min(values, key=float), max(values, key=float)
    return low if float(low) == float(high) else f"{low}–{high}"


def number(value: float | None) -> str:
    """For people; a dash for what is missing."""
    return (
        "–"
        if value is None or not np.isfinite(value)
        else (f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}")
    )
