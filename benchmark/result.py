"""What a run returns (``RunResult``): as JSON (the contract of ``run --json``), as the report's
page, and as the table in the terminal.
"""

from __future__ import annotations

import re
import shlex
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from benchmark.progress import console
from benchmark.suites import Suite
from benchmark.tasks import PlannedTask
from cliptex_common.errors import UserError, hide_secrets
from cliptex_common.files import json_output_path
from probes.registry import find_task
from reports.records import Cell
from reports.statistics import Estimate
from reports.tables import Number, count, digits
from reports.tracking import Tracker

if TYPE_CHECKING:
    from reports.report import Report


AVERAGE = "average"


@dataclass(frozen=True)
class RunResult:
    """A run's cells and where they are in MLflow.

    Attributes:
        cells: their backbones are the names of columns (``reports.selection.weights_labels``).
        run_ids: (backbone, seed) → its parent run; absent if its weights cannot be made or loaded
            or its parent run cannot be written (all its cells are failed).
        absent: tasks of the suite that have no data.
    """

    suite: Suite
    tasks: Sequence[PlannedTask]
    cells: Sequence[Cell]
    run_ids: Mapping[tuple[str, int], str]
    tracker: Tracker
    absent: Sequence[PlannedTask] = ()

    @property
    def failed(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.status == "failed"]

    @property
    def backbones(self) -> list[str]:
        return list(dict.fromkeys(cell.backbone for cell in self.cells))

    @property
    def seeds(self) -> list[int]:
        return list(dict.fromkeys(cell.seed for cell in self.cells))

    def seeds_of(self, backbone: str) -> list[int]:
        """Fewer than ``seeds`` where each seed has weights, and a column, of its own."""
        return list(dict.fromkeys(cell.seed for cell in self.cells if cell.backbone == backbone))

    def means(self) -> dict[str, dict[str, dict[str, float]]]:
        """Backbone → task → metric → mean over the seeds; without metrics that a seed lacks."""
        values = defaultdict[tuple[str, str, str], list[float]](list)
        for cell in self.cells:
            for metric, value in cell.metrics.items():
                if np.isfinite(value):
                    values[cell.backbone, cell.task, metric].append(value)
        means: dict[str, dict] = {name: {} for name in self.backbones}
        for (name, task, metric), of_seeds in values.items():
            if len(of_seeds) == len(self.seeds_of(name)):
                means[name].setdefault(task, {})[metric] = float(np.mean(of_seeds))
        return means

    def averages(self, backbone: str, seed: int) -> dict[str, dict[str, float]]:
        """``suite_averages`` of a backbone and seed."""
        cells = [c for c in self.cells if (c.backbone, c.seed) == (backbone, seed)]
        return suite_averages(self.suite, cells)


