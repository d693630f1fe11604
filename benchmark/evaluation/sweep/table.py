"""What a sweep says in the terminal: where it stands, its trials, and the best λ of each task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmark.execution.progress import console
from sweeps.errors import SweepError
from sweeps.space import short
from sweeps.study import Sweep
from sweeps.summary import Row, best_trial, noise_values, pareto_front, progress, summary, trial_rows

say = partial(console.print, markup=False)


def number(value: float) -> str:
    """A dash for what there is not."""
    return "–" if math.isnan(value) else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def show_state(sweep: Sweep) -> int:
    """Where the sweep stands, in cells; returns 1 when some were given up or are left."""
    now = progress(sweep)
    line = f"{sweep.name}: {now.done} of {now.total} cells done"
    line += f" ({now.pruned} pruned)" if now.pruned else ""
    line += f", {now.running} running, {now.left - now.running} left"
    line += f", {now.failures} attempts failed" if now.failures else ""
    if now.left and not math.isnan(now.seconds):
        minutes = now.seconds_left / 60
        line += f"; about {minutes:.0f} min left" if minutes > 1.5 else f"; about {now.seconds_left:.0f} s left"
    say(line)
    for cell, reason in now.given_up.items():
        say(f"  given up: {cell}: {reason} (`sweep launch` tries it again)")
    return 1 if now.given_up or now.left else 0


def show_trials(sweep: Sweep) -> None:
    """Every trial with its gains, best first."""
    tasks = list(sweep.tasks)
    objectives = [objective.label.replace(" over clip-ft (%)", "") for objective in sweep.objectives]
    table = _table(f"{sweep.name}: gains over clip-ft in %", ["trial", "λ"], [*objectives, *tasks], "state")
    for row in trial_rows(sweep):
        values = [f"{value:+.2f}" for value in row["values"]] or ["–"] * len(objectives)
        gains = [f"{row['gains'][task]:+.1f}" if task in row["gains"] else "–" for task in tasks]
        state = row["state"].lower() + (" ◆ Pareto" if row["pareto"] else "")
        state += f": {row['reason']}" if row["reason"] else ""
        table.add_row(str(row["number"]), escape(row["cell"]), *values, *gains, escape(state))
    _show(table)


def show_summary(sweep: Sweep) -> None:
    """Objectives and tasks, each with its best λ, beside the base cell and clip-ft, with the noise."""
    rows, seeds = summary(sweep), len(noise_values(sweep))
    title = f"best λ for each task (noise: standard deviation over {seeds} seeds)"
    table = _table(title, ["", "best λ"], ["value", "all λ at base", "clip-ft", "noise"], "")
    for index, row in enumerate(rows, 1):
        what = escape(f"{row.what} {row.metric}".strip()) + (" ↑" if row.sign > 0 else " ↓")
        values = map(number, (row.value, row.base, row.baseline, row.noise))
        table.add_row(what, escape(row.best), *values, _verdict(row), end_section=index == len(sweep.objectives))
    if rows:
        _show(table)


def show_best(sweep: Sweep) -> None:
    """The best trial, or the Pareto front. Raises ``SweepError`` while there is none."""
    best = best_trial(sweep)
    if best is None:
        raise SweepError(f"study {sweep.name!r} has no finished trial yet; see `sweep status`")
    for trial in pareto_front(sweep) or [best]:
        say(f"trial {trial.number} · {short(trial.params)} · {sweep.told(trial.values)}")
        run, weights = (trial.user_attrs.get(key, "–") for key in ("mlflow.run", "weights.file"))
        say(f"  MLflow run {run}, weights {weights}")
    if len(sweep.objectives) > 1:
        say(f"(the Pareto front; the recipe is trial {best.number}'s, best by {sweep.objectives[0].label})")


def _verdict(row: Row) -> str:
    if math.isnan(row.noise) or math.isnan(row.base) or row.value == row.base:
        return ""
    return "clear" if row.clear else "within noise"


def _table(title: str, words: Sequence[str], numbers: Sequence[str], last: str) -> Table:
    """A table with columns of words, of numbers, and a last one of words."""
    table = Table(title=title, title_justify="left", title_style="dim")
    for name in words:
        table.add_column(escape(name), no_wrap=True)
    for name in numbers:
        table.add_column(escape(name), justify="right")
    table.add_column(last)
    return table


def _show(table: Table) -> None:
    # a file has no width to keep to
    (console if console.is_terminal else Console(highlight=False, width=200)).print(table)
