"""The work of ``run``, backbones × tasks × seeds: check the inputs, submit units of work, collect
their cells.

A cell is the result of one backbone, task and seed; a unit of work is the cells of one backbone and
seed whose tasks are scored on the same images.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

from benchmark.execution import Bar, Executor, make_executor
from benchmark.execution.base import Priority
from benchmark.execution.progress import console
from benchmark.execution.unit import drop_cached
from benchmark.planning.options import RunOptions
from benchmark.planning.plan import RunPlan, make_plan, print_notes
from benchmark.probing.cell import failure_reason, find_cells, missing_cells
from benchmark.probing.data import RunInputs
from benchmark.probing.parents import Parent, log_backbone
from benchmark.probing.records import BackboneInfo, PlannedTask
from benchmark.probing.submit import Probing, ask_for_precision
from benchmark.results.run_result import RunResult
from benchmark.stages.session import open_executor_and_tracker, open_tracker
from benchmark.suites.registry import BackboneSource
from cliptex_common.locks import lock_path, locked_async, mark_in_use
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
    if options.weights:
        mark_in_use(options.weights)
    try:
        with Bar() as bar:
            executor = make_executor(options, bar)
            inputs = RunInputs(plan, executor)
            planned = [inputs.planned_backbone(name) for name in plan.backbones]
            inapplicable = {backbone.name: inputs.check(backbone) for backbone in planned}
            if not executor.in_this_process:
                drop_cached()  # each worker loads its own
            with open_tracker(executor, plan.experiment) as tracker:
                tasks = await ask_for_precision(plan.tasks, executor)
                inputs.plan = plan = replace(plan, tasks=tasks)
                data = await inputs.data(executor.num_workers)
                rows = _Rows(plan, executor, tracker, inputs, inapplicable, data)
                result = await rows.run()
    finally:
        drop_cached()  # of units in this process
    return result


async def check_async(options: RunOptions) -> None:
    """Check the options, the data and the MLflow store of a run, and make data that the suite
    makes; nothing is probed. Raises as ``run_async``."""
    plan = make_plan(options)
    with open_executor_and_tracker(options, plan.experiment) as (executor, _):
        await RunInputs(plan, executor).data(executor.num_workers)


@dataclass
class _Rows:
    """A row is the cells of one backbone and seed, under one parent run.

    Attributes:
        inapplicable: backbone → task → why it does not apply.
        data: task → its dataset.
        reasons: error → reason; backbones that wait for one training fail with the same error.
        expected: row → its units that run; all of them until its finished cells are known.
    """

    plan: RunPlan
    executor: Executor
    tracker: Tracker
    inputs: RunInputs
    inapplicable: Mapping[str, Mapping[str, str]]
    data: Mapping[str, PreparedDataset]
    reasons: dict[Exception, str] = field(default_factory=dict)
    expected: dict[tuple[str, int], int] = field(default_factory=dict)

    async def run(self) -> RunResult:
        """All rows."""
        plan, executor, options = self.plan, self.executor, self.plan.options
        self.probing = Probing(
            executor,
            plan.experiment,
            plan.suite.name,
            plan.tasks,
            self.data,
            options.data_root,
            options.force,
        )
        for row in plan.rows:
            self._expect(row, len(self.probing.units))
        # A local worker keeps one backbone in memory, so at most as many backbones as workers at a
        # time; remote executors have no such limit.
        slots = len(plan.rows) if executor.is_remote else executor.slots
        self.at_once = asyncio.Semaphore(slots)
        rows = await asyncio.gather(*(self._row(name, seed) for name, seed in plan.rows))
        cells = [cell for row, _ in rows for cell in row]
        run_ids = {key: run_id for key, (_, run_id) in zip(plan.rows, rows, strict=True) if run_id}
        return RunResult(plan.suite, plan.tasks, cells, run_ids, self.tracker, plan.absent)

    async def _row(self, name: str, seed: int) -> tuple[list[Cell], str]:
        """The cells of one backbone and seed and the id of their parent run; if its weights cannot
        be made or loaded or its parent run cannot be written, all cells are failed and the id is
        ''."""
        try:
            source = await self.inputs.backbone(name, seed)
            async with self.at_once:
                backbone = await self.probing.describe(source.create_arguments)
                # Another command with the same row waits, then finds its cells and its parent. A
                # row waits for no other row, so these locks cannot wait for each other.
                subject = [name, seed, backbone.identity, self.probing.conditions]
                lock = lock_path("row", [self.tracker.uri, self.plan.experiment, *subject])
                async with locked_async(lock, partial(_report_wait, name, seed)):
                    return await self._probe(backbone, source, seed)
        except Exception as error:
            self._expect((name, seed), 0)
            reason = f"could not load its weights or write its parent run: {self._reason(error)}"
            reasons = {task.name: reason for task in self.plan.tasks}
            return list(missing_cells(name, seed, reasons).values()), ""

    async def _probe(
        self, backbone: BackboneInfo, source: BackboneSource, seed: int
    ) -> tuple[list[Cell], str]:
        """Find finished cells, run the others under the parent run."""
        plan, tracker, name = self.plan, self.tracker, backbone.name
        cells = {}
        if not plan.options.force:
            cells = find_cells(tracker, backbone, self.probing.conditions, seed)
        if cells:
            console.print(
                f"{name} · seed {seed}: {len(cells)} of {len(plan.tasks)} tasks are finished and"
                " not run again (--force runs them)",
                style="dim",
            )
        cells |= missing_cells(name, seed, self.inapplicable[name], "not applicable")
        pending = [
            [task for task in tasks if task.name not in cells] for tasks in self.probing.units
        ]
        pending = [tasks for tasks in pending if tasks]
        self._expect((name, seed), len(pending))
        model = log_backbone(tracker, backbone, source.run)
        parent = Parent(tracker, plan, backbone, source, seed, self.probing.conditions, model)
        with ExitStack() as stack:
            # until the run is RUNNING, another command could resume it as well
            lock = lock_path("parent", [tracker.uri, plan.experiment, parent.record.run_key])
            async with locked_async(lock):
                earlier = None if plan.options.force else parent.find_earlier()
                if not pending and earlier and parent.is_complete(earlier, cells.values()):
                    return [cells[task.name] for task in plan.tasks], earlier.run_id
                run = stack.enter_context(parent.open(earlier, self.executor.device))
            running = [self._unit(tasks, backbone, seed, run.id, model) for tasks in pending]
            for unit_cells in await asyncio.gather(*running):
                cells |= unit_cells
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
    ) -> dict[str, Cell]:
        """Task → cell, of one unit; failed, all with one reason, if the unit raises."""
        try:
            is_trained = self.inputs.is_trained(backbone.name)
            priority = Priority.DEFAULT if is_trained else Priority.FIRST_NUMBERS
            cells = await self.probing.cells(tasks, backbone, seed, parent, model, priority)
            return {cell.task: cell for cell in cells}
        except Exception as error:
            reason = self._reason(error)
            names = " + ".join(task.name for task in tasks)
            console.print(f"{backbone.name} · seed {seed} · {names}: {reason}", style="red")
            reasons = {task.name: reason for task in tasks}
            return missing_cells(backbone.name, seed, reasons)

    def _expect(self, row: tuple[str, int], units: int) -> None:
        """Set how many units of a row will run, which the progress counts."""
        self.expected[row] = units
        self.executor.overview.expected["probe"] = sum(self.expected.values())

    def _reason(self, error: Exception) -> str:
        """``failure_reason``, which prints the traceback of each error once."""
        if error not in self.reasons:
            self.reasons[error] = failure_reason(error)
        return self.reasons[error]


def _report_wait(name: str, seed: int) -> None:
    console.print(f"{name} · seed {seed}: another command runs this; waiting for it", style="dim")
