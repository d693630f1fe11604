"""``sweep``: search λs (and other recipe settings) with Optuna, every trial an MLflow run."""

from __future__ import annotations

import argparse
import math
import shlex
from pathlib import Path
from typing import Any

from benchmark.cli.options import add_data, add_execution, add_tracking, executor_spec, placed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``sweep``."""
    commands = parser.add_subparsers(dest="what", required=True)
    launch = commands.add_parser("launch", help="start a sweep or go on with it, then sum it up")
    _add_study(launch, "name of the study (default: SUITE-SEARCH)")
    add = launch.add_argument
    add("--suite", default="sweep", help="tasks to choose λs by (default: sweep); see `list suites`")
    add("--task", action="append", default=[], metavar="TASK[,TASK]", help="only these of the suite's tasks")
    add(
        "--search", default="linear", choices=("linear", "grid", "tpe", "random", "cmaes"),
        help="linear: one λ at a time, the others at 1, as the paper did (default); grid: every combination; or a sampler",
    )  # fmt: skip
    add("--lambdas", default="clip,seg,depth,normal", metavar="NAMES", help="which λs are varied (default: all four)")
    add("--values", default="0.1,1,10", metavar="A,B,C", help="what linear and grid search try (default: 0.1,1,10)")
    add(
        "--range", default="0.01,100", metavar="LOW,HIGH", dest="between",
        help="samplers' range, log scale (default: 0.01,100)",
    )  # fmt: skip
    add(
        "--vary", action="append", default=[], metavar="KEY=A,B|LOW:HIGH",
        help="also vary a recipe setting: lr=1e-4,1e-3, epochs=1:4, 'experts=seg|seg,depth' (repeatable)",
    )  # fmt: skip
    add("--trials", type=int, default=40, metavar="N", help="trials of a sampler; may grow later (default: 40)")
    add(
        "--objective", action="append", default=[], metavar="NAME",
        help="gain: mean relative gain over clip-ft on all tasks (default); dense, zero-shot: on those tasks; or "
        "TASK/METRIC. Repeated: a Pareto front",
    )  # fmt: skip
    add("--prune", default="", metavar="METRIC", help="stop bad trials by successive halving on val/i2t_R@1 …")
    add("--seeds", type=int, default=3, metavar="N", help="seeds of the base cell, for the noise (default: 3)")
    add("--seed", type=int, default=0)
    add(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
        help="a recipe setting that all trials share",
    )  # fmt: skip
    add(
        "--set-task", action="append", default=[], metavar="KEY=VALUE", dest="task_changes",
        help="change a setting of the tasks",
    )  # fmt: skip
    add("--recipe", default="cliptex", metavar="NAME|FILE", help="whose settings (but the λs) all trials share")
    add("--out", type=Path, metavar="FILE.json", help="recipe file of the best trial (default: STUDY-best.json)")
    add("--partial", action="store_true", help="probe on datasets that are not whole")
    add("--experiment", help="MLflow experiment (default: sweep, or sweep-SUITE)")
    add("--init", default="", metavar="WEIGHTS", help="initial weights, as for `train` (suites of real data)")
    add("--pairs", default="", metavar="SHARDS|CSV", help="image-caption pairs (suites of real data)")
    add("--labels", default="", metavar="DIR", help="their pseudo-labels (suites of real data)")
    add_data(launch)
    add_execution(launch)
    add_tracking(launch)

    for name, about in (
        ("status", "done, running, failed, left, and time left"),
        ("show", "every trial, and best λ per task"),
    ):
        _add_study(commands.add_parser(name, help=about), "which study (default: the only one there)")
    best = commands.add_parser("best", help="the best λs, and a recipe file that `train --recipe` takes")
    _add_study(best, "which study (default: the only one there)")
    best.add_argument("--out", type=Path, metavar="FILE.json", help="write the recipe there")


def _add_study(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument("--study", metavar="NAME", help=about)
    parser.add_argument(
        "--storage", metavar="URL",
        help="sqlite:///FILE.db, postgresql://… or journal:///FILE.log (default: sqlite:///sweeps.db here)",
    )  # fmt: skip


def main(options: argparse.Namespace) -> int:
    """One of launch, status, best, show."""
    return {"launch": _launch, "status": _status, "best": _best, "show": _show}[options.what](options)


def _launch(options: argparse.Namespace) -> int:
    from backbones.overrides import parse_pairs
    from benchmark.cli.options import at_least
    from benchmark.evaluation import sweep as launching
    from benchmark.evaluation.plan import split_names
    from benchmark.evaluation.sweep_bench import Request
    from benchmark.execution.progress import console
    from reports.store import hide_password, using
    from sweeps.storage import storage_url

    at_least(1, seeds=options.seeds)
    request = Request(
        suite=options.suite, tasks=split_names(options.task), changes=options.changes, task_changes=options.task_changes,
        recipe=_whole(options.recipe), init=_whole(options.init), pairs=_whole(options.pairs), labels=_whole(options.labels),
        data_root=options.data_root and options.data_root.absolute(), partial=options.partial, seed=options.seed,
        data={name: path.absolute() for name, path in placed(options.data).items()},
    )  # fmt: skip
    told = launching.SweepOptions(
        request=request, study=options.study or "", storage=options.storage, search=options.search,
        lambdas=split_names([options.lambdas]), values=_numbers("--values", options.values), between=_pair(options.between),
        vary=parse_pairs(options.vary), trials=options.trials, objectives=split_names(options.objective) or ["gain"],
        prune=options.prune, seeds=options.seeds, num_workers=options.num_workers, executor=executor_spec(options),
        experiment=options.experiment, out=options.out,
    )  # fmt: skip
    with using(options.tracking_uri) as uri:
        result = launching.launch(told)
        sweep = result.sweep
        _print_summary(sweep)
        code = _print_state(sweep)
        if result.recipe:
            console.print(f"train the best λs: {_train_command(result.recipe, request)}", markup=False)
        console.print(launching.make_report(result), markup=False)
    flag = f" --tracking-uri {hide_password(uri)}" if options.tracking_uri else ""
    where = f"experiment {result.tracker.experiment}: python -m benchmark ui{flag}"
    console.print(f"every trial is in MLflow, {where}", markup=False)
    storage = shlex.quote(hide_password(storage_url(options.storage)))
    show = f"python -m benchmark sweep show --study {shlex.quote(sweep.name)} --storage {storage}"
    dashboard = storage_url(options.storage).removeprefix("journal:///")
    console.print(f"every trial: {show}   or: optuna-dashboard {hide_password(dashboard)}", markup=False)
    return code


def _status(options: argparse.Namespace) -> int:
    from sweeps.study import load_sweep

    sweep = load_sweep(options.study, options.storage)
    _print_state(sweep)
    return 0


def _best(options: argparse.Namespace) -> int:
    from backbones.files import write_json
    from benchmark.execution.progress import console
    from sweeps.errors import SweepError
    from sweeps.space import short
    from sweeps.study import load_sweep
    from sweeps.summary import best_recipe, best_trial, pareto_front

    sweep = load_sweep(options.study, options.storage)
    best = best_trial(sweep)
    if best is None:
        raise SweepError(f"study {sweep.name!r} has no finished trial yet; see `sweep status`")
    for trial in pareto_front(sweep) if len(sweep.objectives) > 1 else [best]:
        values = ", ".join(f"{o.label} {v:+.3g}" for o, v in zip(sweep.objectives, trial.values, strict=True))
        console.print(f"trial {trial.number} · {short(trial.params)} · {values}", markup=False)
        console.print(
            f"  MLflow run {trial.user_attrs.get('mlflow.run', '–')}, weights {trial.user_attrs.get('weights.file', '–')}",
            markup=False,
        )
    if len(sweep.objectives) > 1:
        console.print(
            f"(the Pareto front; the recipe is trial {best.number}'s, best by {sweep.objectives[0].label})",
            markup=False,
        )
    if options.out:
        write_json(options.out, best_recipe(sweep, best))
        console.print(
            f"train it: python -m benchmark train --recipe {shlex.quote(str(options.out))} --init … --pairs … --labels … --out …",
            markup=False,
        )
    return 0


def _show(options: argparse.Namespace) -> int:
    from rich.markup import escape
    from rich.table import Table

    from sweeps.study import load_sweep
    from sweeps.summary import trial_rows

    sweep = load_sweep(options.study, options.storage)
    rows = trial_rows(sweep)
    tasks = list(sweep.facts.get("tasks", {}))
    table = Table(title=f"{sweep.name}: gains over clip-ft in %", title_justify="left", title_style="dim")
    table.add_column("trial", justify="right")
    table.add_column("λ", no_wrap=True)
    for objective in sweep.objectives:
        table.add_column(escape(objective.label.replace(" over clip-ft (%)", "")), justify="right")
    for task in tasks:
        table.add_column(escape(task), justify="right")
    table.add_column("state")
    for row in rows:
        values = [f"{value:+.2f}" for value in row["values"]] or ["–"] * len(sweep.objectives)
        gains = [f"{row['gains'][task]:+.1f}" if task in row["gains"] else "–" for task in tasks]
        state = (
            row["state"].lower()
            + (" ◆ Pareto" if row["pareto"] else "")
            + (f": {row['reason']}" if row["reason"] else "")
        )
        table.add_row(str(row["number"]), escape(row["cell"]), *values, *gains, escape(state))
    _print_table(table)
    _print_summary(sweep)
    return 0


def _print_summary(sweep: Any) -> None:
    """Objectives and tasks, each with its best λ, beside the base cell and clip-ft, with the noise."""
    from rich.markup import escape
    from rich.table import Table

    from sweeps.summary import noise_values, number, summary

    rows = summary(sweep)
    if not rows:
        return
    seeds = len(noise_values(sweep))
    table = Table(
        title=f"best λ for each task (noise: standard deviation over {seeds} seeds)",
        title_justify="left",
        title_style="dim",
    )
    for name in ("", "best λ"):
        table.add_column(name, no_wrap=True)
    for name in ("value", "all λ at base", "clip-ft", "noise"):
        table.add_column(name, justify="right")
    table.add_column("")
    for index, row in enumerate(rows):
        what = escape(f"{row.what} {row.metric}".strip()) + (" ↑" if row.sign > 0 else " ↓")
        values = [number(value) for value in (row.value, row.base, row.baseline, row.noise)]
        verdict = (
            ""
            if math.isnan(row.noise) or math.isnan(row.base) or row.value == row.base
            else "clear"
            if row.clear
            else "within noise"
        )
        last = index + 1 == len(sweep.objectives)
        table.add_row(what, escape(row.best), *values, verdict, end_section=last)
    _print_table(table)


def _print_table(table: Any) -> None:
    from rich.console import Console

    from benchmark.execution.progress import console

    # a file has no width to keep to
    (console if console.is_terminal else Console(highlight=False, width=200)).print(table)


def _print_state(sweep: Any) -> int:
    """Where the sweep stands, in cells; returns 1 when some were given up or are left."""
    from benchmark.execution.progress import console
    from sweeps.summary import progress

    now = progress(sweep)
    line = f"{sweep.name}: {now.done} of {now.total} cells done"
    line += f" ({now.pruned} pruned)" if now.pruned else ""
    line += f", {now.running} running, {now.left - now.running} left"
    line += f", {now.failures} attempts failed" if now.failures else ""
    if now.left and not math.isnan(now.seconds):
        line += (
            f"; about {now.seconds_left / 60:.0f} min left"
            if now.seconds_left > 90
            else f"; about {now.seconds_left:.0f} s left"
        )
    console.print(line, markup=False)
    for cell, reason in now.given_up.items():
        console.print(f"  given up: {cell}: {reason} (`sweep launch` tries it again)", markup=False)
    return 1 if now.given_up or now.left else 0


def _whole(path: str) -> str:
    """A path in full; names (``random``, ``open_clip/…``, ``cliptex``) stay."""
    first = path.split("{")[0]
    return (
        str(Path(path).absolute())
        if path and (Path(first).exists() or (Path(first).parent.is_dir() and "/" in first))
        else path
    )


def _train_command(recipe: Path, request: Any) -> str:
    inputs = [("--init", request.init), ("--pairs", request.pairs), ("--labels", request.labels)]
    told = " ".join(f"{flag} {shlex.quote(value)}" if value else f"{flag} …" for flag, value in inputs)
    return f"python -m benchmark train --recipe {shlex.quote(str(recipe))} {told} --out best.safetensors"


def _numbers(flag: str, text: str) -> list[float]:
    from sweeps.errors import SweepError

    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise SweepError(f"{flag} {text}: give numbers separated by commas, such as 0.1,1,10") from None


def _pair(text: str) -> tuple[float, float]:
    from sweeps.errors import SweepError

    found = _numbers("--range", text)
    if len(found) != 2:
        raise SweepError(f"--range {text}: give LOW,HIGH, such as 0.01,100")
    return found[0], found[1]
