"""The main job: backbones × tasks × seeds. Plan, check the inputs, submit, collect, say."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import backbones
import benchmark.catalog  # noqa: F401 – registers every dataset, probe and suite
from backbones import Backbone, UserError
from benchmark.cell import Cell, finished_cell, log_backbone
from benchmark.data import DataChoice
from benchmark.execution import Executor, ExecutorSpec, WorkerLost
from benchmark.execution.progress import console
from benchmark.parents import Parent
from benchmark.plan import PlannedTask, plan_tasks, split_names
from benchmark.probing import Probing
from benchmark.results.average import Average, folders, split_by_place
from benchmark.results.outcome import RunResult, as_json, must_be_writable
from benchmark.stages.stage import driving
from benchmark.suites.registry import (
    SUITES,
    MadeBackbone,
    Stages,
    Suite,
    SuiteArtifacts,
    find_suite,
    settings_in,
)
from common.errors import NonFiniteLoss, error_summary, user_error_message
from common.files import MAX_SEED, write_json
from common.locks import lock_path, locked_async, mark_in_use
from common.settings import parse_pairs
from probes.base import missing_capability
from probes.datasets.specs.webdataset import register_folders
from probes.features.budget import size_limit
from probes.features.store import root
from probes.registry import find_task
from reports.mlflow.run import Tracker
from reports.parts.average import TITLE_TAG


@dataclass(frozen=True)
class RunOptions:
    """What the user asked for; see ``python -m benchmark run --help``."""

    backbones: Sequence[str] = ()
    suite: str | None = None
    tasks: Sequence[str] = ()
    weights: Path | None = None
    seed: int = 0
    seeds: int = 1
    overrides: Sequence[str] = ()
    data_root: Path | None = None
    data: Mapping[str, Path] = field(default_factory=dict)
    partial: bool = False
    limit: int | None = None
    force: bool = False
    only: bool = False
    executor: ExecutorSpec = field(default_factory=ExecutorSpec)
    json: Path | None = None
    experiment: str | None = None

    def choice(self, made: Mapping[str, Path] | None = None) -> DataChoice:
        """Which data count; of those that a suite ``made`` all that the user does not place."""
        return DataChoice({**(made or {}), **self.data}, self.data_root, self.partial, self.limit)


@dataclass(frozen=True)
class RunPlan:
    """What a run will do, decided and checked from the user's words alone."""

    options: RunOptions
    suite: Suite
    names: Sequence[str]
    seeds: Sequence[int]
    overrides: Mapping[str, str]
    tasks: Sequence[PlannedTask]
    absent: Sequence[PlannedTask] = ()  # of the suite, left out since their data have no folder
    notes: Sequence[str] = ()  # what is said first

    @property
    def experiment(self) -> str:
        return self.options.experiment or self.suite.name

    def config(self, name: str, seed: int) -> dict[str, Any]:
        """Keyword arguments of ``backbones.create`` for a backbone that the suite does not make."""
        weights = str(self.options.weights) if self.options.weights is not None else None
        return {"name": name, "weights": weights, "seed": seed}

    def record(self) -> dict[str, Any]:
        """What was asked for as ``--config`` takes it back: all names resolved, all paths in full,
        without what only says how it is computed here."""
        o, places = (
            self.options,
            {"weights": self.options.weights, "data-root": self.options.data_root},
        )
        asked = {
            "suite": self.suite.name,
            "task": split_names(o.tasks),
            "set": dict(self.overrides),
            "partial": o.partial,
            "limit": o.limit,
            "data": {name: str(path.absolute()) for name, path in o.data.items()},
            **{key: str(path.absolute()) for key, path in places.items() if path},
            "experiment": self.experiment,
        }
        who = {
            "backbone": list(self.names),
            "only": True,
            "seed": self.seeds[0],
            "seeds": len(self.seeds),
        }
        return {**who, **{key: value for key, value in asked.items() if value}}

    @property
    def made_names(self) -> Sequence[str]:
        """The backbones whose weights the suite may make: none beside the user's own weights."""
        return self.names if self.options.weights is None else ()


