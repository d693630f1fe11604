"""What a sweep measures: a recipe is trained and probed on a suite's tasks, as units of work."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backbones import UserError
from backbones.cliptex.data.pairs import open_pairs
from backbones.cliptex.labels.store import LabelStore
from backbones.cliptex.training.recipes import LAMBDA, RECIPES, Recipe, read_recipe
from benchmark.execution import Executor
from benchmark.execution.progress import reporter
from benchmark.plan import decide_precision
from benchmark.probing.data import prepare_data
from benchmark.probing.parents import log_backbone
from benchmark.probing.submit import Probing
from benchmark.records import PlannedTask
from benchmark.stages.weights import TrainedWeights, TrainingInputs, train_weights
from benchmark.suites.registry import Pipeline, find_suite
from benchmark.sweep.options import SweepOptions
from benchmark.tasks import plan_tasks
from cliptex_common.files import content_key, home
from cliptex_common.locks import mark_in_use
from probes.base import missing_capability
from probes.dense.tasks import DENSE_TASKS
from reports.cell import reused_tags, task_tag
from reports.mlflow.run import Tracker
from sweeps.driver import Evaluation
from sweeps.objective import ObjectiveTask
from sweeps.pruning import Pruning
from sweeps.space import BASE

CLIPTEX = RECIPES["cliptex"]


def sweep_tasks(options: SweepOptions) -> tuple[list[PlannedTask], list[str]]:
    """The tasks of a sweep with their settings, and lines to print about them."""
    suite = find_suite(options.suite)
    inputs = options.init, options.pairs, options.labels
    if suite.pipeline and any(inputs):
        raise UserError(
            f"suite {suite.name!r} makes its own weights, pairs and labels; leave out --init,"
            " --pairs and --labels"
        )
    if not suite.pipeline and not all(inputs):
        raise UserError(
            f"suite {suite.name!r} has no pairs of its own: give --init, --pairs and --labels"
        )
    tasks = plan_tasks(suite, options.tasks, options.task_overrides)
    return decide_precision(tasks, options, "--set-task")


def objective_tasks(tasks: Sequence[PlannedTask]) -> dict[str, ObjectiveTask]:
    """Task → what objectives need to know of it."""
    described = {}
    for task in tasks:
        group: Any = "linear"
        if task.spec.kind == "detection" or task.spec.kind in DENSE_TASKS:
            group = "dense"
        elif task.probe.needs_text:
            group = "zero-shot"
        metrics = task.probe.metrics
        directions = {name: metric.direction for name, metric in metrics.items()}
        described[task.name] = ObjectiveTask(directions, group, metrics[task.main_metric].floor)
    return described


def base_recipe(options: SweepOptions) -> Recipe:
    """The recipe of the base cell: the suite's settings, changed by the recipe file, with all λs
    at 1, changed by the user.

    Raises:
        UserError: no such recipe, or a setting that does not exist or fit.
    """
    if {"name", "seed"} & options.overrides.keys():
        raise UserError("--set name and --set seed: give --study NAME and --seed N instead")
    settings = dict(find_suite(options.suite).training_settings)
    if options.recipe not in RECIPES:
        settings |= changes(read_recipe(Path(options.recipe)))
    elif options.recipe != CLIPTEX.name:
        raise UserError(
            f"--recipe {options.recipe}: a sweep is over cliptex's λs; give cliptex or a recipe"
            " file"
        )
    return CLIPTEX.changed({**settings, **BASE, **options.overrides, "seed": options.seed})


def changes(recipe: Recipe) -> dict[str, Any]:
    """Settings in which a recipe differs from ``cliptex``, without name, seed and λs."""
    return {
        name: value
        for name, value in recipe.settings().items()
        if name not in ("name", "seed")
        and not name.startswith(LAMBDA)
        and value != CLIPTEX.settings()[name]
    }


class Bench:
    """A suite's data, pairs, labels and initial weights; trains and probes recipes on them.

    Args:
        pipeline: trains the recipes.
    """

    def __init__(
        self, options: SweepOptions, executor: Executor, tracker: Tracker, pipeline: Pipeline
    ) -> None:
        self.executor, self.tracker, self.pipeline = executor, tracker, pipeline
        tasks, _ = sweep_tasks(options)
        data = prepare_data(tasks, options.with_folders(pipeline.data), executor.num_workers)
        # priority over trainings: a trial that is started is finished first
        self.probing = Probing(
            executor,
            tracker.experiment,
            options.suite,
            tasks,
            data,
            options.data_root,
            priority=1,
        )

    def content(self) -> dict[str, Any]:
        """The inputs that a trial's value depends on."""
        return {
            "data": {name: content_key(each) for name, each in self.probing.conditions.items()},
        }

    async def measure(
        self, recipe: Recipe, parent: str, pruning: Pruning | None = None
    ) -> Evaluation:
        """Train ``recipe`` (or find its weights) and probe them on every task; all runs nest under
        the run ``parent``.

        Raises:
            UserError, NonFiniteLoss, WorkerLost: as training and probing do.
            TrialPruned: ``pruning`` stopped the training.
        """
        weights = await self.pipeline.train(recipe, parent, pruning)  # type: ignore[call-arg]
        config = {
            "name": recipe.name,
            "weights": str(weights.path),
            "seed": recipe.seed,
            "any_architecture": True,
        }
        backbone = await self.probing.describe(config)
        for task in self.probing.tasks:
            reason = missing_capability(task.probe, backbone, task.settings)  # type: ignore[arg-type]
            if reason:
                raise UserError(
                    f"{task.name}: {reason}, in the weights of this sweep; leave it out with --task"
                )
        model = log_backbone(self.tracker, backbone, weights.run)
        units = [
            self.probing.cells(tasks, backbone, recipe.seed, parent, model)
            for tasks in self.probing.units
        ]
        cells = []
        for outcome in await asyncio.gather(*units, return_exceptions=True):
            if isinstance(outcome, BaseException):  # after all have ended
                raise outcome
            cells += outcome
        for cell in cells:
            if cell.status == "failed":
                raise RuntimeError(f"{cell.task}: {cell.reason}")
        tags = {
            "trained": str(weights.trained).lower(),
            "weights.sha256": weights.sha256,
            "weights.file": str(weights.path),
        }
        if weights.run:
            tags["train.run"] = weights.run
        cached = [cell for cell in cells if cell.status == "cached"]
        tags |= reused_tags({task_tag(cell.task): cell.run_id for cell in cached})
        costs = {**weights.train_cost, "probe_seconds": sum(cell.seconds for cell in cells)}
        return Evaluation({cell.task: cell.metrics for cell in cells}, tags, costs)


