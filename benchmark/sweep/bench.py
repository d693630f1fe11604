"""The bridge from a suite to a sweep: "train with these settings, freeze, probe, return metrics" as
units of work."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import benchmark.catalog  # noqa: F401 – registers every dataset, probe and suite
from backbones import UserError
from backbones.cliptex.data.pairs import open_pairs
from backbones.cliptex.labels.store import LabelStore
from backbones.cliptex.training.models import load_pretrained_clip
from backbones.cliptex.training.recipes import LAMBDA, RECIPES, Recipe, read_recipe, setting_names
from benchmark.data import DataChoice, prepare_data
from benchmark.execution import ExecutorSpec
from benchmark.execution.progress import reporter
from benchmark.plan import PlannedTask, plan_tasks
from benchmark.probing import Probing
from benchmark.stages.weights import TrainingInputs, train_stage
from benchmark.suites.registry import Stages, SuiteTraining, find_suite
from common.errors import nearest
from common.files import content_key, home
from common.locks import mark_in_use
from common.settings import parse_pairs
from sweeps.driver import Evaluation
from sweeps.objective import ObjectiveTask
from sweeps.pruning import Pruning
from sweeps.space import Value, Wanted

CLIPTEX = RECIPES["cliptex"]
DENSE_KINDS = ("segmentation", "detection", "depth", "normals")


@dataclass(frozen=True)
class SweepOptions(Wanted):
    """All that ``sweep launch`` was told, by the names of its options; its ``--help`` says what
    they mean."""

    suite: str = "sweep"
    tasks: Sequence[str] = ()
    overrides: Sequence[str] = ()
    task_overrides: Sequence[str] = ()
    recipe: str = "cliptex"
    init: str = ""
    pairs: str = ""
    labels: str = ""
    data_root: Path | None = None
    data: Mapping[str, Path] = field(default_factory=dict)
    partial: bool = False
    limit: int | None = None
    confirm: int = 3
    study: str = ""
    storage: str | None = None
    objective: Sequence[str] = ()
    zero_shot_loss: float = 5.0
    prune: str = ""
    executor: ExecutorSpec = field(default_factory=ExecutorSpec)
    experiment: str = ""
    out: Path | None = None

    @property
    def name(self) -> str:
        return self.study or f"{self.suite}-{self.search}"

    @property
    def experiment_name(self) -> str:
        return self.experiment or (self.suite if self.suite == "sweep" else f"sweep-{self.suite}")

    def choice(self, made: Mapping[str, Path] | None = None) -> DataChoice:
        """Which data count; of those that a suite ``made`` all that the user does not place."""
        return DataChoice({**(made or {}), **self.data}, self.data_root, self.partial, self.limit)

    @property
    def recipe_file(self) -> Path:
        """Where the best trial's recipe goes."""
        return self.out or Path(f"{self.name.replace('/', '_')}-best.json")


def planned(options: SweepOptions) -> list[PlannedTask]:
    """The tasks of a sweep with their settings; needs no data yet."""
    suite = find_suite(options.suite)
    given = {name: bool(getattr(options, name)) for name in ("init", "pairs", "labels")}
    wrong = [name for name, there in given.items() if there == bool(suite.training)]
    if wrong and suite.training:
        raise UserError(
            f"suite {suite.name!r} makes its own pairs, labels and weights; leave out --{wrong[0]}"
        )
    if wrong:
        told = f"say --init, --pairs and --labels ({wrong[0]} is missing)"
        raise UserError(f"suite {suite.name!r} has no pairs of its own: {told}")
    return plan_tasks(suite, options.tasks, parse_pairs(options.task_overrides))


def objective_tasks(tasks: Sequence[PlannedTask]) -> dict[str, ObjectiveTask]:
    """What objectives need to know of the tasks."""
    found = {}
    for task in tasks:
        group: Any = (
            "dense"
            if task.spec.kind in DENSE_KINDS
            else "zero-shot"
            if task.probe.needs_text
            else "linear"
        )
        metrics = task.probe.metrics
        floor = next(iter(metrics.values())).floor
        found[task.name] = ObjectiveTask(
            {name: one.direction for name, one in metrics.items()}, group, floor
        )
    return found


def fixed_settings(
    options: SweepOptions, suite_settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Value]]:
    """Recipe settings that all trials share – the suite's, then the recipe file's, then the user's,
    without λs – and the λs that the user fixes (or bases linear search on).

    Raises:
        UserError: no such recipe, a setting that does not exist or fit.
    """
    found, overrides, known = dict(suite_settings), parse_pairs(options.overrides), setting_names()
    if options.recipe not in RECIPES:
        found |= _differing(read_recipe(Path(options.recipe)))
    elif options.recipe != CLIPTEX.name:
        raise UserError(
            f"--recipe {options.recipe}: a sweep is over cliptex's λs; give cliptex or a recipe"
            " file"
        )
    for name in overrides:
        if name not in known:
            raise UserError(
                f"--set {name}: no setting of the recipe; {nearest(name, known)} (tasks:"
                " --set-task)"
            )
        if name in ("name", "seed"):
            raise UserError(f"--set {name}: give --study NAME and --seed N instead")
    recipe = CLIPTEX.changed(found).changed(overrides)
    lambdas: dict[str, Value] = {
        name: recipe.settings()[name] for name in overrides if name.startswith(LAMBDA)
    }
    return {"recipe": CLIPTEX.name, **_differing(recipe), "seed": options.seed}, lambdas


