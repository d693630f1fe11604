"""The parent run in MLflow of one backbone, suite and seed: started or resumed, and its content.

Probing through an executor, as runs and sweeps do it.

The work of ``run``, backbones × tasks × seeds: check the inputs, submit units of work, collect
their cells.

A cell is the result of one backbone, task and seed. A row is the cells of one backbone and seed, in
one parent run of MLflow; a unit of work is those cells of a row whose tasks are scored on the same
images.

``run --dry-run`` and ``run --dump-config``: what a run would do. Nothing is created."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import yaml

import backbones
from backbones.cliptex.recipes import subsets
from benchmark.cell import (
    describe_backbone,
    failure_reason,
    find_cells,
    missing_cells,
    preferred_precision,
    probe_unit,
)
from benchmark.executor import Executor, Priority, make_executor
from benchmark.executor_options import choose_device
from benchmark.options import RunOptions
from benchmark.plan import RunInputs, RunPlan, make_plan, split_into_units
from benchmark.progress import Bar, console
from benchmark.result import RunResult, suite_average
from benchmark.stages import open_executor_and_tracker, start_executor
from benchmark.suites import BackboneSource, NotMade
from benchmark.tasks import BackboneInfo, PlannedTask, ProbeRequest, without_specs
from benchmark.unit import drop_last_model
from cliptex_common import registry
from cliptex_common.errors import UserError
from cliptex_common.files import content_key, lock_path, locked_async, mark_in_use
from cliptex_common.progress import Silent
from probes.datasets.base import PreparedDataset
from probes.datasets.check import NotChecked
from reports import records
from reports.environment import environment
from reports.records import TAGS, Cell, ParentRun, cost_metrics, metric_key, task_tag
from reports.selection import weights_labels, with_label
from reports.store import save_view
from reports.tracking import Run, Tracker, logged_model


def log_backbone(tracker: Tracker, backbone: BackboneInfo, train_run: str = "") -> str:
    """The id of the backbone's LoggedModel, which is created if the experiment has none of these
    weights. ``train_run`` is the id of the run that trained them."""
    weights = backbone.weights
    tags = {
        "backbone": backbone.name,
        TAGS["weights_source"]: weights.source,
        TAGS["licence"]: weights.licence,
    }
    return logged_model(tracker, backbone.name, weights.sha256, backbone.params, tags, train_run)


@dataclass(frozen=True)
class Parent:
    """The parent run of a backbone and seed.

    Attributes:
        source: how the backbone is built and what its weights cost.
        conditions: task → its ``PlannedTask.conditions``.
        model_id: of the backbone's LoggedModel.
    """

    tracker: Tracker
    plan: RunPlan
    backbone: BackboneInfo
    source: BackboneSource
    seed: int
    conditions: Mapping[str, Mapping[str, Any]]
    model_id: str

    @cached_property
    def record(self) -> ParentRun:
        """The run's record. A run with the same key is resumed; one with ``--limit`` is never the
        same as one on all images."""
        plan, backbone = self.plan, self.backbone
        suite, limit = plan.suite.name, plan.options.limit
        identity = {
            "suite": suite,
            "seed": self.seed,
            "backbone": backbone.identity,
            "name": backbone.name,
            "set": plan.overrides,
            "limit": limit,
        }
        name = f"{backbone.name} · {suite} · seed {self.seed}"
        return ParentRun(
            name=f"{name} · only {limit} images" if limit else name,
            backbone=backbone.name,
            architecture=backbone.architecture,
            suite=suite,
            seed=self.seed,
            weights=backbone.weights.sha256,
            weights_source=backbone.weights.source,
            licence=backbone.weights.licence,
            run_key=content_key(identity),
            model=self.model_id,
            train_run=self.source.run,
            experts=subsets().get(backbone.name, ()),
            main_metrics=tuple(f"{task.name}/{task.main_metric}" for task in plan.tasks),
            protocols={task_tag(task): content_key(c) for task, c in self.conditions.items()},
            costs=dict(self.source.cost),
        )

    def find_earlier(self) -> ParentRun | None:
        """The newest run to resume, or None: one that no process writes, and whose numbers of these
        tasks were measured under the same conditions (on the same data, for example)."""
        # a process may have been killed while this one waited for its lock
        self.tracker.close_stale()
        protocols = self.record.protocols.items()
        key = f"tags.`{TAGS['run_key']}` = '{self.record.run_key}'"
        for run in self.tracker.search(key):
            if not isinstance(run, ParentRun) or run.status == "still running":
                continue
            if all(run.protocols.get(task, value) == value for task, value in protocols):
                return run
        return None

    def is_complete(self, earlier: ParentRun, cells: Iterable[Cell]) -> bool:
        """Whether an earlier run is finished and has all metrics of the cells; a cell may have been
        computed under another parent, and its metrics may then be missing here."""
        logged = set(map(metric_key, earlier.metrics))
        return earlier.is_finished and set(map(metric_key, _metrics(cells))) <= logged

    @contextmanager
    def open(self, earlier: ParentRun | None, device: str) -> Iterator[Run]:
        """The run, new or resumed, with all that is known before the first cell; the experiment's
        saved view gets its tasks."""
        plan, backbone, record = self.plan, self.backbone, self.record
        limit = plan.options.limit
        params = {
            "backbone": record.backbone,
            "suite": record.suite,
            "seed": record.seed,
            "device": device,
            **({"limit": limit} if limit else {}),
            **plan.overrides,
        }
        content = {
            "backbone": {
                **backbone.identity,
                "name": backbone.name,
                "source": record.weights_source,
                "licence": record.licence,
                "config": {key: str(value) for key, value in backbone.create_arguments.items()},
            },
            "environment": environment(),
        }
        resume = earlier.run_id if earlier else None
        tags = record.to_tags()
        with self.tracker.run(record.name, tags=tags, params=params, resume=resume) as run:
            run.log_json(content, records.PARENT)
            options = yaml.safe_dump(plan.as_config_file(), sort_keys=False, allow_unicode=True)
            run.log_text(options, records.OPTIONS)
            for number, (path, source) in enumerate(registry.loaded()):  # names may be equal
                name = f"plugins/{number}-{Path(path).name}"
                run.log_text(source.decode(errors="replace"), name)
            run.log_models(inputs=[self.model_id])
            run.log_new_metrics(cost_metrics(record.costs))
            save_view(self.tracker.client, self.tracker.experiment_id)
            yield run

    def log_cells(self, run: Run, cells: Sequence[Cell]) -> None:
        """Log the metrics of all cells and the suite's average, if there is one; mark the run
        FAILED if a cell failed."""
        run.log_new_metrics(_metrics(cells))
        reused = {task_tag(cell.task): cell.run_id for cell in cells if cell.status == "cached"}
        updates: dict[str, Any] = {"reused": reused}
        average = suite_average(self.plan.suite, cells)
        if average is not None:
            run.log_metrics({"average": average})
            updates["average"] = self.plan.suite.average
        run.set_tags(self.record.model_copy(update=updates).to_tags())
        if failed := [cell for cell in cells if cell.status == "failed"]:
            run.fail("; ".join(f"{cell.task}: {cell.reason}" for cell in failed))


def _metrics(cells: Iterable[Cell]) -> dict[str, float]:
    return {f"{cell.task}/{name}": value for cell in cells for name, value in cell.metrics.items()}


def unit_name(backbone: str, seed: int, tasks: Sequence[PlannedTask]) -> str:
    """The name of the unit that probes ``tasks``."""
    return f"{backbone} · seed {seed} · {' + '.join(task.name for task in tasks)}"


async def ask_for_precision(
    tasks: Sequence[PlannedTask], executor: Executor
) -> Sequence[PlannedTask]:
    """Tasks with the precision that a worker prefers on its device, where the plan still has
    ``auto``, since this machine has no such device."""
    if not any(task.is_precision_open for task in tasks):
        return tasks
    precision = await executor.run(
        preferred_precision,
        executor.device,
        name="ask a worker whether it computes in bf16",
        kind="precision",
        priority=Priority.PREPARATION,
    )
    console.print(f"precision {precision} on the workers", style="dim")
    return [task.with_precision(precision) for task in tasks]


@dataclass
class Probing:
    """Tasks on their data, submitted as units of work.

    Attributes:
        experiment: in MLflow.
        suite: name of the suite.
        data: task → its dataset.
        data_root: as by ``--data-root``; its subfolders ``wds_NAME`` are webdatasets.
        force: run finished cells again.
    """

    executor: Executor
    experiment: str
    suite: str
    tasks: Sequence[PlannedTask]
    data: Mapping[str, PreparedDataset]
    data_root: Path | None = None
    force: bool = False

    @cached_property
    def units(self) -> list[list[PlannedTask]]:
        """The tasks of each unit of work: those that are scored on the same images."""
        return split_into_units(self.tasks, self.data)

    @cached_property
    def conditions(self) -> dict[str, dict[str, Any]]:
        """Task → its ``PlannedTask.conditions``."""
        return {task.name: task.conditions(self.data[task.name]) for task in self.tasks}

    async def describe(self, create_arguments: Mapping[str, Any]) -> BackboneInfo:
        """``describe_backbone`` in a worker, which may probe the backbone next. With an executor on
        other machines, where a job would wait in a queue, in this process.

        Args:
            create_arguments: keyword arguments of ``backbones.create``.
        """
        if self.executor.is_remote:
            return describe_backbone(create_arguments)
        name = f"load {create_arguments['name']}"
        return await self.executor.run(
            describe_backbone,
            create_arguments,
            name=name,
            kind="backbone",
            priority=Priority.LOADING,
        )

    async def cells(
        self,
        tasks: Sequence[PlannedTask],
        backbone: BackboneInfo,
        seed: int,
        parent_id: str,
        model_id: str,
        priority: int = Priority.DEFAULT,
    ) -> list[Cell]:
        """The cells of one unit of work: ``tasks`` on one backbone and seed.

        Args:
            tasks: one of ``units``, or those of its tasks that are not finished.
            parent_id: of the MLflow run that the cells' runs nest under.
            model_id: of the backbone's LoggedModel.
        """
        request = ProbeRequest(
            tasks=tuple(tasks),
            data={task.name: without_specs(self.data[task.name]) for task in tasks},
            data_root=self.data_root,
            backbone=backbone,
            model_id=model_id,
            seed=seed,
            suite=self.suite,
            experiment=self.experiment,
            parent_id=parent_id,
            device=self.executor.device,
            num_workers=self.executor.num_workers,
            force=self.force,
        )
        name = unit_name(backbone.name, seed, tasks)
        return await self.executor.run(
            probe_unit, request, name=name, kind="probe", priority=priority
        )


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


def dump_config(options: RunOptions) -> None:
    """Print the resolved config of each task on each backbone, for the first seed.

    Raises:
        UserError: as ``run`` does, or data or weights of the suite do not exist yet.
    """
    plan = _make_plan(replace(options, seeds=1))
    texts = asyncio.run(_configs(plan))
    sys.stdout.write("\n".join(texts) + "\n")


def _make_plan(options: RunOptions) -> RunPlan:
    """The plan of a run. Where the run would ask a worker for its precision, it is bf16 here."""
    plan = make_plan(options)
    return replace(plan, tasks=[task.with_precision("bf16") for task in plan.tasks])


async def _configs(plan: RunPlan) -> list[str]:
    options, inputs = plan.options, RunInputs(plan, None)
    device = choose_device(options.device)
    data = await _existing(f"the data of suite {plan.suite.name!r}", inputs.data(0))
    texts = []
    for name, seed in plan.rows:
        source = await _existing(f"the weights of {name!r}", inputs.backbone(name, seed))
        backbone = backbones.create(**source.create_arguments)
        for task in plan.tasks:
            context = task.context(
                data[task.name],
                seed,
                backbone=backbone,
                backbone_config=source.create_arguments,
                device=device,
                work_dir=Path("work_dirs") / task.name,
                log=Silent(),
                num_workers=2 if options.num_workers is None else options.num_workers,
            )
            text = task.probe.config(context)
            comment = "//" if text.lstrip().startswith("{") else "#"
            texts.append(f"{comment} {name} · {task.name}\n{text}")
    return texts


async def _existing(subject: str, work: Awaitable[Any]) -> Any:
    """The result of ``work``; raises ``UserError`` if it has to be made first."""
    try:
        return await work
    except NotMade:
        raise UserError(
            f"{subject} do not exist yet, and --dump-config creates nothing; start the run once"
        ) from None


def dry_run(options: RunOptions) -> None:
    """Print what has to be made first, and which units are done and which are to do."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported
    plan = _make_plan(options)
    for note in plan.notes:
        console.print(note, style="dim")
    asyncio.run(_print_units(plan))


