"""The table in the terminal at the end of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from benchmark.execution.progress import console
from benchmark.results.run_result import RunResult
from reports.cell import Cell
from reports.parts.tables import Number, count, digits
from reports.stats.intervals import Estimate

if TYPE_CHECKING:
    from reports.report import Report

Numbers = Mapping[tuple[str, str, str], Number]  # (backbone, task, metric) → number
NUMERAL = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w])")


def show(result: RunResult, report: Report | None = None) -> None:
    """Print the report's numbers and verdict, then the best values of axes, averages, notes and
    missing values, a line each. Without a report, the numbers are the means of ``run --json``."""
    numbers = report.numbers() if report else mean_numbers(result)
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
        if any(number.of_these_weights for number in numbers.values()):
            title += ", △ ▽ of one seed"
    table = Table(title=title, title_justify="left", title_style="dim", box=box.SIMPLE_HEAD)
    table.add_column("task")
    table.add_column("metric")
    for name in names:
        table.add_column(name, justify="right")
    missing: dict[tuple[str, str], str] = {}
    for cell in result.cells:
        if not cell.is_finished:
            of_seed = f" with seed {cell.seed}" if len(seeds) > 1 else ""
            missing.setdefault((cell.backbone, cell.task), cell.status + of_seed)
    for task in result.tasks:
        label = task.name
        for metric, about in task.probe.metrics.items():
            # without metrics that no backbone has but the main one, as in the report
            has_number = any((name, task.name, metric) in numbers for name in names)
            if metric == task.main_metric or (about.shown and has_number):
                row = []
                for name in names:
                    number = numbers.get((name, task.name, metric))
                    text = Text(missing.get((name, task.name), "–"))
                    row.append(_cell(number, len(seeds)) if number else text)
                table.add_row(label, f"{metric} {'↑' if about.direction > 0 else '↓'}", *row)
                label = ""
    return table


def _cell(number: Number, seeds: int) -> Text:
    """Value, interval or else standard error, mark, and the number of its seeds if it is not
    ``seeds``."""
    if number.missing:
        return Text(number.missing.partition(":")[0])
    spread = number.interval or (f"± {number.error}" if number.error else "")
    fewer = f"({count(number.seeds, 'seed')})" if 0 < number.seeds < seeds else ""
    words = filter(None, [number.text, spread, number.mark, fewer])
    return Text(" ".join(words), style="bold" if number.best else "")


def mean_numbers(result: RunResult) -> Numbers:
    """The means of ``run --json``, which no report has judged."""
    numbers = {}
    metrics = {task.name: task.probe.metrics for task in result.tasks}
    for name, tasks in result.means().items():
        for task, means in tasks.items():
            for metric, mean in means.items():
                about, decimals = metrics[task][metric], digits([Estimate(mean)])
                number = Number(name, task, "", metric, about.direction, mean, digits=decimals)
                numbers[name, task, metric] = number
    return numbers


def note_lines(cells: Sequence[Cell]) -> list[str]:
    """The notes of a task's cells; of those that differ only in numbers, the first and how many
    more there are."""
    similar: dict[str, list[str]] = {}
    for cell in cells:
        for note in cell.notes:
            line = f" · {cell.backbone} · seed {cell.seed}: {note}"
            similar.setdefault(NUMERAL.sub("#", note), []).append(line)
    lines = []
    for first, *rest in similar.values():
        lines.append(f"{first} (and {len(rest)} more like it)" if rest else first)
    return lines
