"""``sweep launch``: what its options mean, and how a recipe is trained and probed as units of
work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt

from backbones.backbone import Backbone
from backbones.cliptex.model import load_initial_clip
from backbones.cliptex.recipes import RECIPES, Recipe, read_recipe
from benchmark.executor import (
    ExecutionOptions,
    Executor,
    Priority,
    decide_precision,
    open_executor_and_tracker,
    unstarted_executor,
)
from benchmark.options import (
    Changes,
    DataOptions,
    DryRunOptions,
    PluginOptions,
    TaskChanges,
    TaskNames,
)
from benchmark.plan import Plan, prepare_data
from benchmark.progress import console, subject
from benchmark.result import check_writable
from benchmark.run import ask_for_precision, describe, log_backbone, probe
from benchmark.stages import TrainedWeights, Training, train_weights
from benchmark.suites import SUITES
from benchmark.tasks import plan_tasks
from cliptex_common.errors import UserError, hide_secrets
from cliptex_common.files import content_key, home, mark_in_use, write_json
from cliptex_common.settings import options_dataclass
from reports.pages import attach_report
from reports.records import TAGS
from reports.report import ReportRequest
from reports.tracking import Run, Tracker
from sweeps.space import LAMBDAS, SearchOptions, Space, make_space
from sweeps.study import (
    best_recipe,
    create_study,
    finished_trials,
    fix_identity,
    load_study,
    sole_driver,
    storage_url,
)
from sweeps.trial import Sweep

CLIPTEX = RECIPES["cliptex"]


@options_dataclass
class StudyOptions(PluginOptions):
    """Which study."""

    study: str | None = None
    """name of the study (default: the only one; of a new one SUITE-SEARCH)"""
    storage: str | None = None
    """sqlite:///FILE.db or postgresql://… (default: sqlite:///sweeps.db here)"""

    @property
    def url(self) -> str:
        return storage_url(self.storage)


@options_dataclass
class SweepOptions(StudyOptions, DataOptions, ExecutionOptions, DryRunOptions, SearchOptions):
    """Options of a sweep."""

    suite: str = "sweep"
    """tasks to choose λs by; see `list suites`"""
    tasks: TaskNames = ()
    """only these tasks; see `list tasks`"""
    overrides: Changes = field(default_factory=dict)
    """change a setting of the recipe, for all trials (repeatable)"""
    task_overrides: TaskChanges = field(default_factory=dict)
    """change a setting of the tasks, or of one as TASK.KEY=VALUE (repeatable)"""
    recipe: str = "cliptex"
    """cliptex, or a .json or .toml file"""
    init: str = ""
    """initial weights, as for `train`; none for suites that make their own"""
    pairs: str = ""
    """image-caption pairs, as for `train`; none for suites that make their own"""
    labels: str = ""
    """pseudo-labels of the pairs; none for suites that make their own"""
    confirm: NonNegativeInt = 3
    """fresh seeds that compare the best trial with the base recipe; 0: no test"""
    experiment: str = ""
    """MLflow experiment (default: sweep, or sweep-SUITE)"""
    out: Path | None = None
    """recipe file of the best trial (default: STUDY-best.json)"""

    @property
    def name(self) -> str:
        return self.study or f"{self.suite}-{self.search}"

    @property
    def experiment_name(self) -> str:
        return self.experiment or (self.suite if self.suite == "sweep" else f"sweep-{self.suite}")

    @property
    def recipe_file(self) -> Path:
        """File of the best trial's recipe."""
        return self.out or Path(f"{self.name.replace('/', '_')}-best.json")


@dataclass(frozen=True, kw_only=True)
class SweepPlan(Plan):
    """What the options mean.

    Attributes:
        recipe: the base recipe.
        identity: what must be the same when the study is continued.
    """

    recipe: Recipe
    space: Space
    identity: Mapping[str, Any]


def plan_sweep(options: SweepOptions) -> SweepPlan:
    """The plan of a sweep. Raises ``UserError`` for options that cannot be used."""
    suite, inputs = SUITES.find(options.suite), (options.init, options.pairs, options.labels)
    are_wrong = any(inputs) if suite.pipeline else not all(inputs)
    if are_wrong:
        raise UserError(
            f"--init, --pairs and --labels: suite {suite.name!r}"
            f" {'makes its own, leave them out' if suite.pipeline else 'needs all three'}"
        )
    named = CLIPTEX if options.recipe == CLIPTEX.name else read_recipe(Path(options.recipe))
    changes = {
        **suite.training_settings,
        **dict(named.settings().items() - CLIPTEX.settings().items()),  # what a file changes
        **dict.fromkeys(LAMBDAS, 1.0),  # as at the start of the paper's search
        **options.overrides,
    }
    recipe = CLIPTEX.changed({**changes, "name": CLIPTEX.name, "seed": options.seed})
    tasks = plan_tasks(suite, options.tasks, options.task_overrides)
    if any(task.is_precision_open for task in tasks):
        precision, note = decide_precision(options, "--set-task")
        tasks = [task.with_precision(precision) for task in tasks]
        console.print(note, style="dim")
    space = make_space(options, recipe)
    identity = {
        "suite": suite.name,
        "search": options.search,
        "vary": ", ".join(f"{name}: {each}" for name, each in space.distributions.items()),
        "recipe": recipe.settings(),
        "tasks": [task.name for task in tasks],
    }
    return SweepPlan(options, suite, tasks, recipe=recipe, space=space, identity=identity)


