"""The work of ``run``, backbones × tasks × seeds: check the inputs, submit units of work, collect
their cells."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from benchmark.cell import finished_cell, log_backbone
from benchmark.data import prepare_data
from benchmark.execution import Executor, WorkerLost
from benchmark.execution.progress import console
from benchmark.options import RunOptions
from benchmark.parents import Parent
from benchmark.plan import RunPlan, make_plan
from benchmark.probing import Probing
from benchmark.records import BackboneInfo, Cell, PlannedTask
from benchmark.results.average import Average
from benchmark.results.outcome import RunResult, as_json, check_writable
from benchmark.stages.stage import open_executor_and_tracker
from benchmark.suites.registry import BackboneSource, Stages, SuiteArtifacts
from benchmark.unit import forget_backbone
from common.errors import NonFiniteLoss, error_summary, user_error_message
from common.files import write_json
from common.locks import lock_path, locked_async, mark_in_use
from probes.base import missing_capability
from reports.mlflow.run import Tracker
from reports.parts.average import TITLE_TAG

TrainWeights = Callable[[], Awaitable[BackboneSource]]


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
        console.print(note, style="dim", markup=False)
    if options.json:
        check_writable(options.json)
    if options.weights:
        mark_in_use(options.weights)
    try:
        with open_executor_and_tracker(options.executor, plan.experiment) as (executor, tracker):
            result = await _Driver(plan, tracker, executor).run()
    finally:
        forget_backbone()
    if options.json:
        write_json(options.json, as_json(result))
    return result


@dataclass
class _Row:
    """The cells of one backbone and seed while they are computed.

    Attributes:
        cells: task → its cell.
        expected: number of units that are announced but have not run.
        run_id: of the parent run; '' if there is none.
    """

    cells: dict[str, Cell] = field(default_factory=dict)
    expected: int = 0
    run_id: str = ""


class _Driver:
    """Runs a plan: one parent run for each backbone and seed."""

    def __init__(self, plan: RunPlan, tracker: Tracker, executor: Executor) -> None:
        self.plan, self.tracker, self.executor = plan, tracker, executor
        self.shown_errors: list[BaseException] = []  # several backbones may wait for one training

    async def run(self) -> RunResult:
        """All backbones and seeds; inputs are checked before anything is trained."""
        plan, executor = self.plan, self.executor
        artifacts = SuiteArtifacts()
        if plan.suite.artifacts:
            stages = Stages(plan.suite.name, plan.experiment, executor)
            artifacts = await plan.suite.artifacts(stages, plan.trainable_names, plan.seeds)
        options = plan.options.with_folders(artifacts.data)
        self.data = prepare_data(plan.tasks, options, executor.num_workers)
        self.probing = Probing(
            executor,
            plan.experiment,
            plan.suite.name,
            plan.tasks,
            self.data,
            options.data_root,
            options.force,
        )
        self.average = Average.of(plan.suite, plan.tasks, self.data, plan.absent)
        keys = [(name, seed) for seed in plan.seeds for name in plan.names]
        if len(keys) > 1:
            await self._check_weights([key for key in keys if key not in artifacts.makes])
        self._expect_units(len(keys) * len(self.probing.groups(plan.tasks)))
        # more backbones than workers at once would evict each other from the workers' memory
        self.semaphore = asyncio.Semaphore(len(keys) if executor.is_remote else executor.slots)
        rows = await asyncio.gather(
            *(self._backbone(name, seed, artifacts.makes.get((name, seed))) for name, seed in keys)
        )
        cells = [cell for row, _ in rows for cell in row]
        run_ids = {key: run_id for key, (_, run_id) in zip(keys, rows, strict=True) if run_id}
        return RunResult(plan.suite.name, plan.tasks, cells, run_ids, self.tracker, self.average)

    async def _check_weights(self, keys: Sequence[tuple[str, int]]) -> None:
        """Load the weights that the suite does not train: they may not be available, and the first
        backbone may take hours."""
        for name, seed in keys:
            if seed == self.plan.seeds[0]:
                await self.probing.describe(self.plan.config(name, seed))

    def _expect_units(self, count: int) -> None:
        self.executor.overview.expect("probe", count)

    async def _backbone(
        self, name: str, seed: int, train: TrainWeights | None
    ) -> tuple[list[Cell], str]:
        """The cells of one backbone and seed and the id of their parent run.

        Without its weights, all cells are failed and there is no parent run. If the parent run
        breaks, the cells that needed it are failed.
        """
        tasks = self.plan.tasks
        row = _Row(expected=len(self.probing.groups(tasks)))
        stage = "its weights"
        try:
            source = await train() if train else BackboneSource(self.plan.config(name, seed))
            async with self.semaphore:
                backbone = await self.probing.describe(source.config)
                stage = "its run"
                await self._probe(backbone, source, seed, row)
        except Exception as error:
            reason = f"{stage}: {self._show_error(error)}"
            self._expect_units(-row.expected)
            # a run that lacks numbers must not look complete, even if all cells were cached
            broken = [task for task in tasks if task.name not in row.cells] or tasks
            row.cells |= {cell.task: cell for cell in self._failed(name, seed, broken, reason)}
        return [row.cells[task.name] for task in tasks], row.run_id

    async def _probe(
        self, backbone: BackboneInfo, source: BackboneSource, seed: int, row: _Row
    ) -> None:
        """Find finished cells, run the others under the parent run; fills ``row``."""
        plan, tracker = self.plan, self.tracker
        model = log_backbone(tracker, backbone, source.run)
        parent = Parent(tracker, plan, backbone, source, seed, self.probing.protocols, model)
        title = f"{backbone.name} · seed {seed}"
        message = f"another process runs {title}: waiting for it"
        names = [task.name for task in plan.tasks]
        identity = [tracker.uri, plan.experiment, parent.key]
        # commands with other tasks run at the same time, each under a parent run of its own
        same_command = lock_path("parent", [*identity, names])
        async with locked_async(same_command, lambda: console.print(message, style="dim")):
            row.cells = self._known_cells(backbone, seed)
            pending = [task for task in plan.tasks if task.name not in row.cells]
            groups = self.probing.groups(pending)
            self._expect_units(len(groups) - row.expected)
            row.expected = len(groups)
            if cached := [cell for cell in row.cells.values() if cell.status == "cached"]:
                console.print(
                    f"{title}: {len(cached)} of {len(names)} tasks are finished and not run again"
                    " (--force runs them)",
                    style="dim",
                )
            with ExitStack() as stack:
                # until the run is RUNNING, a command with other tasks could resume it as well
                async with locked_async(lock_path("resume", identity)):
                    earlier = None if plan.options.force else parent.find_earlier()
                    if (
                        not pending
                        and earlier is not None
                        and parent.is_complete(earlier, row.cells.values())
                    ):
                        row.run_id = earlier.info.run_id
                        return
                    opened = parent.open(earlier, self.data, self.executor.device)
                    run = stack.enter_context(opened)
                row.run_id = run.id
                units = [
                    self._unit(group, backbone, source, seed, run.id, model) for group in groups
                ]
                cells = [cell for unit in await asyncio.gather(*units) for cell in unit]
                row.expected = 0
                by_task = {**row.cells, **{cell.task: cell for cell in cells}}
                ordered = [by_task[name] for name in names]
                parent.log_cells(run, ordered, earlier)
                mean = self.average.mean(ordered) if self.average else None
                if self.average and mean is not None:
                    run.log_metrics({"average": mean})
                    run.set_tags({TITLE_TAG: self.average.title})
            row.cells = by_task

    def _known_cells(self, backbone: BackboneInfo, seed: int) -> dict[str, Cell]:
        """Task → cell, of tasks that are finished or that the backbone cannot do."""
        cells = {}
        for task in self.plan.tasks:
            if reason := missing_capability(task.probe, backbone):  # type: ignore[arg-type]
                cells[task.name] = Cell(
                    backbone.name, task.name, seed, "not applicable", reason=reason
                )
            elif not self.plan.options.force:
                key = self.probing.cell_key(backbone, task, seed)
                cell = finished_cell(self.tracker, backbone.name, task.name, seed, key)
                if cell is not None:
                    cells[task.name] = cell
        return cells

    async def _unit(
        self,
        group: Sequence[PlannedTask],
        backbone: BackboneInfo,
        source: BackboneSource,
        seed: int,
        parent: str,
        model: str,
    ) -> list[Cell]:
        """The cells of one unit; they are failed if the unit is lost."""
        try:
            return await self.probing.cells(group, backbone, source.config, seed, parent, model)
        except Exception as error:
            reason = self._show_error(error)
            names = " + ".join(task.name for task in group)
            console.print(
                f"{backbone.name} · seed {seed} · {names}: {reason}", style="red", markup=False
            )
            return self._failed(backbone.name, seed, group, reason)

    def _failed(
        self, backbone: str, seed: int, tasks: Sequence[PlannedTask], reason: str
    ) -> list[Cell]:
        return [Cell(backbone, task.name, seed, "failed", reason=reason) for task in tasks]

    def _show_error(self, error: Exception) -> str:
        """Why there is no result; prints the traceback of a bug, once. Raises what the user can
        correct, which ends the command."""
        if user_error_message(error) is not None:
            raise error
        is_expected = isinstance(error, NonFiniteLoss | WorkerLost)
        if not is_expected and error not in self.shown_errors:
            self.shown_errors.append(error)
            console.print("".join(traceback.format_exception(error)), markup=False)
        return error_summary(error)