def make_plan(options: RunOptions) -> RunPlan:
    """Raises ``UserError`` for everything that is wrong in the user's words."""
    size_limit(root())  # a wrong $CLIPTEX_CACHE_GB
    register_folders(options.data_root)
    if options.seed + options.seeds - 1 > MAX_SEED:
        told = f"--seed {options.seed} with --seeds {options.seeds}"
        raise UserError(f"{told}: the last seed must be at most {MAX_SEED}; begin at a smaller one")
    suite = _suite(options.suite, split_names(options.tasks))
    names, notes = _chosen(suite, options)
    if options.weights is not None and len(names) != 1:
        raise UserError(
            f"--weights belongs to one backbone, but {len(names)} are named; run them one by one"
        )
    for name in names:
        backbones.find(name.removeprefix("random/"))
    overrides = parse_pairs(options.overrides)
    tasks = plan_tasks(suite, split_names(options.tasks), overrides)
    absent: Sequence[PlannedTask] = ()
    if suite.what_is_there and not options.tasks:
        tasks, absent = split_by_place(suite, tasks, options.data_root, options.data)
        if absent:
            notes.append(
                f"{len(absent)} of {len(suite.tasks)} tasks of {suite.name} have no data there:"
                f" {folders(absent)}"
            )
    if options.limit:
        notes.append(
            f"scored on {options.limit} test images of each dataset: to be compared with such runs"
            " alone"
        )
    if suite.takes:
        notes.append(f"suite {suite.name}: {suite.takes}")
    seeds = range(options.seed, options.seed + options.seeds)
    return RunPlan(options, suite, names, seeds, overrides, tasks, absent, notes)


def _suite(name: str | None, tasks: Sequence[str]) -> Suite:
    """The suite of this name; without one the first that lists all these tasks, ``mini`` before
    others, or else that takes them."""
    if name is not None:
        return find_suite(name)
    for task in tasks:
        find_task(task)  # says the nearest when it exists nowhere
    suites = SUITES.load_entry_points().values()
    taken = {
        task: [suite for suite in suites if settings_in(suite, task) is not None] for task in tasks
    }
    found = [suite for suite in suites if all(suite in taken[task] for task in tasks)]
    if not found:
        told = "; ".join(
            f"{task}: {', '.join(s.name for s in found) or 'none'}" for task, found in taken.items()
        )
        raise UserError(
            f"no suite has all of these tasks ({told}); run those of one suite at a time"
        )
    return max(found, key=lambda suite: set(tasks) <= set(suite.tasks))  # the first of equals


def _chosen(suite: Suite, options: RunOptions) -> tuple[list[str], list[str]]:
    """Names of the backbones to run, and what is to be said of them: a single one brings the
    baselines that its suite has for it (not with ``--only`` or ``--weights``), and may be the name
    of a group."""
    names = split_names(options.backbones) or list(suite.default_backbones)
    if len(names) != 1 or names[0] not in suite.groups:
        return names, []
    (name,), members = names, list(suite.groups[names[0]])
    if name not in members:
        return members, [f"{name} stands for {', '.join(members)}"]
    if options.only or options.weights is not None or members == names:
        return names, []
    others = ", ".join(member for member in members if member != name)
    return members, [f"{name} runs beside its baselines {others} (--only: without them)"]


def run(options: RunOptions) -> RunResult:
    """Run the suite's tasks on each backbone and seed; finished cells are not run again.

    Raises:
        UserError: the request cannot be fulfilled; nothing was half-written.
        TrackingError: the MLflow store cannot be used.
        KeyboardInterrupt: interrupted; finished cells stay, the runs under way are KILLED, the same
            command goes on.
    """
    plan = make_plan(options)
    for note in plan.notes:
        console.print(note, style="dim", markup=False)
    if options.json:
        must_be_writable(options.json)
    if options.weights:
        mark_in_use(options.weights)
    with driving(options.executor, plan.experiment) as (executor, tracker):
        result = asyncio.run(_Evaluation(plan, tracker, executor).run())
    if options.json:
        write_json(options.json, as_json(result))
    return result