def _differing(recipe: Recipe) -> dict[str, Any]:
    """Settings in which a recipe differs from ``cliptex``, without name, seed and λs."""
    ours = CLIPTEX.settings()
    shared = {
        k: v
        for k, v in recipe.settings().items()
        if k not in ("name", "seed") and not k.startswith(LAMBDA)
    }
    return {k: v for k, v in shared.items() if v != ours[k]}


def make_recipe(
    name: str, fixed: Mapping[str, Any], params: Mapping[str, Value], seed: int
) -> Recipe:
    """Recipe ``name`` (``cliptex``, ``clip-ft``) with shared settings and a trial's params.

    Raises:
        UserError: they do not fit together.
    """
    # the baseline has the shared settings, but neither λs nor experts
    without = ("recipe", "seed") if name == CLIPTEX.name else ("recipe", "seed", "experts")
    shared: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in fixed.items() if k not in without
    }
    return RECIPES[name].changed({**shared, **params, "seed": seed})


class Bench:
    """A suite's data, pairs, labels and initial weights; trains and probes recipes on them, by
    units of work.

    Args:
        stages: with what units run.
        training: what trainings start from (see ``prepare_bench``).
    """

    def __init__(self, options: SweepOptions, stages: Stages, training: SuiteTraining) -> None:
        self.stages, self.training, self.labels = stages, training, LabelStore(training.labels)
        # before trainings: a trial that is begun is ended first
        self.probing = Probing(
            stages,
            planned(options),
            parse_pairs(options.task_overrides),
            options.choice(training.data),
            priority=1,
        )
        self.tasks, self.data = self.probing.tasks, self.probing.data

    def content(self) -> dict[str, Any]:
        """What of the inputs a trial's value depends on."""
        return {
            "pairs": open_pairs(self.training.pairs, reporter()).fingerprint,
            "labels": self.labels.identity,
            "init": load_pretrained_clip(self.training.init, "mini").digest,
            "data": {
                task.name: content_key(task.protocol(self.data[task.name])) for task in self.tasks
            },
        }

    async def measure(
        self, recipe: Recipe, parent: str, pruning: Pruning | None = None
    ) -> Evaluation:
        """Train ``recipe`` (or find its weights), probe them on every task; all runs nest under the
        run ``parent``.

        Raises:
            UserError, NonFiniteLoss, WorkerLost: as training and probing do.
            TrialPruned: ``pruning`` stopped the training.
        """
        made, labels = self.training, self.labels if recipe.tasks else None
        inputs = TrainingInputs(
            recipe,
            made.init,
            made.pairs,
            made.weights(recipe, labels),
            labels=(made.labels,) if labels else (),
            experiment=self.stages.experiment,
            parent=parent,
            pruning=pruning,
        )
        mark_in_use(inputs.out)
        weights = await train_stage(inputs, self.stages.executor)
        config = {
            "name": recipe.name,
            "weights": str(weights.path),
            "seed": recipe.seed,
            "any_architecture": True,
        }
        units = [
            self.probing.cells(group, config, recipe.seed, parent)
            for group in self.probing.groups(self.tasks)
        ]
        cells = []
        for found in await asyncio.gather(
            *units, return_exceptions=True
        ):  # all are waited for, also after one was lost
            if isinstance(found, BaseException):
                raise found
            cells += found
        for cell in cells:
            if cell.status == "not applicable":
                raise UserError(
                    f"{cell.task}: {cell.reason}, in the weights of this sweep; leave it out with"
                    " --task"
                )
            if cell.status == "failed":
                raise RuntimeError(f"{cell.task}: {cell.reason}")
        tags = {"train.run": weights.run, "trained": str(weights.trained).lower()}
        tags |= {"weights.sha256": weights.sha256, "weights.file": str(weights.path)}
        tags |= {
            f"cached.{cell.task.replace('/', '.')}": cell.run_id
            for cell in cells
            if cell.status == "cached"
        }
        costs = {**weights.spent, "probe_seconds": sum(cell.seconds for cell in cells)}
        known = {key: value for key, value in tags.items() if value}
        return Evaluation({cell.task: cell.metrics for cell in cells}, known, costs)


async def prepare_bench(options: SweepOptions, stages: Stages) -> Bench:
    """A bench, whose inputs are made by the suite, found, or what the user brings.

    Raises:
        UserError: data, pairs or labels are missing, incomplete or broken.
    """
    make = find_suite(options.suite).training
    tasks, placed = planned(options), options.data
    # what the user places is looked at before anything is trained
    own = (
        [task for task in tasks if {task.spec.name, task.spec.folder} & set(placed)]
        if make
        else tasks
    )
    prepare_data(own, options.choice(), stages.executor.num_workers)
    return Bench(options, stages, await make(stages, options.seed) if make else _brought(options))


def _brought(options: SweepOptions) -> SuiteTraining:
    """What the user brings for a suite of real datasets."""
    pairs = open_pairs(options.pairs, reporter()).fingerprint
    init = str(Path(options.init).absolute()) if Path(options.init).exists() else options.init

    def weights(recipe: Recipe, used: LabelStore | None) -> Path:
        inputs = {
            "recipe": recipe.identity(),
            "init": init,
            "pairs": pairs,
            "labels": used and used.identity,
        }
        return (
            home()
            / "weights"
            / f"sweep-{recipe.name}-s{recipe.seed}-{content_key(inputs, 12)}.safetensors"
        )

    return SuiteTraining({}, init, options.pairs, Path(options.labels).absolute(), weights)
