"""``sweep launch`` and ``sweep worker``: prepare once, let worker processes share the cells, measure noise, sum up."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from backbones import UserError
from backbones.cliptex.recipes import Recipe
from backbones.errors import nearest
from backbones.files import write_json
from backbones.overrides import fields_of, parse_pairs
from benchmark.execution.progress import Bar, console
from benchmark.evaluation.runner import must_be_writable
from benchmark.suites.registry import find_suite
from benchmark.sweep_processes import Workers, measure_seeds, share_cells
from benchmark.evaluation.sweep_bench import (
    Bench,
    Machine,
    Request,
    fixed_settings,
    held_lambdas,
    make_recipe,
    planned,
    read_setting,
    task_facts,
)
from reports.store import hide_password, tracking_uri
from reports.tracking import Run, Tracker
from sweeps.cells import fail_lost, fill, progress
from sweeps.errors import SweepError
from sweeps.objective import make_objectives
from sweeps.plots import write_plots
from sweeps.space import Space, make_space, short
from sweeps.storage import exclusive, storage_url
from sweeps.study import GRACE, Plan, Sweep, load_sweep, must_agree, start_sweep, stored_identity
from sweeps.summary import best_recipe, best_trial, noise_values, number, reference, summary, trial_rows
from sweeps.worker import close_lost, first_line, is_the_users, work

VALIDATED = tuple(f"val/{way}_R@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10))  # retrieval; more is better


@dataclass(frozen=True)
class Launch:
    """All that ``sweep launch`` was told; see its ``--help``."""

    request: Request
    machine: Machine
    study: str = ""
    storage: str | None = None
    search: str = "linear"
    lambdas: Sequence[str] = ("clip", "seg", "depth", "normal")
    values: Sequence[float] = (0.1, 1.0, 10.0)
    between: tuple[float, float] = (0.01, 100.0)
    vary: Mapping[str, str] = field(default_factory=dict)
    trials: int = 40
    objectives: Sequence[str] = ("gain",)
    prune: str = ""
    workers: int = 1
    seeds: int = 3
    grace: int = GRACE
    tracking_uri: str | None = None
    experiment: str | None = None
    out: Path | None = None

    @property
    def name(self) -> str:
        return self.study or f"{self.request.suite}-{self.search}"

    @property
    def experiment_name(self) -> str:
        suite = self.request.suite
        return self.experiment or (suite if suite == "sweep" else f"sweep-{suite}")

    @property
    def recipe_file(self) -> Path:
        """Where the best trial's recipe goes."""
        return self.out or Path(f"{self.name.replace('/', '_')}-best.json")


@dataclass
class Outcome:
    """A launched sweep: the study, its MLflow store, and the recipe file of its best trial (None before the first)."""

    sweep: Sweep
    tracker: Tracker
    recipe: Path | None


def launch(options: Launch) -> Outcome:
    """Start a sweep, or go on with it, until every cell is finished.

    Raises:
        UserError, SweepError, TrackingError: the request cannot be fulfilled, or the study was started with something else.
        KeyboardInterrupt: interrupted; finished trials stay, the same command goes on.
    """
    request, name = options.request, options.name
    plan = _plan(options)
    must_be_writable(options.recipe_file, "--out")
    before = stored_identity(name, options.storage)
    if before is not None:  # what can be compared without preparing anything is compared at once
        now = plan.whole_identity()
        must_agree(name, before, now, only=[key for key in now if key != "content"])
    tracker = Tracker(options.experiment_name, options.tracking_uri)
    for closed in tracker.close_vanished():
        console.print(f"closed the run {closed!r}: its process had vanished", style="yellow", markup=False)
    with Bar() as bar:
        bench = Bench(request, options.machine, tracker, bar)
        plan = Plan(**{**vars(plan), "identity": {**plan.identity, "content": bench.content}})
        sweep = start_sweep(name, options.storage, plan)
        sweep.note("request", request.as_json())  # paths may have moved since
        sweep.note(
            "tasks",
            {task: {"metrics": dict(f.metrics), "group": f.group} for task, f in task_facts(bench.tasks).items()},
        )
        params = {
            "search": options.search,
            "cells": len(sweep.space.cells()),
            "objectives": ",".join(options.objectives),
        }
        tags = {
            "study": name,
            "stage": "sweep",
            "suite": options.experiment_name,
            "storage": hide_password(sweep.storage.url),
        }
        with tracker.run(f"sweep {name}", tags=tags, params=params, resume=_earlier(sweep, tracker)) as parent:
            sweep.note(
                "mlflow", {"uri": hide_password(tracker.uri), "experiment": tracker.experiment, "run": parent.id}
            )
            _baseline(sweep, bench, tracker, parent)
            with exclusive(sweep.storage, sweep.name):
                lost = fail_lost(sweep)
                fill(sweep, again=True)
            for trial in lost:
                close_lost(tracker, trial, _say)
            if options.workers == 0:
                parent.flush()
                return Outcome(sweep, tracker, None)
            if options.workers == 1:
                work(sweep, _evaluation(sweep, bench), tracker, say=_say)
            else:
                share_cells(_workers(sweep, options, tracker), bar)
            _noise(sweep, options, bench, tracker, parent, bar)
            recipe = _finish(sweep, parent, options.recipe_file)
    return Outcome(sweep, tracker, recipe)


