"""The bridge from a suite to a sweep: "train with these settings, freeze, probe, return metrics" as units of work."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import benchmark.catalog  # noqa: F401 – registers every dataset, probe and suite
from backbones import UserError
from backbones.cliptex.labels import LabelStore
from backbones.cliptex.models import load_start
from backbones.cliptex.pairs import open_pairs
from backbones.cliptex.recipes import RECIPES, Recipe, read_recipe
from backbones.errors import nearest
from backbones.files import content_key, home
from backbones.overrides import fields_of, parse_pairs, with_changes
from benchmark.evaluation.cell import Cell
from benchmark.evaluation.data import prepare_data
from benchmark.evaluation.groups import task_groups
from benchmark.evaluation.needs import needs
from benchmark.evaluation.plan import PlannedTask, plan_tasks, split_names
from benchmark.evaluation.units import ProbeUnit, probe_unit
from benchmark.execution.progress import reporter
from benchmark.pipeline.weights import TrainedWeights, TrainingInputs, train_unit
from benchmark.suites.registry import Stages, SuiteTraining, find_suite
from probes.datasets.base import PreparedDataset
from sweeps.driver import Evaluation
from sweeps.objective import TaskFacts
from sweeps.pruning import Pruning
from sweeps.space import LAMBDAS, Value

DENSE_KINDS = ("segmentation", "detection", "depth", "normals")


@dataclass(frozen=True)
class Request:
    """What a sweep evaluates on, as the user says it.

    Attributes:
        suite: named list of tasks.
        tasks: only these of them.
        changes: recipe settings that all trials share (``--set``).
        task_changes: changes to the tasks' settings (``--set-task``).
        recipe: ``cliptex``, or a recipe file whose settings (but the λs) all trials share.
        init, pairs, labels: for suites that do not make their own.
        data_root, data, partial: where the datasets are.
        seed: of training and probing.
    """

    suite: str = "sweep"
    tasks: Sequence[str] = ()
    changes: Sequence[str] = ()
    task_changes: Sequence[str] = ()
    recipe: str = "cliptex"
    init: str = ""
    pairs: str = ""
    labels: str = ""
    data_root: Path | None = None
    data: Mapping[str, Path] = field(default_factory=dict)
    partial: bool = False
    seed: int = 0


def planned(request: Request) -> list[PlannedTask]:
    """The tasks of a sweep with their settings; needs no data yet."""
    suite = find_suite(request.suite)
    if suite.training is None:
        for name in ("init", "pairs", "labels"):
            if not getattr(request, name):
                raise UserError(
                    f"suite {suite.name!r} has no pairs of its own: say --init, --pairs and --labels ({name} is missing)"
                )
    elif given := [name for name in ("init", "pairs", "labels") if getattr(request, name)]:
        raise UserError(f"suite {suite.name!r} makes its own pairs, labels and weights; leave out --{given[0]}")
    return plan_tasks(suite, split_names(request.tasks), parse_pairs(request.task_changes))


def task_facts(tasks: Sequence[PlannedTask]) -> dict[str, TaskFacts]:
    """What objectives need to know of the tasks."""

    def group(task: PlannedTask) -> Any:
        return "dense" if task.spec.kind in DENSE_KINDS else "zero-shot" if task.probe.needs_text else "linear"

    return {task.name: TaskFacts(dict(task.probe.metrics), group(task)) for task in tasks}


def fixed_settings(request: Request, suite_settings: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe settings that all trials share: the suite's, then the recipe file's, then the user's; without λs.

    Raises:
        UserError: no such recipe, a setting that does not exist or fit.
    """
    if request.recipe in RECIPES:
        if request.recipe != "cliptex":
            raise UserError(f"--recipe {request.recipe}: a sweep is over cliptex's λs; give cliptex or a recipe file")
        found: dict[str, Any] = dict(suite_settings)
    else:
        recipe = read_recipe(Path(request.recipe))
        found = {**suite_settings, **_differing(recipe)}
    recipe = with_changes(replace(RECIPES["cliptex"], **found), _set(request, lambdas=False))
    return {"recipe": "cliptex", **_differing(recipe), "seed": request.seed}


def fixed_lambdas(request: Request) -> dict[str, Value]:
    """λs that ``--set`` fixes (or bases linear search on)."""
    recipe = with_changes(RECIPES["cliptex"], _set(request, lambdas=True))
    return {name: float(getattr(recipe, name)) for name in _set(request, lambdas=True)}


def _set(request: Request, lambdas: bool) -> dict[str, str]:
    changes = parse_pairs(request.changes)
    for name in changes:
        if name not in fields_of(Recipe):
            raise UserError(
                f"--set {name}: no setting of the recipe; {nearest(name, fields_of(Recipe))} (tasks: --set-task)"
            )
        if name in ("name", "seed"):
            raise UserError(f"--set {name}: give --study NAME and --seed N instead")
    return {name: value for name, value in changes.items() if name.startswith("lambda_") == lambdas}


def _differing(recipe: Recipe) -> dict[str, Any]:
    """Settings in which a recipe differs from ``cliptex``, without name, seed and λs."""
    base = RECIPES["cliptex"]
    without = ("name", "seed", *(f"lambda_{name}" for name in LAMBDAS))
    return {k: v for k, v in asdict(recipe).items() if k not in without and v != getattr(base, k)}


def read_setting(name: str, text: str) -> Any:
    """A recipe setting's value from text; raises ``UserError`` for what does not exist or fit."""
    return getattr(with_changes(RECIPES["cliptex"], {name: text}), name)


