"""What ``sweep`` prints: the state of a sweep, its trials, and the best λ of each task."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from benchmark.execution.progress import console
from benchmark.results.table import format_number
from cliptex_common.errors import UserError
from sweeps.space import short
from sweeps.study import Sweep
from sweeps.summary import (
    best_recipe,
    best_trial,
    is_allowed,
    pareto_front,
    progress,
    run_again,
    summary,
    trial_table,
)

print_line = console.print
HEADINGS = {
    "what": "",
    "best": "best λ",
    "value": "value",
    "base": "all λ at base",
    "baseline": "clip-ft",
    "confirmed": "again",
    "noise": "noise",
    "verdict": " ",
}


def state(sweep: Sweep) -> dict[str, Any]:
    """The state of the sweep, in cells; seconds are None before the first finished trial."""
    return {"study": sweep.name, **asdict(progress(sweep))}


def trials(sweep: Sweep) -> list[dict[str, Any]]:
    """Every trial with its gains, best first."""
    return json.loads(trial_table(sweep).to_json(orient="records"))


def best(sweep: Sweep) -> dict[str, Any]:
    """The best trial, or those of the Pareto front, and the recipe of the best. Raises
    ``UserError`` before the first finished trial."""
    chosen = best_trial(sweep)
    if chosen is None:
        raise UserError(f"study {sweep.name!r} has no finished trial yet; see `sweep status`")
    labels = [objective.label for objective in sweep.objectives]
    front = [
        {
            "trial": trial.number,
            "params": trial.params,
            "values": dict(zip(labels, trial.values, strict=True)),
            "run": trial.user_attrs.get("mlflow.run"),
            "weights": trial.user_attrs.get("weights.file"),
        }
        for trial in pareto_front(sweep) or [chosen]
    ]
    return {"study": sweep.name, "trials": front, "recipe": best_recipe(sweep, chosen)}


def show_state(sweep: Sweep) -> int:
    """Print the state of the sweep; returns 1 if cells are given up or pending."""
    now = progress(sweep)
    line = f"{sweep.name}: {now.done} of {now.total} cells done"
    line += f" ({now.pruned} pruned)" if now.pruned else ""
    line += f", {now.running} running, {now.pending - now.running} left"
    line += f", {now.failures} attempts failed" if now.failures else ""
    line += f"; about {now.seconds_left / 60:.1f} min left" if now.seconds_left else ""
    print_line(line)
    for cell, reason in now.given_up.items():
        print_line(f"  given up: {cell}: {reason} (`sweep launch` tries it again)")
    return int(bool(now.given_up or now.pending))


def show_trials(sweep: Sweep) -> None:
    """Print every trial with its gains, best first, and the summary."""
    print_line(f"{sweep.name}: gains over clip-ft in %")
    print_line(trial_table(sweep).to_string(index=False, na_rep="–", float_format="{:+.2f}".format))
    print_line(summary_text(sweep))


def summary_text(sweep: Sweep) -> str:
    """Objectives and tasks, each with its best λ, beside the base cell and clip-ft, and whether
    that is more than noise; '' before the first finished trial."""
    rows, winner = summary(sweep), best_trial(sweep)
    if winner is None or rows.empty:
        return ""
    arrows = rows["sign"].map({1: "↑", -1: "↓"})
    rows["what"] += " " + rows["metric"] + " " + arrows
    table = rows[list(HEADINGS)].rename(columns=HEADINGS)
    fresh = run_again(sweep, winner.params).keys() & run_again(sweep, sweep.space.base).keys()
    text = (
        f"best λ for each task (again: winner - base over {len(fresh)} fresh seeds; noise: standard"
        " deviation of base over seeds)\n"
    )
    text += table.to_string(index=False, na_rep="–", float_format=format_number)
    if not is_allowed(sweep, winner):
        text += "\nevery trial loses more in zero-shot than --zero-shot-loss allows"
    return text


def show_best(sweep: Sweep) -> None:
    """Print ``best``."""
    for trial in best(sweep)["trials"]:
        values = sweep.describe(trial["values"].values())
        print_line(f"trial {trial['trial']} · {short(trial['params'])} · {values}")
        print_line(f"  MLflow run {trial['run']}, weights {trial['weights']}")
    if len(sweep.objectives) > 1:
        label = sweep.objectives[0].label
        print_line(f"(the Pareto front; the recipe is that of the best trial by {label})")