def make_report(outcome: Outcome) -> str:
    """The study's report, kept in MLflow beside its trials: the lines that say where the result can be seen.

    The trials are safe already: a report that cannot be made is a line, never a failed sweep.
    """
    uri = outcome.tracker.uri
    flag = "" if uri == tracking_uri() else f" --tracking-uri {hide_password(uri)}"
    try:
        from reports.attach import attach_report
        from reports.report import Request

        request = Request(experiments=[outcome.tracker.experiment], study=outcome.sweep.name, tracking_uri=uri)
        report = f"report: {attach_report(request, [outcome.sweep.facts['mlflow']['run']])}\n"
    except Exception as error:
        told = next(iter(str(error).splitlines()), type(error).__name__)
        report = f"no report was made: {told}; try python -m benchmark report --study {outcome.sweep.name}\n"
    return f"{report}every trial is in MLflow, experiment {outcome.tracker.experiment}: python -m benchmark ui{flag}"


def worker(
    study: str | None,
    storage: str | None,
    machine: Machine,
    *,
    replaced: Mapping[str, Any] | None = None,
    uri: str | None = None,
    follow: int | None = None,
    base_seed: int | None = None,
) -> int:
    """Work on a launched study until it is finished; returns how many trials this process finished.

    Args:
        study, storage: which.
        replaced: fields of the request that are elsewhere on this machine (data_root, data, init, pairs, labels).
        uri: MLflow store; default: the one the study was launched with.
        follow: pid of the launching process, whose end ends this worker.
        base_seed: instead of taking cells, measure the reference cell with this seed.

    Raises:
        UserError, SweepError, TrackingError: this machine's inputs are not those of the study, or a store cannot be reached.
    """
    sweep = load_sweep(study, storage)
    stored = dict(sweep.facts["request"]) | {k: v for k, v in (replaced or {}).items() if v}
    if "mlflow" not in sweep.facts:
        raise SweepError(f"study {sweep.name!r} is still being prepared; start workers when `sweep launch` says so")
    where = sweep.facts["mlflow"]
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or where["uri"]
    if "***" in uri:
        raise SweepError("the study's MLflow store needs a password; give --tracking-uri or set MLFLOW_TRACKING_URI")
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise SweepError(
            f"the study's MLflow store {uri} is not on this machine; give the shared one with --tracking-uri"
        )
    tracker = Tracker(where["experiment"], uri)
    _must_have_run(tracker, where["run"], sweep.name)
    tracker.close_vanished()
    with Bar() as bar:
        bench = Bench(Request(**stored), machine, tracker, bar)
        must_agree(sweep.name, sweep.facts["identity"], {"content": bench.content}, only=["content"])
        if base_seed is not None:
            _measure_seed(sweep, bench, tracker, Run(tracker, where["run"], sweep.name), base_seed)
            return 0
        return work(sweep, _evaluation(sweep, bench), tracker, say=_say, follow=follow)


