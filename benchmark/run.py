"""A run: backbones × tasks × seeds. Check the inputs, submit units of work, collect their cells."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Sequence

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
from benchmark.suites.registry import MadeBackbone, Stages, SuiteArtifacts
from benchmark.unit import forget_backbone
from common.errors import NonFiniteLoss, error_summary, user_error_message
from common.files import write_json
from common.locks import lock_path, locked_async, mark_in_use
from probes.base import missing_capability
from reports.mlflow.run import Tracker
from reports.parts.average import TITLE_TAG

TrainWeights = Callable[[], Awaitable[MadeBackbone]]


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
            result = await _Run(plan, tracker, executor).run()
    finally:
        forget_backbone()
    if options.json:
        write_json(options.json, as_json(result))
    return result


class _Run:
    """A run under way."""

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
            executor, plan.experiment, plan.tasks, self.data, options.data_root, options.force
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
        """The cells of one backbone and seed and the id of their parent run. Without its weights,
        all cells are failed and there is no parent run."""
        stage = "its weights"
        try:
            trained = await train() if train else MadeBackbone(self.plan.config(name, seed))
            async with self.semaphore:
                backbone = await self.probing.describe(trained.config)
                stage = "its run"
                return await self._probe(backbone, trained, seed)
        except Exception as error:
            reason = f"{stage}: {self._reason(error)}"
            return self._failed(name, seed, self.plan.tasks, reason), ""

    async def _probe(
        self, backbone: BackboneInfo, trained: MadeBackbone, seed: int
    ) -> tuple[list[Cell], str]:
        """Find finished cells, run the others under the parent run."""
        plan, tracker = self.plan, self.tracker
        model = log_backbone(tracker, backbone, trained.run)
        parent = Parent(tracker, plan, backbone, trained, seed, self.probing.protocols, model)
        title = f"{backbone.name} · seed {seed}"
        message = f"another process runs {title}: waiting for it"
        names = [task.name for task in plan.tasks]
        lock = lock_path("parent", [tracker.uri, plan.experiment, parent.key, names])
        async with locked_async(lock, lambda: console.print(message, style="dim")):
            cells = self._known_cells(backbone, seed)
            pending = [task for task in plan.tasks if task.name not in cells]
            groups = self.probing.groups(pending)
            self._expect_units(len(groups) - len(self.probing.groups(plan.tasks)))
            if cached := [cell for cell in cells.values() if cell.status == "cached"]:
                console.print(
                    f"{title}: {len(cached)} of {len(names)} tasks are finished and not run again"
                    " (--force runs them)",
                    style="dim",
                )
            earlier = None if plan.options.force else parent.find_earlier()
            if not pending and earlier is not None and earlier.info.status == "FINISHED":
                return [cells[name] for name in names], earlier.info.run_id
            with parent.open(earlier, self.data, self.executor.device) as run:
                units = [
                    self._unit(group, backbone, trained, seed, run.id, model) for group in groups
                ]
                for unit_cells in await asyncio.gather(*units):
                    cells |= {cell.task: cell for cell in unit_cells}
                ordered = [cells[name] for name in names]
                parent.log_cells(run, ordered, earlier)
                mean = self.average.mean(ordered) if self.average else None
                if self.average and mean is not None:
                    run.log_metrics({"average": mean})
                    run.set_tags({TITLE_TAG: self.average.title})
            return ordered, run.id

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
        trained: MadeBackbone,
        seed: int,
        parent: str,
        model: str,
    ) -> list[Cell]:
        """The cells of one unit; they are failed if the unit is lost."""
        try:
            return await self.probing.cells(group, backbone, trained.config, seed, parent, model)
        except Exception as error:
            reason = self._reason(error)
            names = " + ".join(task.name for task in group)
            console.print(
                f"{backbone.name} · seed {seed} · {names}: {reason}", style="red", markup=False
            )
            return self._failed(backbone.name, seed, group, reason)

    def _failed(
        self, backbone: str, seed: int, tasks: Sequence[PlannedTask], reason: str
    ) -> list[Cell]:
        return [Cell(backbone, task.name, seed, "failed", reason=reason) for task in tasks]

    def _reason(self, error: Exception) -> str:
        """Why there is no result. An error that the user can correct is raised and ends the run;
        the traceback of a bug is printed once."""
        if user_error_message(error) is not None:
            raise error
        is_expected = isinstance(error, NonFiniteLoss | WorkerLost)
        if not is_expected and error not in self.shown_errors:
            self.shown_errors.append(error)
            console.print("".join(traceback.format_exception(error)), markup=False)
        return error_summary(error)
