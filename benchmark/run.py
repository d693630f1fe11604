"""The work of ``run``, backbones × tasks × seeds: check the inputs, submit units of work, collect
their cells.

A cell is the result of one backbone, task and seed; a unit of work is the cells of one backbone and
seed whose tasks are scored on the same images.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from benchmark.execution import Executor
from benchmark.execution.progress import console
from benchmark.options import RunOptions
from benchmark.plan import RunPlan, make_plan, print_notes
from benchmark.probing.cell import failed_cells, failure_reason, finished_cell
from benchmark.probing.data import check_fit, check_trained, declared_data, prepare_data
from benchmark.probing.parents import Parent, log_backbone
from benchmark.probing.submit import SOON, Probing
from benchmark.probing.unit import describe_backbone, forget_backbone
from benchmark.records import BackboneInfo, PlannedTask
from benchmark.results.run_result import RunResult, as_json, check_writable
from benchmark.stages.graph import Runner
from benchmark.stages.session import open_executor_and_tracker
from benchmark.suites.registry import BackboneSource
from cliptex_common.files import write_json
from cliptex_common.locks import lock_path, locked_async, mark_in_use
from probes.base import missing_capability
from probes.datasets.base import PreparedDataset
from reports.cell import Cell
from reports.mlflow.run import Tracker


def run(options: RunOptions) -> RunResult:
    """``run_async`` in an event loop of its own."""
    return asyncio.run(run_async(options))


async def run_async(options: RunOptions) -> RunResult:
    """Run the suite's tasks on each backbone and seed; finished cells are reused.

    Raises:
        UserError: the options or data cannot be used.
        TrackingError: the MLflow store cannot be used.
        KeyboardInterrupt: interrupted; finished cells stay, runs under way are KILLED, and the same
            command resumes them.
    """
    plan = make_plan(options)
    print_notes(plan.notes)
    if options.json:
        check_writable(options.json)
    if options.weights:
        mark_in_use(options.weights)
    try:
        described = check_architectures(plan)
        with open_executor_and_tracker(options.executor_spec, plan.experiment) as (
            executor,
            tracker,
        ):
            if not executor.in_this_process:
                forget_backbone()
            result = await _PlanRunner(plan, tracker, executor, described).run()
    finally:
        forget_backbone()
    if options.json:
        write_json(options.json, as_json(result))
    return result


def check_architectures(plan: RunPlan) -> dict[tuple[str, int], BackboneInfo]:
    """Check, before anything is written, the folders of the data, the layers and heads that tasks
    name, and all that the suite would train a backbone for.

    Returns:
        (name, seed) → the record of each backbone that was built for this.

    Raises:
        UserError: a folder is missing, a backbone has no such layer, or a probe does not fit it or
            its dataset.
    """
    artifacts = plan.artifacts()
    check_trained(plan.tasks, plan.options, artifacts)
    described = {}
    data = declared_data(plan.tasks, plan.options, artifacts.data)
    if any(task.encoded_layers or getattr(task.settings, "head", None) for task in plan.tasks):
        for name in plan.backbones:
            key = name, plan.seeds[0]
            if key not in artifacts.backbones:
                described[key] = describe_backbone(plan.backbone_arguments(*key))
                check_fit(plan.tasks, data, described[key])
    return described


def known_cells(
    plan: RunPlan,
    tracker: Tracker | None,
    data: Mapping[str, PreparedDataset] | None,
    backbone: BackboneInfo,
    seed: int,
) -> dict[str, Cell]:
    """Task → cell, of tasks that are finished or that the backbone cannot do."""
    cells = {}
    for task in plan.tasks:
        reason = missing_capability(task.probe, backbone, task.settings)  # type: ignore[arg-type]
        if reason:
            cells[task.name] = Cell(
                backbone=backbone.name,
                task=task.name,
                seed=seed,
                status="not applicable",
                reason=reason,
            )
        elif tracker is not None and data is not None and not plan.options.force:
            key = backbone.cell_key(task.conditions(data[task.name]), seed)
            cell = finished_cell(tracker, key, backbone.name)
            if cell is not None:
                cells[task.name] = cell
    return cells


class _PlanRunner:
    """Runs a plan: one parent run for each backbone and seed.

    Args:
        described: of ``check_architectures``.
    """

    def __init__(
        self,
        plan: RunPlan,
        tracker: Tracker,
        executor: Executor,
        described: dict[tuple[str, int], BackboneInfo],
    ) -> None:
        self.plan, self.tracker, self.executor = plan, tracker, executor
        self.described = described
        self.artifacts = plan.artifacts()
        self.stages = Runner(executor)
        # error → reason; backbones that wait for one training fail with the same error
        self.failure_reasons: dict[Exception, str] = {}

    async def run(self) -> RunResult:
        """All backbones and seeds; inputs are checked before anything is trained."""
        plan, executor = self.plan, self.executor
        await asyncio.gather(*map(self.stages.run, self.artifacts.data_stages))
        options = plan.options.with_folders(self.artifacts.data)
        self.data = prepare_data(
            plan.tasks, options, executor.num_workers, images=plan.suite.images
        )
        self.probing = Probing(
            executor,
            plan.experiment,
            plan.suite.name,
            plan.tasks,
            self.data,
            options.data_root,
            options.force,
        )
        keys = [(name, seed) for seed in plan.seeds for name in plan.backbones]
        if len(keys) > 1:
            # With several backbones or seeds, load each backbone that the suite does not train once
            # now, so that bad weights, or probes that do not fit, end the command here; a single
            # one is loaded next anyway.
            for name in plan.backbones:
                if (name, plan.options.seed) not in self.artifacts.backbones:
                    arguments = plan.backbone_arguments(name, plan.options.seed)
                    backbone = await self._describe(name, plan.options.seed, arguments)
                    check_fit(plan.tasks, self.data, backbone)
        self.expected = executor.overview.expected
        self.expected["probe"] += len(keys) * len(self.probing.units)
        # A local worker keeps one backbone in memory, so at most as many backbones as workers at a
        # time; remote executors have no such limit.
        self.semaphore = asyncio.Semaphore(len(keys) if executor.is_remote else executor.slots)
        rows = await asyncio.gather(*(self._backbone(name, seed) for name, seed in keys))
        cells = [cell for row, _ in rows for cell in row]
        run_ids = {key: run_id for key, (_, run_id) in zip(keys, rows, strict=True) if run_id}
        return RunResult(plan.suite, plan.tasks, cells, run_ids, self.tracker, plan.absent)

    async def _describe(
        self, name: str, seed: int, create_arguments: Mapping[str, Any]
    ) -> BackboneInfo:
        """The record of a backbone, which is built once for it."""
        if (name, seed) not in self.described:
            self.described[name, seed] = await self.probing.describe(create_arguments)
        return self.described[name, seed]

    async def _backbone(self, name: str, seed: int) -> tuple[list[Cell], str]:
        """The cells of one backbone and seed and the id of their parent run; if its weights cannot
        be made or loaded or its parent run cannot be written, all cells are failed and the id is
        ''."""
        problem = "could not load its weights"
        try:
            source = BackboneSource(self.plan.backbone_arguments(name, seed))
            if (name, seed) in self.artifacts.backbones:
                source = await self.stages.run(self.artifacts.backbones[name, seed])
            async with self.semaphore:
                backbone = await self._describe(name, seed, source.create_arguments)
                problem = "could not check its tasks"
                check_fit(self.plan.tasks, self.data, backbone)
                problem = "could not write its parent run"
                return await self._probe(backbone, source, seed)
        except Exception as error:
            reason = f"{problem}: {self._failure_reason(error)}"
            self.expected["probe"] -= len(self.probing.units)
            return failed_cells(name, seed, self.plan.tasks, reason), ""

    async def _probe(
        self, backbone: BackboneInfo, source: BackboneSource, seed: int
    ) -> tuple[list[Cell], str]:
        """Find finished cells, run the others under the parent run."""
        plan, tracker, executor = self.plan, self.tracker, self.executor
        units = self.probing.units
        cells = known_cells(plan, tracker, self.data, backbone, seed)
        pending = [[task for task in tasks if task.name not in cells] for tasks in units]
        pending = [tasks for tasks in pending if tasks]
        self.expected["probe"] -= len(units) - len(pending)
        if cached := [cell for cell in cells.values() if cell.status == "cached"]:
            console.print(
                f"{backbone.name} · seed {seed}: {len(cached)} of {len(plan.tasks)} tasks are"
                " finished and not run again (--force runs them)",
                style="dim",
            )
        model = log_backbone(tracker, backbone, source.run)
        parent = Parent(tracker, plan, backbone, source, seed, self.probing.conditions, model)
        with ExitStack() as stack:
            # until the run is RUNNING, another command could resume it as well
            lock = lock_path("parent", [tracker.uri, plan.experiment, parent.record.run_key])
            async with locked_async(lock):
                earlier = None if plan.options.force else parent.find_earlier()
                if not pending and earlier and parent.is_complete(earlier, cells.values()):
                    return list(cells.values()), earlier.run_id
                run = stack.enter_context(parent.open(earlier, executor.device))
            running = [self._unit(tasks, backbone, seed, run.id, model) for tasks in pending]
            for unit_cells in await asyncio.gather(*running):
                cells |= {cell.task: cell for cell in unit_cells}
            ordered = [cells[task.name] for task in plan.tasks]
            parent.log_cells(run, ordered)
        return ordered, run.id

    async def _unit(
        self,
        tasks: Sequence[PlannedTask],
        backbone: BackboneInfo,
        seed: int,
        parent: str,
        model: str,
    ) -> list[Cell]:
        """The cells of one unit; failed, all with one reason, if the unit raises."""
        try:
            is_trained_here = (backbone.name, seed) in self.artifacts.backbones
            priority = None if is_trained_here else SOON
            return await self.probing.cells(tasks, backbone, seed, parent, model, priority)
        except Exception as error:
            reason = self._failure_reason(error)
            names = " + ".join(task.name for task in tasks)
            console.print(
                f"{backbone.name} · seed {seed} · {names}: {reason}", style="red", markup=False
            )
            return failed_cells(backbone.name, seed, tasks, reason)

    def _failure_reason(self, error: Exception) -> str:
        """``failure_reason``, which prints the traceback of each error once."""
        if error not in self.failure_reasons:
            self.failure_reasons[error] = failure_reason(error)
        return self.failure_reasons[error]
