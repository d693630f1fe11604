"""``sweep launch``: prepare once, drive the cells through an executor, confirm the winner on fresh
seeds, sum up."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from backbones import UserError
from backbones.cliptex.training.recipes import Recipe, setting_names
from benchmark.execution import Executor
from benchmark.results.outcome import check_writable
from benchmark.stages.stage import open_executor_and_tracker
from benchmark.suites.registry import find_suite
from benchmark.sweep import bench as sweep_bench
from benchmark.sweep.bench import CLIPTEX, Bench
from benchmark.sweep.options import SweepOptions
from benchmark.sweep.table import print_line, show_state, summary_text
from common.errors import error_summary, nearest, user_error_message
from common.files import write_json
from common.secrets import hide_secrets
from reports.mlflow.run import Run, Tracker
from sweeps.driver import Evaluation, drive
from sweeps.errors import NoSweep
from sweeps.objective import make_objectives
from sweeps.plots import plots
from sweeps.pruning import Pruning
from sweeps.space import Value, cell_name, make_space, short
from sweeps.storage import storage_url
from sweeps.study import Plan, Sweep, load_sweep, must_agree, must_be_free, sole_driver, start_sweep
from sweeps.summary import best_recipe, best_trial, progress, run_again, summary

VALIDATED = tuple(
    f"val/{way}_R@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)
)  # retrieval; more is better


def launch(options: SweepOptions) -> tuple[Sweep, Tracker]:
    """Start a sweep, or go on with it, until every cell is finished or given up. Returns the study
    and its MLflow store.

    Raises:
        UserError, TrackingError: the request cannot be fulfilled, the study was started with
            something else, or another process drives it.
        KeyboardInterrupt: interrupted; finished trials stay, the same command goes on.
    """
    plan = _plan(options)
    check_writable(options.recipe_file, "--out")
    with suppress(NoSweep):  # what can be compared without preparing anything is compared at once
        before = load_sweep(options.name, options.storage)
        must_agree(options.name, before.metadata["identity"], plan.identity())
        must_be_free(before)
    opened = open_executor_and_tracker(options.executor_spec, options.experiment_name)
    with opened as (executor, tracker):
        if (
            options.prune
            and executor.is_remote
            and storage_url(options.storage).startswith("sqlite:")
        ):
            raise UserError(
                "--prune: trainings on other machines report to the storage, and cannot share a"
                " file of SQLite; give --storage postgresql://HOST/NAME, or journal:///FILE.log on"
                " a file system that all see"
            )
        return asyncio.run(_launch(options, plan, tracker, executor))


def preview(options: SweepOptions) -> None:
    """Say what ``launch`` would do; makes nothing. Raises ``UserError`` as it does."""
    plan = _plan(options)
    try:
        before = load_sweep(options.name, options.storage)
    except NoSweep:
        print_line(
            f"{options.name}: {len(plan.space.cells())} cells to do, each a training of cliptex,"
            " and one of clip-ft"
        )
    else:
        must_agree(options.name, before.metadata["identity"], plan.identity())
        show_state(before)
    scope = (
        f"{len(plan.tasks)} tasks each; then winner and base again on {options.confirm} fresh seeds"
    )
    print_line(f"{scope}; executor {options.executor}, MLflow experiment {options.experiment_name}")


async def _launch(
    options: SweepOptions, plan: Plan, tracker: Tracker, executor: Executor
) -> tuple[Sweep, Tracker]:
    bench = await sweep_bench.prepare_bench(options, executor, tracker)
    plan = replace(plan, inputs={**plan.inputs, "content": bench.content()})
    sweep = start_sweep(options.name, options.storage, plan)
    params = {
        "search": options.search,
        "cells": len(sweep.space.cells()),
        "objectives": ",".join(o.name for o in sweep.objectives),
    }
    tags = {
        "study": sweep.name,
        "stage": "sweep",
        "suite": tracker.experiment,
        "storage": hide_secrets(sweep.url),
    }
    tags["directions"] = ",".join(
        f"{objective.name}:{objective.sign:+d}" for objective in sweep.objectives
    )
    with sole_driver(sweep):
        earlier = tracker.find_run(sweep.metadata.get("mlflow", {}).get("run"))
        resume = earlier.info.run_id if earlier else None
        with tracker.run(f"sweep {sweep.name}", tags=tags, params=params, resume=resume) as parent:
            where = {
                "uri": hide_secrets(tracker.uri),
                "experiment": tracker.experiment,
                "run": parent.id,
            }
            sweep.store("mlflow", where)
            under_way = _Sweeping(sweep, bench, tracker, parent)
            await under_way.baseline()
            await drive(
                sweep,
                under_way.evaluate,
                tracker,
                parent,
                width=executor.slots,
                on_line=lambda line: print_line(f"  {line}"),
            )
            await under_way.confirm(range(options.seed + 1, options.seed + 1 + options.confirm))
            _finish(sweep, parent, options.recipe_file)
    return sweep, tracker


class _Sweeping:
    """What of a sweep is measured, each under an MLflow run of its own."""

    def __init__(self, sweep: Sweep, bench: Bench, tracker: Tracker, parent: Run) -> None:
        self.sweep, self.bench, self.tracker, self.parent = sweep, bench, tracker, parent
        self.fixed = sweep.metadata["identity"]["fixed"]

    async def evaluate(
        self, params: Mapping[str, Value], run: str, pruning: Pruning | None
    ) -> Evaluation:
        """A trial."""
        recipe = sweep_bench.make_recipe("cliptex", self.fixed, params, self.fixed["seed"])
        return await self.bench.measure(recipe, run, pruning)

    async def baseline(self) -> None:
        """clip-ft with the shared settings, trained and probed once for all trials."""
        if "baseline" in self.sweep.metadata:
            return
        recipe = sweep_bench.make_recipe("clip-ft", self.fixed, {}, self.fixed["seed"])
        result, _ = await self._measure("baseline clip-ft", recipe, {"baseline": "clip-ft"}, {})
        for objective in (
            self.sweep.objectives
        ):  # a value that is missing in the baseline would fail every trial
            try:
                objective.value(result.metrics, result.metrics)
            except ValueError as error:
                message = (
                    f"clip-ft, to which all trials are compared: {error}; leave the task out with"
                    " --task"
                )
                raise UserError(message) from None
        self.sweep.store("baseline", result.metrics)

    async def confirm(self, seeds: Sequence[int]) -> None:
        """The winner and the base cell again, on the same fresh seeds: what won among many won by
        luck, too. The cells are
        finished by now: one that breaks is a line, not the end."""
        best, base = best_trial(self.sweep), self.sweep.space.base
        if best is None or best.params == base:
            return
        pending = [
            (p, s) for s in seeds for p in (best.params, base) if s not in run_again(self.sweep, p)
        ]
        outcomes = await asyncio.gather(
            *(self._again(*each) for each in pending), return_exceptions=True
        )
        for (_, seed), error in zip(pending, outcomes, strict=True):
            if error is None:
                continue
            if not isinstance(error, Exception) or user_error_message(error) is not None:
                raise error
            print_line(f"seed {seed} was not measured: {error_summary(error)}", style="yellow")

    async def _again(self, params: Mapping[str, Value], seed: int) -> None:
        recipe = sweep_bench.make_recipe("cliptex", self.fixed, params, seed)
        cell = cell_name(params)
        name = f"again · {short(params, self.sweep.space.base)} · seed {seed}"
        result, run = await self._measure(name, recipe, {"again": cell, "seed": str(seed)}, params)
        record = {"params": dict(params), "seed": seed, "metrics": result.metrics, "run": run}
        self.sweep.store(f"again.{seed}.{cell}", record)

    async def _measure(
        self, name: str, recipe: Recipe, tags: Mapping[str, str], params: Mapping[str, Value]
    ) -> tuple[Evaluation, str]:
        """What a recipe reaches, and the id of its run."""
        about = {"study": self.sweep.name, "suite": self.tracker.experiment, **tags}
        with self.tracker.run(name, tags=about, params=params, parent=self.parent) as run:
            result = await self.bench.measure(recipe, run.id)
            result.log(run)
        return result, run.id


def _plan(options: SweepOptions) -> Plan:
    """The plan without content; everything a user can get wrong in words is found out here."""
    tasks = sweep_bench.sweep_tasks(options)
    fixed, lambdas = sweep_bench.fixed_settings(
        options, find_suite(options.suite).training_settings
    )
    recipe = sweep_bench.make_recipe("cliptex", fixed, {}, options.seed)
    for name in options.vary:
        if name in options.overrides:
            raise UserError(f"{name} is both fixed by --set and varied by --vary; keep one")
        if name not in setting_names():
            raise UserError(
                f"--vary {name}: no setting of the recipe; {nearest(name, setting_names())}"
            )
    bases = {**lambdas, **{name: recipe.settings()[name] for name in options.vary}}
    space = make_space(
        options, bases, lambda name, text: CLIPTEX.changed({name: text}).settings()[name]
    )
    ends = [
        {s.name: value}
        for s in space.settings
        for value in (*s.values, s.low, s.high)
        if value is not None
    ]
    for params in [params for params in space.cells().values() if params] or ends:
        sweep_bench.make_recipe(
            "cliptex", fixed, params, options.seed
        )  # what cannot be trained is said at once
    known_tasks = sweep_bench.objective_tasks(tasks)
    objectives = make_objectives(options.objective, known_tasks)
    if len(objectives) > 1 and options.search == "cmaes":
        raise UserError("cmaes knows one objective; use --search tpe or random for several")
    prune = options.prune
    not_prunable = {
        "needs --search grid or a sampler: linear search compares finished trials": (
            space.search == "linear"
        ),
        "needs one objective": len(objectives) > 1,
        f"{prune}: choose a validation metric of the training: {', '.join(VALIDATED)}": (
            prune not in VALIDATED
        ),
        "needs validation after each epoch; give --set val_pairs=N and --set epochs=2 or more": (
            not recipe.val_pairs or recipe.epochs <= 1
        ),
    }
    if prune and any(not_prunable.values()):
        raise UserError(
            f"--prune {next(reason for reason, applies in not_prunable.items() if applies)}"
        )
    versions = {
        task.name: {"version": task.probe.version, "settings": asdict(task.settings)}
        for task in tasks
    }
    inputs = {
        "suite": options.suite,
        "tasks": versions,
        "fixed": fixed,
        "zero_shot_loss": options.zero_shot_loss,
    }
    return Plan(space, objectives, known_tasks, inputs, prune)


def _finish(sweep: Sweep, parent: Run, out: Path) -> None:
    """Summary, plots and the best recipe into the parent run, the recipe into the file ``out``
    too."""
    best = best_trial(sweep)
    if best is None:
        return parent.fail("no trial was finished")
    parent.log_json(plots(sweep), "plots.json")
    recipe = best_recipe(sweep, best)
    write_json(out, recipe)
    parent.log_json(recipe, "best_recipe.json")
    parent.log_json(summary(sweep).to_dict("records"), "summary.json")
    parent.log_metrics(
        {f"best/{o.name}": v for o, v in zip(sweep.objectives, best.values, strict=True)}
    )
    parent.set_tags(
        {"best.trial": str(best.number), "best.run": best.user_attrs.get("mlflow.run", "")}
    )
    about = f"Sweep `{sweep.name}`: {sweep.space.search} search, {len(sweep.space.cells())} cells."
    parent.describe(f"{about}\n\n```\n{summary_text(sweep)}\n```")
    state = progress(sweep)
    if state.given_up or state.pending:
        given_up = "; ".join(f"{cell}: {reason}" for cell, reason in state.given_up.items())
        parent.fail(given_up or f"{state.pending} cells are left")
