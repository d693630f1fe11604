"""``sweep launch``: prepare once, drive the cells through an executor, confirm the winner on fresh
seeds, and summarise."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from backbones import UserError
from backbones.cliptex.training.recipes import RECIPES, Recipe
from benchmark.execution import Executor
from benchmark.plan import print_notes
from benchmark.probing.data import check_fit
from benchmark.records import BackboneInfo
from benchmark.results.run_result import check_writable
from benchmark.stages.session import open_executor_and_tracker
from benchmark.suites.registry import find_suite
from benchmark.sweep.bench import (
    CLIPTEX,
    Bench,
    base_recipe,
    changes,
    objective_tasks,
    prepare_bench,
    sweep_tasks,
)
from benchmark.sweep.options import SweepOptions
from benchmark.sweep.table import print_line, show_state, summary_text
from cliptex_common.errors import error_summary, user_error_message
from cliptex_common.files import write_json
from cliptex_common.secrets import hide_secrets
from reports.mlflow.run import Run, Tracker
from sweeps.driver import Evaluation, drive
from sweeps.errors import NoSweep
from sweeps.objective import make_objectives
from sweeps.plots import plots
from sweeps.pruning import Pruning
from sweeps.space import Value, cell_name, make_space, short
from sweeps.storage import storage_url
from sweeps.study import Plan, Sweep, load_sweep, sole_driver, start_sweep
from sweeps.summary import best_recipe, best_trial, progress, run_again, summary


def launch(options: SweepOptions) -> tuple[Sweep, Tracker]:
    """Start or resume a sweep, until every cell is finished or given up. Returns the study and its
    MLflow store.

    Raises:
        UserError, TrackingError: options that cannot be used, a study that was started with others,
            or that another process drives.
        KeyboardInterrupt: interrupted; finished trials stay, the same command resumes.
    """
    plan, notes = make_plan(options)
    print_notes(notes)
    check_writable(options.recipe_file, "--out")
    with suppress(NoSweep):  # before anything is prepared
        sweep = load_sweep(options.name, options.storage)
        sweep.must_agree(plan)
        sweep.must_be_free()
    opened = open_executor_and_tracker(options.executor_spec, options.experiment_name)
    with opened as (executor, tracker):
        if options.prune:  # trainings report to the storage
            executor.check_store(
                storage_url(options.storage),
                "give --storage postgresql://HOST/NAME, or journal:///FILE.log on a shared disk",
            )
        return asyncio.run(_launch(options, plan, tracker, executor))


def preview(options: SweepOptions) -> None:
    """Print what ``launch`` would do; creates nothing. Raises ``UserError`` as it does."""
    plan, notes = make_plan(options)
    print_notes(notes)
    try:
        sweep = load_sweep(options.name, options.storage)
    except NoSweep:
        print_line(
            f"{options.name}: {len(plan.space.cells())} cells to do, each a training of cliptex,"
            " and one of clip-ft"
        )
    else:
        sweep.must_agree(plan)
        show_state(sweep)
    print_line(
        f"{len(plan.tasks)} tasks each; then winner and base again on {options.confirm} fresh"
        f" seeds; executor {options.executor}, MLflow experiment {options.experiment_name}"
    )


async def _launch(
    options: SweepOptions, plan: Plan, tracker: Tracker, executor: Executor
) -> tuple[Sweep, Tracker]:
    bench = await prepare_bench(options, executor, tracker)
    plan = replace(plan, inputs={**plan.inputs, "content": bench.content()})
    sweep = start_sweep(options.name, options.storage, plan)
    params = {
        "search": options.search,
        "cells": len(sweep.space.cells()),
        "objectives": ",".join(objective.name for objective in sweep.objectives),
    }
    tags = {
        "study": sweep.name,
        "stage": "sweep",
        "suite": tracker.experiment,
        "storage": hide_secrets(sweep.url),
        "directions": ",".join(f"{each.name}:{each.sign:+d}" for each in sweep.objectives),
    }
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
            trials = Trials(sweep, bench, tracker, parent)
            await trials.baseline()
            await drive(
                sweep,
                trials.evaluate,
                tracker,
                parent,
                width=executor.slots,
                on_line=lambda line: print_line(f"  {line}"),
            )
            await trials.confirm(range(options.seed + 1, options.seed + 1 + options.confirm))
            _finish(sweep, parent, options.recipe_file)
    return sweep, tracker


class Trials:
    """What of a sweep is measured, each under an MLflow run of its own."""

    def __init__(self, sweep: Sweep, bench: Bench, tracker: Tracker, parent: Run) -> None:
        self.sweep, self.bench, self.tracker, self.parent = sweep, bench, tracker, parent
        self.settings = dict(sweep.inputs["fixed"])  # shared by all
        self.recipe = RECIPES[self.settings.pop("recipe")].changed(self.settings)

    async def evaluate(
        self, params: Mapping[str, Value], run: str, pruning: Pruning | None
    ) -> Evaluation:
        """A trial."""
        return await self.bench.measure(self.recipe.changed(params), run, pruning)

    async def baseline(self) -> None:
        """clip-ft with the shared settings, trained and probed once for all trials."""
        if "baseline" in self.sweep.metadata:
            return
        settings = {key: value for key, value in self.settings.items() if key != "experts"}
        recipe = RECIPES["clip-ft"].changed(settings)
        result, _ = await self._measure("baseline clip-ft", recipe, {"baseline": "clip-ft"}, {})
        try:
            for objective in self.sweep.objectives:
                objective.value(result.metrics, result.metrics)
        except ValueError as error:  # it would fail every trial
            raise UserError(
                f"clip-ft, to which all trials are compared: {error}; leave the task out with"
                " --task"
            ) from None
        self.sweep.store("baseline", result.metrics)

    async def confirm(self, seeds: Sequence[int]) -> None:
        """The winner and the base cell again, on the same fresh seeds: the best of many is also the
        luckiest. One that fails is printed and left out."""
        best, base = best_trial(self.sweep), self.sweep.space.base
        if best is None or best.params == base:
            return
        await asyncio.gather(
            *(
                self._again(params, seed)
                for seed in seeds
                for params in (best.params, base)
                if seed not in run_again(self.sweep, params)
            )
        )

    async def _again(self, params: Mapping[str, Value], seed: int) -> None:
        recipe, cell = self.recipe.changed({**params, "seed": seed}), cell_name(params)
        name = f"again · {short(params, self.sweep.space.base)} · seed {seed}"
        tags = {"again": cell, "seed": str(seed)}
        try:
            result, run = await self._measure(name, recipe, tags, params)
        except Exception as error:
            if user_error_message(error) is not None:
                raise
            return print_line(f"{name} failed: {error_summary(error)}", style="yellow")
        record = {"params": dict(params), "seed": seed, "metrics": result.metrics, "run": run}
        self.sweep.store(f"again.{seed}.{cell}", record)

    async def _measure(
        self, name: str, recipe: Recipe, tags: Mapping[str, str], params: Mapping[str, Value]
    ) -> tuple[Evaluation, str]:
        """The result of a recipe, and the id of its run."""
        tags = {"study": self.sweep.name, "suite": self.tracker.experiment, **tags}
        with self.tracker.run(name, tags=tags, params=params, parent=self.parent) as run:
            result = await self.bench.measure(recipe, run.id)
            result.log(run)
        return result, run.id


def make_plan(options: SweepOptions) -> tuple[Plan, list[str]]:
    """The plan without the content of its inputs, and lines to print first. Raises ``UserError``
    for wrong options."""
    (tasks, notes), recipe = sweep_tasks(options), base_recipe(options)
    if make_pipeline := find_suite(options.suite).pipeline:
        pipeline = make_pipeline(None, options.experiment_name)
        architecture = BackboneInfo.of(pipeline.architecture(), {})
        check_fit(tasks, options, pipeline.data, replace(architecture, name=CLIPTEX.name))
    space = make_space(options, recipe)
    cells = [params for params in space.cells().values() if params]
    ends = [
        {name: value}
        for name, setting in space.settings.items()
        for value in (*setting.values, setting.low, setting.high)
        if value is not None
    ]
    for params in cells or ends:
        recipe.changed(params)
    known_tasks = objective_tasks(tasks)
    objectives = make_objectives(options.objective, known_tasks)
    if len(objectives) > 1 and (options.search == "cmaes" or options.prune):
        raise UserError("--search cmaes and --prune need one objective")
    if options.prune and options.search == "linear":
        raise UserError("--prune: linear search compares finished trials; give another --search")
    if options.prune and not (recipe.val_pairs and recipe.epochs > 1):
        raise UserError("--prune needs --set val_pairs=N and --set epochs=2 or more")
    versions = {
        task.name: {"version": task.probe.version, "settings": asdict(task.settings)}
        for task in tasks
    }
    inputs = {
        "suite": options.suite,
        "tasks": versions,
        "fixed": {"recipe": CLIPTEX.name, **changes(recipe), "seed": options.seed},
        "zero_shot_loss": options.zero_shot_loss,
    }
    return Plan(space, objectives, known_tasks, inputs, options.prune), notes


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