def _plan(options: Launch) -> Plan:
    """The plan without content; everything a user can get wrong in words is found out here."""
    request = options.request
    tasks = planned(request)
    fixed = fixed_settings(request, find_suite(request.suite).tune)
    recipe = make_recipe("cliptex", fixed, {}, request.seed)
    for name in options.vary:
        if name in parse_pairs(request.changes):
            raise UserError(f"{name} is both fixed by --set and varied by --vary; keep one")
        if name not in fields_of(Recipe):
            raise UserError(f"--vary {name}: no setting of the recipe; {nearest(name, fields_of(Recipe))}")
    held = held_lambdas(request) | {name: getattr(recipe, name) for name in options.vary}
    space = make_space(
        options.search, options.lambdas, options.values, options.between, vary=options.vary, held=held,
        read=read_setting, trials=options.trials, seed=request.seed,
    )  # fmt: skip
    ends = [{s.name: value} for s in space.settings for value in (*s.values, s.low, s.high) if value is not None]
    for params in [cell.params for cell in space.cells() if cell.params] or ends:
        # what cannot be trained is said at once
        make_recipe("cliptex", fixed, params, request.seed)
    objectives = make_objectives(options.objectives, task_facts(tasks))
    if len(objectives) > 1 and options.search == "cmaes":
        raise SweepError("cmaes knows one objective; use --search tpe or random for several")
    if options.prune:
        _check_pruning(options, recipe, len(objectives), space)
    identity = {
        "suite": request.suite,
        "tasks": {task.name: {"version": task.probe.version, "settings": asdict(task.settings)} for task in tasks},
        "fixed": fixed,
    }
    return Plan(space, objectives, identity, request.as_json(), options.prune, options.grace)


def _check_pruning(options: Launch, recipe: Any, objectives: int, space: Space) -> None:
    if space.search == "linear":
        raise SweepError(
            "--prune is for searches over a range or a grid: the paper's linear search compares finished trials"
        )
    if objectives > 1:
        raise SweepError("--prune needs one objective")
    if options.prune not in VALIDATED:
        raise SweepError(f"--prune {options.prune}: choose a validation metric of the training: {', '.join(VALIDATED)}")
    if not recipe.val_pairs or recipe.epochs <= 1:
        raise SweepError(
            "--prune needs validation after each of several epochs; give --set val_pairs=N and --set epochs above 1"
        )


def _earlier(sweep: Sweep, tracker: Tracker) -> str | None:
    """The study's parent run, when it is in this very store."""
    known = sweep.facts.get("mlflow")
    if known is None or known["experiment"] != tracker.experiment:
        return None
    try:
        run = tracker.client.get_run(known["run"])
    except Exception:
        return None
    return known["run"] if run.info.lifecycle_stage == "active" else None


