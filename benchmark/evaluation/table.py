"""The table in the terminal at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich import box
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from benchmark.evaluation.average import Average
from benchmark.evaluation.cell import Cell
from benchmark.evaluation.plan import PlannedTask
from benchmark.execution.progress import console


def results_table(tasks: Sequence[PlannedTask], cells: Sequence[Cell]) -> Table:
    """Tasks down, backbones across; with several seeds mean ± standard error. The best mean of a row is bold."""
    names = list(dict.fromkeys(cell.backbone for cell in cells))
    seeds = list(dict.fromkeys(cell.seed for cell in cells))
    title = f"mean ± standard error over {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}" if seeds else ""
    table = Table(title=title, title_justify="left", title_style="dim", box=box.SIMPLE_HEAD)
    table.add_column("task")
    table.add_column("metric")
    for name in names:
        table.add_column(name, justify="right")
    for task in tasks:
        main = next(iter(task.probe.metrics))
        shown = [(name, one.direction) for name, one in task.probe.metrics.items() if one.shown or name == main]
        for number, (metric, sign) in enumerate(shown):
            texts: list[str | Text] = []
            means = []
            for name in names:
                mine = [c for c in cells if c.backbone == name and c.task == task.name]
                values = np.array([c.metrics.get(metric, np.nan) for c in mine])
                text, mean = _cell(values, mine)
                texts.append(text)
                means.append(mean * sign)
            if len(names) > 1 and np.isfinite(means).any():
                best = int(np.nanargmax(means))
                texts[best] = Text(str(texts[best]), style="bold")
            arrow = "↑" if sign > 0 else "↓"
            table.add_row(task.name if number == 0 else "", f"{metric} {arrow}", *texts)
    return table


def _cell(values: np.ndarray, cells: Sequence[Cell]) -> tuple[str, float]:
    if not len(values) or not np.isfinite(values).all():
        return (cells[0].status if cells and not any(cell.metrics for cell in cells) else "–"), np.nan
    mean = float(values.mean())
    digits = 3 if abs(mean) < 10 else 1
    text = f"{mean:.{digits}f}"
    if len(values) > 1:
        text += f" ± {values.std(ddof=1) / np.sqrt(len(values)):.{digits}f}"
    return text, mean


def show(tasks: Sequence[PlannedTask], cells: Sequence[Cell], average: Average | None = None) -> None:
    """Print the table, then notes and what is missing, one line each; what is true of all cells of a task is said once."""
    table = results_table(tasks, cells)
    if not console.is_terminal:  # a log file has no width: a number must not be broken in two there
        wanted = Measurement.get(console, console.options.update(width=1000), table).maximum
        console.width = max(console.width, wanted)
    console.print(table)
    for line in average.lines(cells) if average else ():
        console.print(f"  {line}", markup=False)
    if average and average.absent:
        console.print(f"  missing · no data of {len(average.absent)} tasks: {', '.join(average.absent)}", markup=False)
    for task in [task.name for task in tasks]:
        mine = [cell for cell in cells if cell.task == task]
        common = [note for note in mine[0].notes if len(mine) > 1 and all(note in cell.notes for cell in mine)]
        for note in common:
            console.print(f"  note · {task}: {note}", style="dim", markup=False)
        for cell in mine:
            who = f"{task} · {cell.backbone} · seed {cell.seed}"
            for note in cell.notes:
                if note not in common:
                    console.print(f"  note · {who}: {note}", style="dim", markup=False)
            if cell.status in ("failed", "not applicable"):
                console.print(f"  missing · {who}: {cell.status}, {cell.reason}", markup=False)


def number(value: float | None) -> str:
    """For people; a dash for what is missing."""
    return "–" if value is None or not np.isfinite(value) else (f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}")