async def _print_units(plan: RunPlan) -> None:
    inputs, missing = RunInputs(plan, None), dict[str, None]()  # titles, in the order of the work

    async def look_up(work: Awaitable[Any]) -> Any:
        try:
            return await work
        except NotMade as error:
            missing.update(dict.fromkeys(error.titles))
            return None

    data = None
    with suppress(NotChecked):
        data = await look_up(inputs.data(0, cached_only=True))
    sources = {row: await look_up(inputs.backbone(*row)) for row in plan.rows}
    for title in missing:
        console.print(f"  to do · {title}")
    if data is None:
        console.print(
            "  note · tasks on the same images become one unit, known once the data are made and"
            " checked"
        )
    units = split_into_units(plan.tasks, data) if data else [[task] for task in plan.tasks]
    counts = Counter({"done": 0, "to do": 0})
    for (name, seed), source in sources.items():
        cells = _cells(plan, inputs, data, name, seed, source)
        states = {task.name: "to do" for task in plan.tasks}
        for cell in cells.values():
            states[cell.task] = "done" if cell.status == "cached" else cell.status
            if cell.reason:
                console.print(
                    f"  {cell.status} · {name} · seed {seed} · {cell.task}: {cell.reason}"
                )
        counts.update(states.values())
        for state, tasks in product(("done", "to do"), units):
            if part := [task for task in tasks if states[task.name] == state]:
                console.print(f"  {state} · {unit_name(name, seed, part)}")
    totals = ", ".join(f"{count} {state}" for state, count in counts.items())
    sizes = f"{len(plan.backbones)} backbones × {len(plan.tasks)} tasks × {len(plan.seeds)} seeds"
    console.print(f"{sizes}: {totals}")


def _cells(
    plan: RunPlan,
    inputs: RunInputs,
    data: dict[str, PreparedDataset] | None,
    name: str,
    seed: int,
    source: BackboneSource | None,
) -> dict[str, Cell]:
    """Task → cell, of the tasks of a backbone and seed that are finished or do not apply."""
    try:
        backbone = inputs.planned_backbone(name)
        info = describe_backbone(source.create_arguments) if source else None
    except UserError as error:  # its weights are not on this disk
        console.print(f"  note · {name}: {error}")
        return {}
    cells = {}
    tracker = Tracker.existing(plan.experiment)
    if data and info and tracker and not plan.options.force:
        conditions = {task.name: task.conditions(data[task.name]) for task in plan.tasks}
        cells = find_cells(tracker, info, plan.tasks, conditions, seed)
    return cells | missing_cells(name, seed, inputs.inapplicable_tasks(backbone), "not applicable")
