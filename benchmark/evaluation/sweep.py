"""``sweep launch``: prepare once, drive the cells through an executor, measure the noise of seeds, sum up."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from backbones import UserError
from backbones.cliptex.recipes import Recipe
from backbones.errors import nearest, users_line
from backbones.files import write_json
from backbones.overrides import fields_of, parse_pairs
from benchmark.evaluation.results import must_be_writable
from benchmark.evaluation.sweep_bench import (
    Bench,
    Request,
    fixed_lambdas,
    fixed_settings,
    make_recipe,
    planned,
    prepare_bench,
    read_setting,
    task_facts,
)
from benchmark.execution import Executor, ExecutorSpec, make_executor
from benchmark.execution.progress import Bar, console, reporting
from benchmark.suites.registry import Stages, find_suite
from reports.store import hide_password
from reports.tracking import Run, Tracker
from sweeps.driver import Evaluation, drive, has_run
from sweeps.errors import NoSweep, SweepError, first_line
from sweeps.objective import make_objectives
from sweeps.plots import write_plots
from sweeps.pruning import Pruning
from sweeps.space import Space, Value, make_space, short
from sweeps.storage import storage_url
from sweeps.study import Plan, Sweep, load_sweep, must_agree, must_be_free, sole_driver, start_sweep
from sweeps.summary import best_recipe, best_trial, noise_values, number, progress, reference, summary, trial_rows

VALIDATED = tuple(f"val/{way}_R@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10))  # retrieval; more is better


@dataclass(frozen=True)
class SweepOptions:
    """All that ``sweep launch`` was told; see its ``--help``."""

    request: Request
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
    seeds: int = 3
    num_workers: int = 2
    executor: ExecutorSpec = field(default_factory=ExecutorSpec)
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
class SweepResult:
    """A launched sweep: the study, its MLflow store, and the recipe file of its best trial (None before the first)."""

    sweep: Sweep
    tracker: Tracker
    recipe: Path | None


def launch(options: SweepOptions) -> SweepResult:
    """Start a sweep, or go on with it, until every cell is finished or given up.

    Raises:
        UserError, SweepError, TrackingError: the request cannot be fulfilled, the study was started with something else, or
            another process drives it.
        KeyboardInterrupt: interrupted; finished trials stay, the same command goes on.
    """
    plan = _plan(options)
    must_be_writable(options.recipe_file, "--out")
    _check_study(options, plan)
    with Bar() as bar, reporting(bar), make_executor(options.executor, bar) as executor:
        tracker = Tracker(options.experiment_name)
        executor.check_store(tracker.uri)
        if options.prune and executor.several_nodes and storage_url(options.storage).startswith("sqlite:"):
            raise SweepError(
                "--prune: trainings on other machines report to the storage, and cannot share a file of SQLite; "
                "give --storage postgresql://HOST/NAME, or journal:///FILE.log on a file system that all see"
            )
        for closed in tracker.close_stale():
            console.print(f"closed the run {closed!r}: its process had vanished", style="yellow", markup=False)
        try:
            return asyncio.run(_launch(options, plan, tracker, executor))
        finally:
            tracker.close_stale()


def _check_study(options: SweepOptions, plan: Plan) -> None:
    """What can be compared without preparing anything is compared at once."""
    try:
        before = load_sweep(options.name, options.storage)
    except NoSweep:
        return
    now = plan.whole_identity()
    must_agree(options.name, before.facts["identity"], now, only=[key for key in now if key != "content"])
    must_be_free(before)


async def _launch(options: SweepOptions, plan: Plan, tracker: Tracker, executor: Executor) -> SweepResult:
    request = options.request
    stages = Stages(request.suite, tracker.experiment, executor, options.executor.device, options.num_workers)
    bench = await prepare_bench(request, stages)
    plan = replace(plan, identity={**plan.identity, "content": bench.content()})
    sweep = start_sweep(options.name, options.storage, plan)
    params = {"search": options.search, "cells": len(sweep.space.cells()), "objectives": ",".join(options.objectives)}
    tags = {"study": sweep.name, "stage": "sweep", "suite": tracker.experiment, "storage": hide_password(sweep.url)}
    with sole_driver(sweep):
        sweep.note("tasks", {task: asdict(facts) for task, facts in task_facts(bench.tasks).items()})
        known = sweep.facts.get("mlflow", {}).get("run", "")
        resume = known if known and has_run(tracker, known) else None
        with tracker.run(f"sweep {sweep.name}", tags=tags, params=params, resume=resume) as parent:
            where = {"uri": hide_password(tracker.uri), "experiment": tracker.experiment, "run": parent.id}
            sweep.note("mlflow", where)
            under_way = _Sweeping(sweep, bench, tracker, parent)
            await under_way.baseline()
            await drive(sweep, under_way.evaluate, tracker, parent, width=executor.width, say=_say)
            await under_way.noise(range(request.seed + 1, request.seed + options.seeds))
            return SweepResult(sweep, tracker, _finish(sweep, parent, options.recipe_file))


class _Sweeping:
    """What of a sweep is measured, each under an MLflow run of its own."""

    def __init__(self, sweep: Sweep, bench: Bench, tracker: Tracker, parent: Run) -> None:
        self.sweep, self.bench, self.tracker, self.parent = sweep, bench, tracker, parent
        self.fixed = sweep.facts["identity"]["fixed"]

    async def evaluate(self, params: Mapping[str, Value], run: str, pruning: Pruning | None) -> Evaluation:
        """A trial."""
        recipe = make_recipe("cliptex", self.fixed, params, int(self.fixed["seed"]))
        return await self.bench.measure(recipe, run, pruning)

    async def baseline(self) -> None:
        """clip-ft with the shared settings, trained and probed once for all trials."""
        if "baseline" in self.sweep.facts:
            return
        tags = {"baseline": "clip-ft"}
        recipe = make_recipe("clip-ft", self.fixed, {}, int(self.fixed["seed"]))
        result, _ = await self._measure("baseline clip-ft", recipe, tags, {})
        for objective in self.sweep.objectives:  # a value that is missing in the baseline would fail every trial
            try:
                objective.value(result.metrics, result.metrics)
            except ValueError as error:
                told = f"clip-ft, to which all trials are compared: {error}; leave the task out with --task"
                raise SweepError(told) from None
        self.sweep.note("baseline", result.plain())

    async def noise(self, seeds: Sequence[int]) -> None:
        """The reference cell with further seeds. The cells are finished by now: a seed that breaks is a line, not the end."""
        missing = [seed for seed in seeds if seed not in noise_values(self.sweep)]
        for seed, error in zip(
            missing, await asyncio.gather(*map(self._seed, missing), return_exceptions=True), strict=True
        ):
            if error is not None and (not isinstance(error, Exception) or users_line(error) is not None):
                raise error
            if error is not None:
                console.print(f"seed {seed} was not measured: {first_line(error)}", style="yellow", markup=False)

    async def _seed(self, seed: int) -> None:
        trial = reference(self.sweep)
        if trial is None:
            return
        recipe = make_recipe("cliptex", self.fixed, trial.params, seed)
        name = f"noise · {short(trial.params, self.sweep.space.base)} · seed {seed}"
        result, run = await self._measure(
            name, recipe, {"noise.of": str(trial.number), "seed": str(seed)}, trial.params
        )
        self.sweep.note(f"noise.{seed}", {"params": trial.params, "metrics": result.plain(), "run": run})

    async def _measure(
        self, name: str, recipe: Recipe, tags: Mapping[str, str], params: Mapping[str, Value]
    ) -> tuple[Evaluation, str]:
        """What a recipe reaches, and the id of its run."""
        about = {"study": self.sweep.name, "suite": self.tracker.experiment, **tags}
        with self.tracker.run(name, tags=about, params=params, parent=self.parent) as run:
            result = await self.bench.measure(recipe, run.id)
            result.log(run)
        return result, run.id


def make_report(result: SweepResult) -> str:
    """The study's report, kept in MLflow beside its trials: the line that says where it is.

    The trials are safe already: a report that cannot be made is a line, never a failed sweep.
    """
    try:
        from reports.attach import attach_report
        from reports.report import Request

        request = Request(
            experiments=[result.tracker.experiment], study=result.sweep.name, tracking_uri=result.tracker.uri
        )
        return f"report: {attach_report(request, [result.sweep.facts['mlflow']['run']])}"
    except Exception as error:
        told = next(iter(str(error).splitlines()), type(error).__name__)
        return f"no report was made: {told}; try python -m benchmark report --study {result.sweep.name}"


def _plan(options: SweepOptions) -> Plan:
    """The plan without content; everything a user can get wrong in words is found out here."""
    request = options.request
    tasks = planned(request)
    fixed = fixed_settings(request, find_suite(request.suite).training_settings)
    recipe = make_recipe("cliptex", fixed, {}, request.seed)
    for name in options.vary:
        if name in parse_pairs(request.changes):
            raise UserError(f"{name} is both fixed by --set and varied by --vary; keep one")
        if name not in fields_of(Recipe):
            raise UserError(f"--vary {name}: no setting of the recipe; {nearest(name, fields_of(Recipe))}")
    bases = fixed_lambdas(request) | {name: getattr(recipe, name) for name in options.vary}
    space = make_space(
        options.search, options.lambdas, options.values, options.between, vary=options.vary, bases=bases,
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
    return Plan(space, objectives, identity, options.prune)


def _check_pruning(options: SweepOptions, recipe: Any, objectives: int, space: Space) -> None:
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
        parent.fail(f"{state.left} cells are left")
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