class _Evaluation:
    """A run under way: submits units as soon as their weights exist, and collects their cells."""

    def __init__(self, plan: RunPlan, tracker: Tracker, executor: Executor) -> None:
        self.plan, self.tracker, self.options = plan, tracker, plan.options
        self.stages = Stages(plan.suite.name, plan.experiment, executor)
        self.told: list[
            BaseException
        ] = []  # bugs that were shown: several backbones may wait for one training

    async def run(self) -> RunResult:
        """All backbones and seeds; inputs are checked before anything is trained."""
        plan, options = self.plan, self.options
        make = plan.suite.artifacts
        artifacts = (
            await make(self.stages, plan.made_names, plan.seeds) if make else SuiteArtifacts()
        )
        choice = options.choice(artifacts.data)
        self.probing = Probing(self.stages, plan.tasks, plan.overrides, choice, force=options.force)
        self.data = self.probing.data
        for name in (
            plan.names
        ):  # weights that cannot be had are said now, not when the first backbone's hours are over
            if (name, options.seed) not in artifacts.makes and len(plan.names) * len(
                plan.seeds
            ) > 1:
                backbones.create(**plan.config(name, options.seed))
        keys = [(name, seed) for seed in plan.seeds for name in plan.names]
        self._expect(len(keys) * len(self.probing.groups(plan.tasks)))
        rows = await asyncio.gather(*(self._backbone(name, seed, artifacts) for name, seed in keys))
        ids = {key: run_id for key, (_, run_id) in zip(keys, rows, strict=True) if run_id}
        cells = [cell for cells, _ in rows for cell in cells]
        return RunResult(plan.suite.name, plan.tasks, cells, ids, self.tracker, self._average())

    def _expect(self, units: int) -> None:
        self.stages.executor.overview.expect("probe", units)

    def _average(self) -> Average | None:
        return Average.of(self.plan.suite, self.plan.tasks, self.data, self.plan.absent)

    async def _backbone(
        self, name: str, seed: int, artifacts: SuiteArtifacts
    ) -> tuple[list[Cell], str]:
        """The cells of one backbone and seed, and the id of their parent run. Without its weights,
        all are missing."""
        what = "its weights"
        try:
            make = artifacts.makes.get((name, seed))
            made = await make() if make else MadeBackbone(self.plan.config(name, seed))
            what = "its run"
            return await self._probe(seed, made)
        except Exception as error:
            reason = f"{what}: {self._reason(error)}"
            return [
                Cell(name, task.name, seed, "failed", reason=reason) for task in self.plan.tasks
            ], ""

    async def _probe(self, seed: int, made: MadeBackbone) -> tuple[list[Cell], str]:
        plan = self.plan
        backbone = backbones.create(**made.config)
        parent = Parent.of(
            backbone,
            plan.suite.name,
            seed,
            overrides=plan.overrides,
            made=made,
            tasks=plan.tasks,
            data=self.data,
            model=log_backbone(self.tracker, backbone, made.run),
            asked=plan.record(),
        )
        told = f"another process runs {backbone.name} · seed {seed}: waiting for it"
        lock = lock_path(
            "parent",
            [self.tracker.uri, plan.experiment, parent.key, [task.name for task in plan.tasks]],
        )
        async with locked_async(
            lock, lambda: console.print(told, style="dim")
        ):  # its cells are found then
            cells = self._known(backbone, seed)
            del backbone  # gigabytes, perhaps, while others are loaded
            return await self._run(parent, cells, made)

    async def _run(
        self, parent: Parent, cells: dict[str, Cell], made: MadeBackbone
    ) -> tuple[list[Cell], str]:
        plan, tracker, name, seed = self.plan, self.tracker, parent.name, parent.seed
        left = [task for task in plan.tasks if task.name not in cells]
        earlier = None if self.options.force else parent.earlier(tracker)
        if cached := [cell for cell in cells.values() if cell.status == "cached"]:
            told = (
                f"{len(cached)} of {len(plan.tasks)} tasks were finished before and are not run"
                " again (--force does)"
            )
            console.print(f"{name} · seed {seed}: {told}", style="dim")
        if not left and earlier is not None and earlier.info.status == "FINISHED":
            self._expect(-len(self.probing.groups(plan.tasks)))
            return [cells[task.name] for task in plan.tasks], earlier.info.run_id
        with parent.open(tracker, earlier, self.stages.executor.device) as run:
            parent.begin(run, earlier)
            groups = self.probing.groups(left)
            self._expect(len(groups) - len(self.probing.groups(plan.tasks)))
            units = [self._unit(group, name, made, seed, run.id) for group in groups]
            for found in await asyncio.gather(*units):
                cells |= {cell.task: cell for cell in found}
            ordered = [cells[task.name] for task in plan.tasks]
            parent.end(run, ordered, earlier)
            if (average := self._average()) and (value := average.whole(ordered)) is not None:
                run.log_metrics({"average": value})
                run.set_tags({TITLE_TAG: average.title})
        return ordered, run.id

    def _known(self, backbone: Backbone, seed: int) -> dict[str, Cell]:
        """Task → its cell, for those that are finished or that the backbone cannot do."""
        cells = {}
        for task in self.plan.tasks:
            if reason := missing_capability(task.probe, backbone):
                cells[task.name] = Cell(
                    backbone.name, task.name, seed, "not applicable", reason=reason
                )
            elif not self.options.force and (
                old := finished_cell(self.tracker, backbone, task, self.data[task.name], seed)
            ):
                cells[task.name] = old
        return cells

    async def _unit(
        self, group: Sequence[PlannedTask], name: str, made: MadeBackbone, seed: int, parent: str
    ) -> list[Cell]:
        """One unit; one that is lost is a missing value with its reason."""
        try:
            return await self.probing.cells(group, made.config, seed, parent)
        except Exception as error:
            reason, tasks = self._reason(error), [task.name for task in group]
            console.print(
                f"{name} · seed {seed} · {' + '.join(tasks)}: {reason}", style="red", markup=False
            )
            return [Cell(name, task, seed, "failed", reason=reason) for task in tasks]

    def _reason(self, error: Exception) -> str:
        """Why a unit has no result; raises what the user must mend, which ends the run. A bug is
        shown whole, once."""
        if user_error_message(error) is not None:
            raise error
        if not isinstance(error, NonFiniteLoss | WorkerLost) and error not in self.told:
            self.told.append(error)
            console.print("".join(traceback.format_exception(error)), markup=False)
        return error_summary(error)