async def prepare_bench(options: SweepOptions, executor: Executor, tracker: Tracker) -> Bench:
    """A bench on inputs of the suite, which are made if they do not exist, or of the user.

    Raises:
        UserError: data, pairs or labels are missing, incomplete or broken.
    """
    make_pipeline = find_suite(options.suite).pipeline
    tasks, _ = sweep_tasks(options)
    if make_pipeline is not None:  # check the user's datasets before anything is trained
        tasks = [task for task in tasks if {task.spec.name, task.spec.folder} & set(options.data)]
    prepare_data(tasks, options, executor.num_workers)
    if make_pipeline is None:
        pipeline: Any = UsersPairs(options, executor, tracker.experiment)
    else:
        pipeline = make_pipeline(executor, tracker.experiment)
        await pipeline.make_data()
    return Bench(options, executor, tracker, pipeline)


class UsersPairs:
    """Trainings on the user's pairs, labels and initial weights, for a suite of real datasets."""

    data: Mapping[str, Path] = {}

    def __init__(self, options: SweepOptions, executor: Executor, experiment: str) -> None:
        self.executor, self.experiment, self.pairs = executor, experiment, options.pairs
        self.fingerprint = open_pairs(options.pairs, reporter()).fingerprint
        is_file = Path(options.init).exists()
        self.init = str(Path(options.init).absolute()) if is_file else options.init
        self.labels = LabelStore(Path(options.labels).absolute())

    async def train(
        self, recipe: Recipe, parent: str = "", pruning: Pruning | None = None
    ) -> TrainedWeights:
        """The weights of a recipe."""
        labels = self.labels if recipe.tasks else None
        identity = {
            "recipe": recipe.identity(),
            "init": self.init,
            "pairs": self.fingerprint,
            "labels": labels and labels.identity,
        }
        name = f"sweep-{recipe.name}-s{recipe.seed}-{content_key(identity, 12)}.safetensors"
        inputs = TrainingInputs(
            recipe,
            self.init,
            self.pairs,
            home() / "weights" / name,
            labels=(labels.root,) if labels else (),
            experiment=self.experiment,
            parent=parent,
            pruning=pruning,
        )
        mark_in_use(inputs.out)
        return await train_weights(inputs, self.executor)
