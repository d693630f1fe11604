"""``sweep launch``: what its options mean, and how a recipe is trained and probed as units of
work."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeInt

from backbones.cliptex.recipes import RECIPES, Recipe, find_recipe
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
from benchmark.run import ask_for_precision, describe, if_made, log_backbone, print_cost, probe
from benchmark.suites import SUITES
from benchmark.tasks import BackboneInfo, plan_tasks
from cliptex_common.errors import NotDownloaded, UserError, hide_secrets
from cliptex_common.files import check_creatable, content_key, home, mark_in_use, write_json
from cliptex_common.settings import options_dataclass
from reports.pages import attach_report
from reports.records import TAGS
from reports.report import ReportRequest
from reports.store import sqlite_file
from reports.tables import count
from reports.tracking import Run, Tracker
from sweeps.space import LAMBDAS, SearchOptions, Space, make_space
from sweeps.study import (
    best_recipe,
    check_identity,
    create_study,
    finished_trials,
    fix_identity,
    load_study,
    sole_driver,
    storage_url,
)
from sweeps.trial import Sweep

if TYPE_CHECKING:
    from backbones.backbone import Backbone
    from benchmark.stages import TrainedWeights
    from sweeps.study import Study

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
    """only these tasks; `list tasks SUITE` names a suite's"""
    overrides: Changes = field(default_factory=dict)
    """change a setting of the recipe, for all trials (repeatable)"""
    task_overrides: TaskChanges = field(default_factory=dict)
    """change a setting of the tasks, or of one as TASK.KEY=VALUE (repeatable)"""
    recipe: str = "cliptex"
    """a name from `list recipes` that learns from experts, or a .json or .toml file"""
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
    named = find_recipe(options.recipe)
    if not named.tasks:
        raise UserError(
            f"--recipe {options.recipe} learns from no expert, so that it has no λs to search;"
            " choose one that does, such as cliptex or cliptex-depth"
        )
    changes = {
        **suite.training_settings,
        **dict(named.settings().items() - CLIPTEX.settings().items()),  # what a file changes
        **dict.fromkeys(LAMBDAS, 1.0),  # as at the start of the paper's search
        **options.overrides,
    }
    recipe = CLIPTEX.changed({**changes, "name": CLIPTEX.name, "seed": options.seed})
    tasks = plan_tasks(suite, options.tasks, options.task_overrides)
    notes = []
    if any(task.is_precision_open for task in tasks):
        precision, note = decide_precision(options, "--set-task")
        tasks = [task.with_precision(precision) for task in tasks]
        notes.append(note)
    space = make_space(options, recipe)
    identity = {
        "suite": suite.name,
        "search": options.search,
        "vary": ", ".join(f"{name}: {each}" for name, each in space.distributions.items()),
        "recipe": recipe.settings(),
        "tasks": [task.name for task in tasks],
    }
    return SweepPlan(
        options, suite, tasks, notes=notes, recipe=recipe, space=space, identity=identity
    )


def launch(options: SweepOptions) -> int:
    """Start or resume a sweep, until every trial is finished or has failed; returns the exit code.

    Raises:
        UserError, TrackingError: options that cannot be used, a study that was started with others,
            or that another process drives.
        KeyboardInterrupt: interrupted; finished trials stay, the same command resumes.
    """
    plan = plan_sweep(options)
    if storage := sqlite_file(options.url):
        check_creatable(storage.parent)
    study = load_study(options.name, options.url)
    if study is not None and study.trials:
        check_identity(study, plan.identity)
    check_writable(options.recipe_file, "--out")
    with ExitStack() as stack:
        if study or not options.dry_run:  # a dry run writes no lock where nothing is yet
            stack.enter_context(sole_driver(options.name, options.url))
        for note in plan.notes:
            console.print(note, style="dim")
        if options.dry_run:
            os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported
            executor = stack.enter_context(unstarted_executor(options))
            asyncio.run(_preview(plan, study, executor))
            return 0
        opened = open_executor_and_tracker(options, options.experiment_name)
        executor, tracker = stack.enter_context(opened)
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


def _with_pipeline(plan: SweepPlan, executor: Executor | None) -> tuple[SweepPlan, BackboneInfo]:
    """The plan with what makes its weights, and their architecture. Raises ``UserError`` if a
    dataset has no folder, or a task does not apply to the weights."""
    # of a suite that makes its own, else on the user's pairs: called alike
    make: Callable[..., Any] = plan.suite.pipeline or partial(PairsPipeline, plan)
    plan = replace(plan, pipeline=make(executor, plan.options.experiment_name))
    untrained = replace(plan.trained_architecture, name=plan.recipe.name)
    for task, reason in plan.inapplicable_tasks(untrained).items():
        raise UserError(f"{task}: {reason}, in the weights of this sweep; leave it out with --task")
    return plan, untrained


