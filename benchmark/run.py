"""The work of ``run``, backbones × tasks × seeds: check the inputs, submit units of work, collect
their cells.

A cell is the result of one backbone, task and seed. A row is the cells of one backbone and seed, in
one parent run of MLflow; a unit of work is those cells of a row whose tasks are scored on the same
images.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

from benchmark.execution import Bar, make_executor
from benchmark.execution.base import Priority
from benchmark.execution.progress import console
from benchmark.execution.unit import drop_last_model
from benchmark.planning.options import RunOptions
from benchmark.planning.plan import RunPlan, make_plan
from benchmark.probing.cell import failure_reason, find_cells, missing_cells
from benchmark.probing.data import RunInputs
from benchmark.probing.parents import Parent, log_backbone
from benchmark.probing.records import BackboneInfo, PlannedTask
from benchmark.probing.submit import Probing, ask_for_precision, unit_name
from benchmark.results.run_result import RunResult
from benchmark.stages.session import open_executor_and_tracker, start_executor
from benchmark.suites.registry import BackboneSource
from cliptex_common.locks import lock_path, locked_async, mark_in_use
from reports.cell import Cell, ParentRun
from reports.mlflow.run import Tracker
from reports.selection import weights_labels, with_label


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
    for note in plan.notes:
        console.print(note, style="dim")
    if options.weights:
        mark_in_use(options.weights)
    try:
        with Bar() as bar:
            executor = make_executor(options, bar)
            inputs = RunInputs(plan, executor)
            planned = [inputs.planned_backbone(name) for name in plan.backbones]
            inapplicable = {each.name: inputs.inapplicable_tasks(each) for each in planned}
            if not executor.in_this_process:
                drop_last_model()  # each worker loads its own
            with start_executor(executor, plan.experiment) as tracker:
                tasks = await ask_for_precision(plan.tasks, executor)
                plan = replace(plan, tasks=tasks)
                probing = Probing(
                    executor,
                    plan.experiment,
                    plan.suite.name,
                    tasks,
                    await inputs.data(executor.num_workers),
                    options.data_root,
                    options.force,
                )
                return await _Rows(plan, inputs, inapplicable, probing, tracker).run()
    finally:
        drop_last_model()  # of units in this process


async def check_async(options: RunOptions) -> None:
    """Check the options, the data and the MLflow store of a run, and make data that the suite
    makes; nothing is probed. Raises as ``run_async``."""
    plan = make_plan(options)
    with open_executor_and_tracker(options, plan.experiment) as (executor, _):
        await RunInputs(plan, executor).data(executor.num_workers)


@dataclass
class _Rows:
    """The rows of a run, at once.

    Attributes:
        inapplicable: backbone → task → why it does not apply.
        reasons: error → its line in failed cells. All backbones that wait for a training fail with
            its error, which is printed once.
        parents: row → its parent run.
        expected: row → number of units that will run, which is that of all its units until its
            finished cells are known.
    """

    plan: RunPlan
    inputs: RunInputs
    inapplicable: Mapping[str, Mapping[str, str]]
    probing: Probing
    tracker: Tracker
    reasons: dict[Exception, str] = field(default_factory=dict)
    parents: dict[tuple[str, int], ParentRun] = field(default_factory=dict)
    expected: dict[tuple[str, int], int] = field(default_factory=dict)

    async def run(self) -> RunResult:
        """Their cells and parent runs."""
        plan, executor = self.plan, self.probing.executor
        for row in plan.rows:
            self._expect(row, len(self.probing.units))
        # A local worker keeps one backbone in memory, so at most as many backbones as workers at a
        # time; remote executors have no such limit.
        slots = len(plan.rows) if executor.is_remote else executor.slots
        self.at_once = asyncio.Semaphore(slots)
        results = await asyncio.gather(*(self._run_row(name, seed) for name, seed in plan.rows))
        cells = [cell for row_cells, _ in results for cell in row_cells]
        labels = weights_labels([*cells, *self.parents.values()])
        run_ids = {
            (with_label(self.parents[row], labels).backbone, row[1]): run_id
            for row, (_, run_id) in zip(plan.rows, results, strict=True)
            if run_id
        }
        cells = [with_label(cell, labels) for cell in cells]
        return RunResult(plan.suite, plan.tasks, cells, run_ids, self.tracker, plan.absent)

    async def _run_row(self, name: str, seed: int) -> tuple[list[Cell], str]:
        """The cells of a row and the id of their parent run. If the weights cannot be made or
        loaded, or the parent run cannot be written, all cells are failed and the id is ''."""
        try:
            source = await self.inputs.backbone(name, seed)
            async with self.at_once:
                backbone = await self.probing.describe(source.create_arguments)
                # Another command with the same row waits, then finds its cells and its parent. A
                # row waits for no other row, so these locks cannot wait for each other.
                subject = [name, seed, backbone.identity, self.probing.conditions]
                lock = lock_path("row", [self.tracker.uri, self.plan.experiment, *subject])
                async with locked_async(lock, partial(_report_wait, name, seed)):
                    return await self._probe_row(backbone, source, seed)
        except Exception as error:
            self._expect((name, seed), 0)
            reason = f"could not load its weights or write its parent run: {self._reason(error)}"
            reasons = {task.name: reason for task in self.plan.tasks}
            return list(missing_cells(name, seed, reasons).values()), ""

    async def _probe_row(
        self, backbone: BackboneInfo, source: BackboneSource, seed: int
    ) -> tuple[list[Cell], str]:
        """Find the finished cells, and run the units of the others under the parent run."""
        plan, tracker, name = self.plan, self.tracker, backbone.name
        cells = {}
        if not plan.options.force:
            cells = find_cells(tracker, backbone, plan.tasks, self.probing.conditions, seed)
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
        model_id = log_backbone(tracker, backbone, source.run)
        parent = Parent(tracker, plan, backbone, source, seed, self.probing.conditions, model_id)
        self.parents[name, seed] = parent.record
        with ExitStack() as stack:
            # until the run is RUNNING, another command could resume it as well
            lock = lock_path("parent", [tracker.uri, plan.experiment, parent.record.run_key])
            async with locked_async(lock):
                earlier = None if plan.options.force else parent.find_earlier()
                if not pending and earlier and parent.is_complete(earlier, cells.values()):
                    return [cells[task.name] for task in plan.tasks], earlier.run_id
                run = stack.enter_context(parent.open(earlier, self.probing.executor.device))
            units = [self._run_unit(tasks, backbone, seed, run.id, model_id) for tasks in pending]
            for unit_cells in await asyncio.gather(*units):
                cells |= unit_cells
            ordered = [cells[task.name] for task in plan.tasks]
            parent.log_cells(run, ordered)
        return ordered, run.id

    async def _run_unit(
        self,
        tasks: Sequence[PlannedTask],
        backbone: BackboneInfo,
        seed: int,
        parent_id: str,
        model_id: str,
    ) -> dict[str, Cell]:
        """Task → cell, of one unit. If the unit raises, all are failed with that reason."""
        name = backbone.name
        try:
            is_trained = self.inputs.is_trained(name)
            priority = Priority.DEFAULT if is_trained else Priority.FIRST_NUMBERS
            cells = await self.probing.cells(tasks, backbone, seed, parent_id, model_id, priority)
            return {cell.task: cell for cell in cells}
        except Exception as error:
            reason = self._reason(error)
            console.print(f"{unit_name(name, seed, tasks)}: {reason}", style="red")
            return missing_cells(name, seed, {task.name: reason for task in tasks})

    def _expect(self, row: tuple[str, int], units: int) -> None:
        """Set how many units of a row will run, which the progress counts."""
        self.expected[row] = units
        self.probing.executor.overview.expected["probe"] = sum(self.expected.values())

    def _reason(self, error: Exception) -> str:
        """``failure_reason``, which prints the traceback of each error once."""
        if error not in self.reasons:
            self.reasons[error] = failure_reason(error)
        return self.reasons[error]


def _report_wait(name: str, seed: int) -> None:
    console.print(f"{name} · seed {seed}: another command runs this; waiting for it", style="dim")