def launch(options: SweepOptions) -> int:
    """Start or resume a sweep, until every trial is finished or has failed; returns the exit code.

    Raises:
        UserError, TrackingError: options that cannot be used, a study that was started with others,
            or that another process drives.
        KeyboardInterrupt: interrupted; finished trials stay, the same command resumes.
    """
    plan = plan_sweep(options)
    study = load_study(options.name, options.url)
    if study is not None and study.trials:
        fix_identity(study, plan.identity)
    if options.dry_run:
        with unstarted_executor(options):  # raises as the launch would
            done = len(finished_trials(study)) if study else 0
        console.print(
            f"{options.name}: {done} of {plan.space.total} trials done, {len(plan.tasks)} tasks"
            f" each; then the best and the base again on {options.confirm} fresh seeds"
        )
        return 0
    check_writable(options.recipe_file, "--out")
    opened = open_executor_and_tracker(options, options.experiment_name)
    with sole_driver(options.name, options.url), opened as (executor, tracker):
        sweep = asyncio.run(_run(options, plan, executor, tracker))
    request = ReportRequest([tracker.experiment], study=options.name, tracking_uri=tracker.uri)
    line, report = attach_report(request, [sweep.parent.id])
    if report is not None:
        write_json(options.recipe_file, best_recipe(sweep.study))
        console.print(report.summary.headline)
    console.print(
        f"{line}\nevery trial: optuna-dashboard {hide_secrets(options.url)}\ntrain the best: python"
        f" -m benchmark train --recipe {options.recipe_file} --init … --pairs … --out …",
    )
    return int(sweep.unfinished > 0)


async def _run(
    options: SweepOptions, plan: SweepPlan, executor: Executor, tracker: Tracker
) -> Sweep:
    # of a suite that makes its own, else on the user's pairs: called alike
    make: Callable[..., Any] = plan.suite.pipeline or partial(PairsPipeline, options)
    pipeline = make(executor, tracker.experiment)
    tasks = await ask_for_precision(plan.tasks, executor)
    plan = replace(plan, tasks=tasks, pipeline=pipeline)
    untrained = replace(plan.trained_architecture, name=plan.recipe.name)
    for task, reason in plan.inapplicable_tasks(untrained).items():
        raise UserError(f"{task}: {reason}, in the weights of this sweep; leave it out with --task")
    study = create_study(options.name, options.url)  # a storage that cannot be used costs no time
    await pipeline.make_data()
    # all images, also of a suite that is a quick look
    data = prepare_data(tasks, plan.folders, options, executor.num_workers)
    plan = replace(plan, data=data)
    if not study.trials:  # of an earlier launch that failed before its first trial
        study.set_user_attr("identity", {})
    fix_identity(study, {**plan.identity, "conditions": plan.conditions})

    async def evaluate(recipe: Recipe, run: Run) -> dict[str, dict[str, float]]:
        subject.set(f"{run.name} · ")
        weights = await pipeline.train(recipe, run.id)
        # all trials learn from the same labels, and are compared with the same clip-ft
        if recipe.tasks or recipe.name == "clip-ft":
            fix_identity(study, {recipe.name: weights.labels or weights.key})
        path = str(weights.path)
        run.set_tags(
            {
                TAGS["weights"]: weights.sha256,
                TAGS["weights_file"]: path,
                TAGS["train_run"]: weights.run,
            }
        )
        source = {"name": recipe.name, "weights": path, "seed": recipe.seed}
        backbone = await describe({**source, "any_architecture": True}, executor)
        row = {
            "backbone": backbone,
            "model_id": log_backbone(tracker, backbone, weights.run),
            "seed": recipe.seed,
            "parent_id": run.id,
        }
        jobs = [plan.job(tasks, tracker.experiment, **row) for tasks in plan.units]
        # the probes of a trial come before the trainings of others
        units = [probe(job, executor, Priority.TRAINING) for job in jobs]
        metrics = {}
        for cell in chain.from_iterable(await asyncio.gather(*units)):
            if cell.status == "failed":
                raise RuntimeError(f"{cell.task}: {cell.reason}")
            metrics[cell.task] = cell.metrics
            run.log_metrics({f"{cell.task}/{name}": value for name, value in cell.metrics.items()})
        return metrics

    notify = lambda line: console.print(f"  {line}")
    sweep = Sweep(study, plan.space, plan.recipe, evaluate, tracker, notify)
    await sweep.run(executor.slots, range(options.seed + 1, options.seed + 1 + options.confirm))
    return sweep


@dataclass(frozen=True)
class PairsPipeline:
    """What a sweep needs of a ``Pipeline``, on a user's pairs, labels and initial weights."""

    options: SweepOptions
    executor: Executor
    experiment: str
    data: Mapping[str, Path] = field(default_factory=dict)

    async def make_data(self) -> None:
        """Nothing to make: the datasets are the user's."""

    def architecture(self) -> Backbone:
        options = self.options
        return load_initial_clip(options.init, options.overrides.get("model", CLIPTEX.model))

    async def train(self, recipe: Recipe, parent: str) -> TrainedWeights:
        init, pairs, labels = self.options.init, self.options.pairs, Path(self.options.labels)
        key = content_key([recipe.identity(), init, pairs, str(labels)])
        out = home() / "weights" / f"sweep-{recipe.name}-{key}.safetensors"
        mark_in_use(out)
        inputs = Training(
            recipe,
            init,
            pairs,
            out,
            (labels.absolute(),) if recipe.tasks else (),
            experiment=self.experiment,
            parent=parent,
        )
        return await train_weights(inputs, self.executor)