def make_recipe(name: str, fixed: Mapping[str, Any], params: Mapping[str, Value], seed: int) -> Recipe:
    """Recipe ``name`` (``cliptex``, ``clip-ft``) with shared settings and a trial's params.

    Raises:
        UserError: they do not fit together.
    """
    settings: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in fixed.items() if k not in ("recipe", "seed")
    }
    if name != "cliptex":  # the baseline has the shared settings, but neither λs nor experts
        settings.pop("experts", None)
    # as text, so that a param such as "seg,depth" is read as the field's own type
    return replace(
        with_changes(replace(RECIPES[name], **settings), {k: _text(v) for k, v in params.items()}), seed=seed
    )


def _text(value: Value) -> str:
    return repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


class Bench:
    """A suite's data, pairs, labels and initial weights; trains and probes recipes on them, by units of work.

    Args:
        request: what to evaluate on.
        stages: the executor, and what units run with.
        training: what trainings start from (see ``prepare_bench``).
    """

    def __init__(self, request: Request, stages: Stages, training: SuiteTraining) -> None:
        self.request, self.stages, self.training = request, stages, training
        self.tasks = planned(request)
        self.placed = {**training.data, **request.data}
        self.data: dict[str, PreparedDataset] = prepare_data(
            self.tasks, self.placed, request.data_root, request.partial, stages.num_workers
        )
        self.groups = task_groups(self.tasks, self.data)
        self.labels = LabelStore(training.labels)

    def content(self) -> dict[str, Any]:
        """What of the inputs a trial's value depends on."""
        return {
            "pairs": open_pairs(self.training.pairs, reporter()).fingerprint,
            "labels": self.labels.identity,
            "init": load_start(self.training.init, "mini").digest,
            "data": {task.name: content_key(task.protocol(self.data[task.name])) for task in self.tasks},
        }

    async def measure(
        self, recipe: Recipe, parent: str, pruning: Pruning | None = None, priority: int = 0
    ) -> Evaluation:
        """Train ``recipe`` (or find its weights), probe them on every task; all runs nest under the run ``parent``.

        Raises:
            UserError, NonFiniteLoss, WorkerLost: as training and probing do.
            TrialPruned: ``pruning`` stopped the training.
        """
        stages, title = self.stages, f"{recipe.name} · seed {recipe.seed}"
        inputs = TrainingInputs(
            recipe, self.training.init, self.training.pairs, self.training.weights(recipe, self.labels if recipe.tasks else None),
            labels=(self.training.labels,) if recipe.tasks else (), device=stages.device, num_workers=stages.num_workers,
            experiment=stages.experiment, parent=parent, pruning=pruning,
        )  # fmt: skip
        asked = needs("train", stages.executor, stages.device, stages.num_workers)
        weights = await stages.executor.run(train_unit, inputs, **asked, name=f"train {title}", priority=priority)
        cells = await self._probe(recipe, weights, parent, priority + 1)  # a trial that is begun is ended first
        for cell in cells:
            if cell.status == "not applicable":
                raise UserError(f"{cell.task}: {cell.reason}, in the weights of this sweep; leave it out with --task")
            if cell.status == "failed":
                raise RuntimeError(f"{cell.task}: {cell.reason}")
        tags = {"train.run": weights.run, "weights.sha256": weights.sha256, "weights.file": str(weights.path)}
        tags["trained"] = str(weights.trained).lower()
        tags |= {f"cached.{cell.task.replace('/', '.')}": cell.run_id for cell in cells if cell.status == "cached"}
        return Evaluation(
            {cell.task: cell.metrics for cell in cells},
            {key: value for key, value in tags.items() if value},
            {**weights.cost, "probe_seconds": sum(cell.seconds for cell in cells)},
        )

    async def _probe(self, recipe: Recipe, weights: TrainedWeights, parent: str, priority: int) -> list[Cell]:
        """The cells of all tasks; every unit is waited for before one that was lost is an error."""
        stages, request = self.stages, self.request
        config = {"name": recipe.name, "weights": str(weights.path), "seed": recipe.seed, "any_architecture": True}
        asked = needs("probe", stages.executor, stages.device, stages.num_workers)
        overrides = parse_pairs(request.task_changes)
        under_way = []
        for group in self.groups:
            known = {key for task in group for key in fields_of(task.probe.settings_type)}
            names = tuple(task.name for task in group)
            unit = ProbeUnit(
                request.suite, names, config, recipe.seed, stages.experiment, parent,
                {key: value for key, value in overrides.items() if key in known}, self.placed, request.data_root,
                request.partial, stages.device, stages.num_workers,
            )  # fmt: skip
            title = f"{recipe.name} · seed {recipe.seed} · {' + '.join(names)}"
            under_way.append(stages.executor.run(probe_unit, unit, **asked, name=title, priority=priority))
        found = await asyncio.gather(*under_way, return_exceptions=True)
        for result in found:
            if isinstance(result, BaseException):
                raise result
        return [cell for result in found if not isinstance(result, BaseException) for cell in result]


async def prepare_bench(request: Request, stages: Stages) -> Bench:
    """A bench, whose inputs are made by the suite, found, or what the user brings.

    Raises:
        UserError: data, pairs or labels are missing, incomplete or broken.
    """
    make = find_suite(request.suite).training
    return Bench(request, stages, await make(stages, request.seed) if make else _brought(request))


def _brought(request: Request) -> SuiteTraining:
    """What the user brings for a suite of real datasets."""
    labels = Path(request.labels)
    pairs = open_pairs(request.pairs, reporter()).fingerprint

    def weights(recipe: Recipe, used: LabelStore | None) -> Path:
        inputs = {"recipe": asdict(recipe), "init": request.init, "pairs": pairs, "labels": used and used.identity}
        return home() / "weights" / f"sweep-{recipe.name}-s{recipe.seed}-{content_key(inputs, 12)}.safetensors"

    return SuiteTraining({}, request.init, request.pairs, labels, weights)
