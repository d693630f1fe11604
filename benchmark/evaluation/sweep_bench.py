"""The bridge from a suite to a sweep: "train with these settings, freeze, probe, return metrics" as a function."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import backbones
import benchmark.catalog  # noqa: F401 – registers every dataset, probe and suite
from backbones import UserError
from backbones.cliptex.labels import LabelStore
from backbones.cliptex.models import load_start
from backbones.cliptex.pairs import open_pairs
from backbones.cliptex.recipes import RECIPES, Recipe, read_recipe
from backbones.errors import nearest
from backbones.files import content_key, home
from backbones.overrides import fields_of, parse_pairs, with_changes
from benchmark.alone import alone
from benchmark.evaluation.cell import CellBusy, finished_cell, run_cell
from benchmark.evaluation.plan import PlannedTask, plan_tasks, split_names
from benchmark.execution.progress import Bar
from benchmark.evaluation.runner import Options, choose_device, prepare_data
from benchmark.side_by_side import cores
from benchmark.stages import train_stage
from benchmark.suites.registry import Ground, find_suite
from probes.datasets.base import PreparedDataset
from reports.tracking import Run, Tracker
from sweeps.objective import TaskFacts
from sweeps.space import LAMBDAS, Value
from sweeps.worker import Evaluation, Report

DENSE_KINDS = ("segmentation", "detection", "depth", "normals")
BUSY_WAIT = 2.0  # seconds between looks at a cell that another process runs


@dataclass(frozen=True)
class Request:
    """What a sweep evaluates on, as the user says it; JSON, since workers build the same from it.

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
    data_root: str = ""
    data: Mapping[str, str] = field(default_factory=dict)
    partial: bool = False
    seed: int = 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Machine:
    """Where to compute: never changes a result."""

    device: str = "auto"
    loaders: int = 2


def planned(request: Request) -> list[PlannedTask]:
    """The tasks of a sweep with their settings; needs no data yet."""
    suite = find_suite(request.suite)
    if suite.ground is None:
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


def held_lambdas(request: Request) -> dict[str, Value]:
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
    """A suite's data, pairs, labels and initial weights, made or found once; trains and probes recipes on them.

    Args:
        request: what to evaluate on.
        machine: device and loading processes.
        tracker: where stages and cells are recorded.
        bar: one line of progress.
    """

    def __init__(self, request: Request, machine: Machine, tracker: Tracker, bar: Bar) -> None:
        self.tracker, self.bar, self.seed = tracker, bar, request.seed
        self.tasks = planned(request)
        self.device = choose_device(machine.device)
        self.loaders = machine.loaders
        placed = {name: Path(folder) for name, folder in request.data.items()}
        options = Options(
            suite=request.suite, data_root=Path(request.data_root) if request.data_root else None, partial=request.partial,
            device=machine.device, workers=machine.loaders, data=placed, jobs=0,
        )  # fmt: skip
        suite = find_suite(request.suite)
        if suite.ground is not None:
            with alone(
                home() / "sweeps" / f"ground-{suite.name}", bar
            ):  # workers that start together make nothing twice
                self.ground = suite.ground(options, request.seed, tracker, bar)
        else:
            self.ground = _brought(request, bar)
        self.data: dict[str, PreparedDataset] = prepare_data(self.tasks, {**self.ground.data, **placed}, options, bar)
        self.content = {
            "pairs": self.ground.pairs.fingerprint,
            "labels": self.ground.labels.identity,
            "init": load_start(self.ground.init, "mini").digest,
            "data": {name: content_key(task.protocol(self.data[name])) for name, task in self._named().items()},
        }

    def _named(self) -> dict[str, PlannedTask]:
        return {task.name: task for task in self.tasks}

    def evaluate(self, fixed: Mapping[str, Any], seed: int, watch_metric: str = "") -> Callable[..., Evaluation]:
        """The function that a worker calls for each trial; ``watch_metric`` (``val/…``) is reported for pruning."""

        def run(params: Mapping[str, Value], run: Run, report: Report) -> Evaluation:
            return self.measure(
                make_recipe("cliptex", fixed, params, seed), run, report if watch_metric else None, watch_metric
            )

        return run

    def measure(self, recipe: Recipe, parent: Run, report: Report | None = None, watch_metric: str = "") -> Evaluation:
        """Train ``recipe`` (or find its weights), probe them on every task; all runs nest under ``parent``.

        Raises:
            UserError, NonFiniteLoss: as training and probes do.
            TrialPruned: ``report`` said so.
        """
        labels = self.ground.labels if recipe.tasks else None
        out = self.ground.weights(recipe, labels)
        per_epoch = max(1, (len(self.ground.pairs) - recipe.val_pairs) // recipe.batch_size)

        def watch(metrics: Mapping[str, float], step: int) -> None:
            if report is not None and watch_metric in metrics:
                report(max(1, round(step / per_epoch)), metrics[watch_metric])

        started = time.perf_counter()
        result, train_run = train_stage(
            self.tracker, recipe, init=self.ground.init, pairs=self.ground.pairs, labels=labels, out=out, bar=self.bar,
            device=self.device, workers=self.loaders, parent=parent, watch=watch if report else None,
        )  # fmt: skip
        trained = time.perf_counter() - started
        config: dict[str, Any] = {
            "name": recipe.name,
            "weights": str(result.path),
            "seed": recipe.seed,
            "any_architecture": True,
        }
        backbone = backbones.create(**config).to(self.device)
        metrics = {}
        for task in self.tasks:
            metrics[task.name] = self._probe(backbone, config, task, recipe.seed, parent)
        tags = {"train.run": train_run, "weights.sha256": result.sha256, "weights.file": str(result.path)}
        tags["trained"] = str(result.trained).lower()
        return Evaluation(
            metrics,
            {key: value for key, value in tags.items() if value},
            {"train_seconds": trained, "probe_seconds": time.perf_counter() - started - trained},
        )

    def _probe(
        self, backbone: Any, config: Mapping[str, Any], task: PlannedTask, seed: int, parent: Run
    ) -> Mapping[str, float]:
        if task.probe.needs_text and not backbone.has_text:
            raise UserError(
                f"{task.name} needs a text tower, which the weights of this sweep have not; leave it out with --task"
            )
        while True:
            done = finished_cell(self.tracker, backbone, task, self.data[task.name], seed)
            if done is not None:
                parent.set_tags({f"reused.{task.name.replace('/', '.')}": done.run_id})
                return done.metrics
            try:
                return run_cell(
                    self.tracker, parent, backbone, config, task, self.data[task.name], seed, device=self.device,
                    workers=self.loaders, progress=self.bar,
                ).metrics  # fmt: skip
            except CellBusy:
                time.sleep(BUSY_WAIT)  # the same weights from another cell; its result will do


def _brought(request: Request, bar: Bar) -> Ground:
    """What the user brings for a suite of real datasets."""
    pairs, labels = open_pairs(request.pairs, bar), LabelStore(Path(request.labels))

    def weights(recipe: Recipe, used: LabelStore | None) -> Path:
        inputs = {
            "recipe": asdict(recipe),
            "init": request.init,
            "pairs": pairs.fingerprint,
            "labels": used and used.identity,
        }
        return home() / "weights" / f"sweep-{recipe.name}-s{recipe.seed}-{content_key(inputs, 12)}.safetensors"

    return Ground({}, request.init, pairs, labels, weights)


def threads_for(workers: int) -> int:
    """Cores of each of ``workers`` processes on this machine, at least one."""
    return max(1, cores() // max(1, workers))