def _must_have_run(tracker: Tracker, run_id: str, study: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        tracker.client.get_run(run_id)
    except MlflowException as error:
        raise SweepError(
            f"the MLflow store {hide_password(tracker.uri)} has not the run of study {study!r}; "
            "give the store that it was launched with as --tracking-uri"
        ) from error


def _evaluation(sweep: Sweep, bench: Bench) -> Any:
    identity = sweep.facts["identity"]
    return bench.evaluate(identity["fixed"], int(identity["fixed"]["seed"]), sweep.prune)


def _baseline(sweep: Sweep, bench: Bench, tracker: Tracker, parent: Run) -> None:
    """clip-ft with the shared settings, trained and probed once for all trials."""
    if "baseline" in sweep.facts:
        return
    fixed = sweep.facts["identity"]["fixed"]
    recipe = make_recipe("clip-ft", fixed, {}, int(fixed["seed"]))
    tags = {"study": sweep.name, "baseline": "clip-ft", "suite": tracker.experiment}
    with tracker.run("baseline clip-ft", tags=tags, parent=parent) as run:
        result = bench.measure(recipe, run)
        run.set_tags(result.tags)
        run.log_metrics({f"{task}/{name}": v for task, found in result.metrics.items() for name, v in found.items()})
    for objective in sweep.objectives:  # a hole in the baseline would fail every trial
        try:
            objective.value(result.metrics, result.metrics)
        except ValueError as error:
            raise SweepError(
                f"clip-ft, to which all trials are compared: {error}; leave the task out with --task"
            ) from None
    sweep.note("baseline", {task: dict(found) for task, found in result.metrics.items()})


def _noise(sweep: Sweep, options: Launch, bench: Bench, tracker: Tracker, parent: Run, bar: Bar) -> None:
    """The reference cell with further seeds, side by side when there are several workers. The cells are finished by now, so
    a seed that breaks is a line, not the end."""
    seed = options.request.seed
    missing = [s for s in range(seed + 1, seed + options.seeds) if s not in noise_values(sweep)]
    if reference(sweep) is None or not missing:
        return
    if options.workers > 1 and len(missing) > 1:
        measure_seeds(_workers(sweep, options, tracker), missing, bar)
        return
    for each in missing:
        try:
            _measure_seed(sweep, bench, tracker, parent, each)
        except Exception as error:
            if is_the_users(error):
                raise
            console.print(f"seed {each} was not measured: {first_line(error)}", style="yellow", markup=False)


def _workers(sweep: Sweep, options: Launch, tracker: Tracker) -> Workers:
    return Workers(sweep, storage_url(options.storage), tracker, options.machine, options.workers)


def _measure_seed(sweep: Sweep, bench: Bench, tracker: Tracker, parent: Run, seed: int) -> None:
    trial = reference(sweep)
    if trial is None:
        return
    recipe = make_recipe("cliptex", sweep.facts["identity"]["fixed"], trial.params, seed)
    shown = short(trial.params, sweep.space.base)
    tags = {"study": sweep.name, "noise.of": str(trial.number), "seed": str(seed), "suite": tracker.experiment}
    with tracker.run(f"noise · {shown} · seed {seed}", tags=tags, params=trial.params, parent=parent) as run:
        result = bench.measure(recipe, run)
        run.set_tags(result.tags)
        run.log_metrics({f"{task}/{name}": v for task, found in result.metrics.items() for name, v in found.items()})
    metrics = {task: dict(found) for task, found in result.metrics.items()}
    sweep.note(f"noise.{seed}", {"params": trial.params, "metrics": metrics, "run": run.id})


def _finish(sweep: Sweep, parent: Run, out: Path) -> Path | None:
    """Summary, plots and the best recipe into the parent run; returns the recipe's file."""
    best = best_trial(sweep)
    if best is None:
        parent.fail("no trial was finished")
        return None
    with tempfile.TemporaryDirectory() as folder:
        if page := write_plots(sweep, Path(folder)):
            parent.log_file(page)
    recipe = best_recipe(sweep, best)
    write_json(out, recipe)
    parent.log_json(recipe, "best_recipe.json")
    rows = summary(sweep)
    parent.log_json([vars(row) for row in rows], "summary.json")
    parent.log_json(trial_rows(sweep), "trials.json")
    parent.log_metrics({f"best/{o.name}": v for o, v in zip(sweep.objectives, best.values, strict=True)})
    parent.set_tags({"best.trial": str(best.number), "best.run": best.user_attrs.get("mlflow.run", "")})
    parent.describe(_note(sweep, rows))
    state = progress(sweep)
    if state.given_up:
        parent.fail("; ".join(f"{cell}: {reason}" for cell, reason in state.given_up.items()))
    elif state.left:
        parent.fail(f"{state.left} cells are left: no worker was left to take them")
    return out


def _note(sweep: Sweep, rows: Sequence[Any]) -> str:
    lines = [f"Sweep `{sweep.name}`: {sweep.space.search} search, {len(sweep.space.cells())} cells.", ""]
    lines += ["| | best | value | base | clip-ft | noise |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        numbers = " | ".join(number(value) for value in (row.value, row.base, row.baseline, row.noise))
        lines.append(f"| {row.what} {row.metric} | {row.best} | {numbers} |")
    return "\n".join(lines)


def _say(line: str) -> None:
    console.print(f"  {line}", markup=False)