async def _with_data(plan: SweepPlan, num_workers: int, cached_only: bool = False) -> SweepPlan:
    """The plan with its data: all images, also of a suite that is a quick look. Raises
    ``UserError`` as ``prepare_data``, and if the user's pairs cannot be trained on."""
    assert plan.pipeline is not None
    await plan.pipeline.make_data()
    data = prepare_data(plan.tasks, plan.folders, plan.options, num_workers, cached_only)
    return replace(plan, data=data)


async def _preview(plan: SweepPlan, study: Study | None, executor: Executor) -> None:
    """Print what is done, what is to do and what that takes. Raises ``UserError`` as the launch
    does before its first trial."""
    options, space = plan.options, plan.space
    is_precise = not any(task.is_precision_open for task in plan.tasks)
    plan = replace(plan, tasks=[task.with_precision("bf16") for task in plan.tasks])
    planned: dict[str, BackboneInfo] = {}
    titles: list[str] = []
    try:
        plan, planned[plan.recipe.name] = _with_pipeline(plan, None)
        if plan.suite.pipeline:
            await if_made(plan.pipeline.train(plan.recipe), titles)  # type: ignore[union-attr]
        plan = await if_made(_with_data(plan, 0, cached_only=True), titles) or plan
        is_checked = plan.data and all(each.fingerprint for each in plan.data.values())
        if study and is_precise and is_checked:
            check_identity(study, {"conditions": plan.conditions})
    except NotDownloaded as error:
        console.print(f"  note · {error}")
    finished = {space.name(trial.params) for trial in finished_trials(study)} if study else set()
    names = list(map(space.name, space.combinations())) or [
        f"sample {number}" for number in range(len(finished), space.total)
    ]
    pending = [name for name in names if name not in finished]
    for title in [*dict.fromkeys(titles), *(f"trial {name}" for name in pending)]:
        console.print(f"  to do · {title}")
    if pending:
        # on fresh seeds the suite's own CLIP is trained, too
        starts = 3 if plan.suite.pipeline else 2
        trainings = 1 + len(pending) + starts * options.confirm  # the first of clip-ft
        console.print(f"  at most {count(trainings, 'training')}:")
        for line in executor.preview([f"train {plan.recipe.name}"] * trainings):
            console.print(f"  {line}")
        rows = [(plan.recipe.name, options.seed, tasks) for tasks in plan.units] * trainings
        if not plan.data:
            console.print("  at most, as tasks on the same images become one unit:")
        print_cost(plan, executor, Tracker.existing(options.experiment_name), planned, rows)
    console.print(
        f"{options.name}: {space.total - len(pending)} of {space.total} trials done,"
        f" {count(len(plan.tasks), 'task')} each"
        + f"; then the best and the base again on {count(options.confirm, 'fresh seed')}"
        * bool(options.confirm)
    )


async def _run(
    options: SweepOptions, plan: SweepPlan, executor: Executor, tracker: Tracker
) -> Sweep:
    plan = replace(plan, tasks=await ask_for_precision(plan.tasks, executor))
    plan, _ = _with_pipeline(plan, executor)
    study = create_study(options.name, options.url)  # a storage that cannot be used costs no time
    plan = await _with_data(plan, executor.num_workers)
    pipeline: Any = plan.pipeline
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

    plan: SweepPlan
    executor: Executor | None
    experiment: str
    data: Mapping[str, Path] = field(default_factory=dict)

    async def make_data(self) -> None:
        """Nothing to make: the datasets are the user's. Raises ``UserError`` if one of the
        trainings would."""
        from backbones.cliptex.batches import training_size
        from backbones.cliptex.train import check_training

        recipe = self.plan.recipe
        inputs = self._training(recipe).inputs(keep=self.executor is not None)
        for params in self.plan.space.combinations():
            training_size(recipe.changed(params), inputs["pairs"])
        check_training(recipe, **inputs)

    def architecture(self) -> Backbone:
        from backbones.cliptex.model import load_initial_clip

        options = self.plan.options
        return load_initial_clip(options.init, options.overrides.get("model", CLIPTEX.model))

    async def train(self, recipe: Recipe, parent: str) -> TrainedWeights:
        from benchmark.stages import train_weights

        training = self._training(recipe, parent)
        mark_in_use(training.out)
        assert self.executor is not None
        return await train_weights(training, self.executor)

    def _training(self, recipe: Recipe, parent: str = "") -> Any:
        """The ``Training`` of a recipe."""
        from benchmark.stages import Training

        options = self.plan.options
        init, pairs, labels = options.init, options.pairs, Path(options.labels)
        key = content_key([recipe.identity(), init, pairs, str(labels)])
        return Training(
            recipe,
            init,
            pairs,
            home() / "weights" / f"sweep-{recipe.name}-{key}.safetensors",
            (labels.absolute(),) if recipe.tasks else (),
            experiment=self.experiment,
            parent=parent,
        )