def suite_averages(suite: Suite, cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """Averages of one backbone and seed: probe and tier (``linear:tune=all``; '' where the suite
    has no groups, of all its tasks) → ``average``, and the mean of each group. Without those of
    which a task has no number; empty if the suite publishes none."""
    if not suite.average:
        return {}
    metrics = {cell.task: cell.metrics for cell in cells}

    def mean(tasks: Iterable[str], name: str = "") -> float:
        names = {task: name or next(iter(find_task(task)[1].metrics)) for task in tasks}
        return float(np.mean([metrics.get(t, {}).get(names[t], np.nan) for t in names]))

    averages = {} if suite.groups else {"": {AVERAGE: mean(suite.tasks)}}
    variants = dict.fromkeys(task.partition("/")[2] for task in metrics) if suite.groups else ()
    for variant in variants:
        means = {
            group: mean((f"{name}/{variant}" for name in datasets), suite.group_metric)
            for group, datasets in suite.groups.items()
        }
        averages[variant] = {AVERAGE: float(np.mean([*means.values()])), **means}
    return {name: each for name, each in averages.items() if np.isfinite(each[AVERAGE])}


def as_json(result: RunResult) -> dict[str, Any]:
    """The result as JSON; with several seeds ``backbones`` holds means and ``by_seed`` the values
    of each seed."""
    seeds, names = result.seeds, result.backbones
    by_seed: dict[str, dict] = {str(seed): {name: {} for name in names} for seed in seeds}
    for cell in result.cells:
        finite = {name: float(value) for name, value in cell.metrics.items() if np.isfinite(value)}
        if finite:
            by_seed[str(cell.seed)][cell.backbone][cell.task] = finite
    run_ids: dict[str, dict[str, str]] = {str(seed): {} for seed in seeds}
    for (name, seed), run_id in result.run_ids.items():
        run_ids[str(seed)][name] = run_id
    document: dict[str, Any] = {
        "suite": result.suite.name,
        "seed": seeds[0],
        "backbones": result.means(),
        "mlflow": {
            "tracking_uri": hide_secrets(result.tracker.uri),
            "experiment": result.tracker.experiment,
            "run_ids": run_ids[str(seeds[0])],
        },
    }
    if len(seeds) > 1:
        document |= {"seeds": seeds, "by_seed": by_seed}
        document["mlflow"]["run_ids_by_seed"] = run_ids
    if result.suite.average:
        document["average"] = {
            "title": result.suite.average,
            "tasks": len(result.suite.tasks),
            "backbones": {name: _mean_averages(result, name) for name in names},
            "absent": [task.name for task in result.absent],
        }
    if incomplete := list(filter(None, map(_missing_metrics, result.cells))):
        document["holes"] = incomplete
    return document


def _mean_averages(result: RunResult, backbone: str) -> Any:
    """The means over all seeds: of a suite with groups as ``suite_averages``, else a number or
    None."""
    of_seeds = [result.averages(backbone, seed) for seed in result.seeds_of(backbone)]
    shared = [name for name in of_seeds[0] if all(name in each for each in of_seeds)]
    means = {
        name: {
            group: float(np.mean([each[name][group] for each in of_seeds]))
            for group in of_seeds[0][name]
        }
        for name in shared
    }
    return means if result.suite.groups else means.get("", {}).get(AVERAGE)


def _missing_metrics(cell: Cell) -> dict[str, Any] | None:
    """The metrics that a cell lacks, and why; None if it is complete."""
    metrics = find_task(cell.task)[1].metrics
    missing = [name for name in metrics if not np.isfinite(cell.metrics.get(name, np.nan))]
    if not missing:
        return None
    ran = cell.status in ("done", "cached")
    return {
        "backbone": cell.backbone,
        "task": cell.task,
        "seed": cell.seed,
        "metrics": missing,
        "status": "no value" if ran else cell.status,
        "reason": "undefined on this data" if ran else cell.reason,
    }


def check_writable(path: Path, option: str = "--json") -> None:
    """Raise ``UserError`` if the file could not be written at the end of the work."""
    try:
        path = json_output_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except UserError as error:
        raise UserError(f"{option} {error}") from None
    except OSError as error:
        raise UserError(
            f"{option} {path}: cannot write there ({error.strerror or error}); name another file"
        ) from None


def show_with_report(result: RunResult, page: bool | None, flag: str = "") -> str:
    """``show`` the result; returns a line with the path of its page, or with what makes one.

    Args:
        page: whether to make it; None for a comparison alone.
        flag: that names the store, for the command that makes it.
    """
    names = list(dict.fromkeys(cell.backbone for cell in result.cells if cell.metrics))
    if page is None:
        page = len(names) > 1 or any("=" in cell.task for cell in result.cells)
    if not names:
        show(result)
        return ""
    words = ["--experiment", result.tracker.experiment, "--backbone", ",".join(names)]
    command = f"python -m benchmark report {shlex.join(words)}{flag}"
    line, _ = write_report(result, partial(show, result), page)
    return line or f"for a report: {command}"


def write_report(
    result: RunResult,
    show: Callable[[Report | None], None] = lambda report: None,
    page: bool = True,
) -> tuple[str, Report | None]:
    """``attach_report`` on a run, to the runs of each backbone's first seed."""
    from reports.pages import attach_report  # slow to import
    from reports.report import ReportRequest

    cells = [cell for cell in result.cells if cell.status != "not applicable"]
    request = ReportRequest(
        experiments=[result.tracker.experiment],
        backbones=list(dict.fromkeys(cell.backbone for cell in cells if cell.metrics)),
        tasks=list(dict.fromkeys(cell.task for cell in cells)),
        tracking_uri=result.tracker.uri,
        # only these numbers, beside nothing with other settings
        like_runs=[*result.run_ids.values(), *(cell.run_id for cell in cells)],
    )
    first_seeds: dict[str, str] = {}
    for (name, _), run_id in result.run_ids.items():
        first_seeds.setdefault(name, run_id)
    return attach_report(request, list(first_seeds.values()), show, page)


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
    if report:
        for line in [*report.levels, *report.axes, *report.mode_changes, *report.steps]:
            console.print(f"  {line}")
    for name, seed in result.run_ids:
        for variant, means in result.averages(name, seed).items():
            title = " · ".join(filter(None, [result.suite.average, variant, name]))
            groups = [f"{group} {mean:.2f}" for group, mean in means.items() if group != AVERAGE]
            text = f"{means[AVERAGE]:.2f}" + (f" ({', '.join(groups)})" if groups else "")
            console.print(f"  {title} · seed {seed}: {text}")
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
            # of several seeds the first; the lines below the table have all
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
