"""What a sweep says in the terminal: where it stands, its trials, and the best λ of each task."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from functools import partial
from typing import Any

from benchmark.execution.progress import console
from benchmark.results.table import number
from common.errors import UserError
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

print_line = partial(console.print, markup=False)


def state(sweep: Sweep) -> dict[str, Any]:
    """Where the sweep stands, in cells; seconds are None while they are not known."""
    now = progress(sweep)
    seconds_left = None if math.isnan(now.seconds_left) else now.seconds_left
    return {
        "study": sweep.name,
        **asdict(now),
        "seconds": seconds_left and now.seconds,
        "left": now.pending,
        "seconds_left": seconds_left,
    }


def trials(sweep: Sweep) -> list[dict[str, Any]]:
    """Every trial with its gains, best first."""
    return json.loads(trial_table(sweep).to_json(orient="records"))


def best(sweep: Sweep) -> dict[str, Any]:
    """The best trial, or those of the Pareto front, and the recipe of the best. Raises
    ``UserError`` while there is none."""
    chosen = _chosen(sweep)
    front = [
        {
            "trial": trial.number,
            "params": trial.params,
            "values": dict(
                zip((objective.label for objective in sweep.objectives), trial.values, strict=True)
            ),
            "run": trial.user_attrs.get("mlflow.run"),
            "weights": trial.user_attrs.get("weights.file"),
        }
        for trial in pareto_front(sweep) or [chosen]
    ]
    return {"study": sweep.name, "trials": front, "recipe": best_recipe(sweep, chosen)}


def show_state(sweep: Sweep) -> int:
    """Where the sweep stands, in cells; returns 1 when some were given up or are left."""
    now = progress(sweep)
    line = f"{sweep.name}: {now.done} of {now.total} cells done"
    line += f" ({now.pruned} pruned)" if now.pruned else ""
    line += f", {now.running} running, {now.pending - now.running} left"
    line += f", {now.failures} attempts failed" if now.failures else ""
    if now.pending and not math.isnan(now.seconds):
        minutes = now.seconds_left / 60
        line += (
            f"; about {minutes:.0f} min left"
            if minutes > 1.5
            else f"; about {now.seconds_left:.0f} s left"
        )
    print_line(line)
    for cell, reason in now.given_up.items():
        print_line(f"  given up: {cell}: {reason} (`sweep launch` tries it again)")
    return 1 if now.given_up or now.pending else 0


def show_trials(sweep: Sweep) -> None:
    """Every trial with its gains, best first, and the summary."""
    print_line(f"{sweep.name}: gains over clip-ft in %")
    print_line(trial_table(sweep).to_string(index=False, na_rep="–", float_format="{:+.2f}".format))
    print_line(summary_text(sweep))


def summary_text(sweep: Sweep) -> str:
    """Objectives and tasks, each with its best λ, beside the base cell and clip-ft, and whether
    that is more than noise; '' before the first."""
    rows, best = summary(sweep), best_trial(sweep)
    if best is None or rows.empty:
        return ""
    records: list[Any] = rows.to_dict("records")
    rows["what"] += [f" {row['metric']} {'↑' if row['sign'] > 0 else '↓'}" for row in records]
    names = {
        "what": "",
        "best": "best λ",
        "value": "value",
        "base": "all λ at base",
        "baseline": "clip-ft",
        "confirmed": "again",
        "noise": "noise",
        "verdict": " ",
    }
    rows = rows[list(names)].rename(columns=names)
    fresh = len(run_again(sweep, best.params).keys() & run_again(sweep, sweep.space.base).keys())
    title = (
        f"best λ for each task (again: winner - base over {fresh} fresh seeds; noise: standard"
        " deviation of base over seeds)"
    )
    warning = (
        ""
        if is_allowed(sweep, best)
        else "\nevery trial loses more in zero-shot than --zero-shot-loss allows"
    )
    return f"{title}\n{rows.to_string(index=False, na_rep='–', float_format=number)}{warning}"


def show_best(sweep: Sweep) -> None:
    """The best trial, or the Pareto front. Raises ``UserError`` while there is none."""
    best = _chosen(sweep)
    for trial in pareto_front(sweep) or [best]:
        print_line(f"trial {trial.number} · {short(trial.params)} · {sweep.describe(trial.values)}")
        run, weights = (trial.user_attrs.get(key, "–") for key in ("mlflow.run", "weights.file"))
        print_line(f"  MLflow run {run}, weights {weights}")
    if len(sweep.objectives) > 1:
        print_line(
            f"(the Pareto front; the recipe is trial {best.number}'s, best by"
            f" {sweep.objectives[0].label})"
        )


def _chosen(sweep: Sweep) -> Any:
    best = best_trial(sweep)
    if best is None:
        raise UserError(f"study {sweep.name!r} has no finished trial yet; see `sweep status`")
    return best
