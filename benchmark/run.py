"""The work of ``run``, backbones × tasks × seeds: check the inputs, submit units of work, collect
their cells.

A cell is the result of one backbone, task and seed. A row is the cells of one backbone and seed, in
one parent run of MLflow; a unit of work is those cells of a row whose tasks are scored on the same
images.

``run --dry-run`` is the same plan and rows with an executor that is not started, ``run
--dump-config`` without one: nothing is created."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

import backbones
from backbones.cliptex.recipes import trained_experts
from benchmark.executor import (
    Executor,
    Priority,
    choose_device,
    make_executor,
    open_executor_and_tracker,
    start_executor,
    unstarted_executor,
)
from benchmark.finished import find_cells, missing_cells, report_failure
from benchmark.options import RunOptions
from benchmark.plan import Plan, checkpoint_metadata, make_plan
from benchmark.progress import Bar, console
from benchmark.result import AVERAGE, RunResult, suite_averages
from benchmark.suites import BackboneSource, NotMade
from benchmark.tasks import BackboneInfo, Job, PlannedTask, describe_backbone, unit_title
from benchmark.unit import drop_last_model
from cliptex_common import registry
from cliptex_common.errors import NotDownloaded, UserError
from cliptex_common.files import content_key, lock_path, locked_async, mark_in_use
from cliptex_common.progress import Silent
from reports import records
from reports.provenance import environment
from reports.records import TAGS, Cell, ParentRun, cost_metrics, metric_key, task_tag
from reports.selection import weights_labels, with_label
from reports.store import save_view, set_naming_tags
from reports.tables import count
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
    return logged_model(tracker, backbone.column, weights.sha256, backbone.params, tags, train_run)


async def ask_for_precision(
    tasks: Sequence[PlannedTask], executor: Executor
) -> Sequence[PlannedTask]:
    """Tasks with the precision that a worker prefers on its device, where the plan still has
    ``auto``, since this machine has no such device."""
    if not any(task.is_precision_open for task in tasks):
        return tasks
    from benchmark.cell import preferred_precision  # needs torch, like all that computes

    precision = await executor.run(
        preferred_precision,
        executor.device,
        name="ask a worker whether it computes in bf16",
        kind="precision",
        priority=Priority.PREPARATION,
    )
    console.print(f"precision {precision} on the workers", style="dim")
    return [task.with_precision(precision) for task in tasks]


async def describe(create_arguments: Mapping[str, Any], executor: Executor | None) -> BackboneInfo:
    """A backbone that is not remembered is described in a worker, which may probe it next. Without
    an executor, or with one on other machines, where a job would wait in a queue, in this process.

    Args:
        create_arguments: keyword arguments of ``backbones.create``.
    """
    if info := BackboneInfo.recall(create_arguments):
        return info
    if executor is None or executor.is_remote:
        return describe_backbone(create_arguments)
    return await executor.run(
        describe_backbone,
        create_arguments,
        name=f"load {create_arguments['name']}",
        kind="backbone",
        priority=Priority.LOADING,
    )


async def probe(job: Job, executor: Executor, priority: int = Priority.DEFAULT) -> list[Cell]:
    """``probe_unit`` through an executor, on its device."""
    from benchmark.cell import probe_unit

    job = replace(job, device=executor.device, num_workers=executor.num_workers)
    return await executor.run(probe_unit, job, name=job.title, kind="probe", priority=priority)


@dataclass
class Row:
    """The cells of one backbone and seed, in one parent run of MLflow.

    Attributes:
        planned: the backbone before any work, see ``Plan.planned_backbone``.
        inapplicable: task → why it does not apply.
        executor: None in a dry run, which makes, probes and writes nothing.
        tracker: None if a dry run finds no experiment.
        reported: error → its line in failed cells, of all rows of a run. All backbones that wait
            for a training fail with its error, which is printed once.
        source: how the backbone is built and what its weights cost, once they are made.
        backbone: once it can be built.
        model_id: of its LoggedModel.
        run_id: of the parent run; '' if it could not be written.
        is_new: whether it was written by this command, not found complete.
        expected: number of units that will run, which is that of all units until the finished cells
            are known.
    """

    plan: Plan
    planned: BackboneInfo
    seed: int
    inapplicable: Mapping[str, str]
    executor: Executor = None  # type: ignore[assignment]
    tracker: Tracker = None  # type: ignore[assignment]
    reported: dict[Exception, str] = field(default_factory=dict)
    source: BackboneSource = None  # type: ignore[assignment]
    backbone: BackboneInfo = None  # type: ignore[assignment]
    model_id: str = ""
    run_id: str = ""
    is_new: bool = False
    expected: int = 0

    @property
    def name(self) -> str:
        return self.planned.column

    async def load(self) -> BackboneInfo:
        """The backbone, whose ``source`` is known; described once for all seeds of equal weights.
        Raises ``UserError`` if it cannot be built."""
        arguments = self.source.create_arguments
        if self.planned.is_built_by(arguments):
            return self.planned
        return replace(await describe(arguments, self.executor), label=self.name)

    def find(self) -> dict[str, Cell]:
        """Task → cell, of tasks that are finished or do not apply; none is finished with
        ``--force``, or where data or weights are not made yet."""
        plan, cells = self.plan, dict[str, Cell]()
        if plan.data and self.backbone and self.tracker and not plan.options.force:
            cells = find_cells(self.tracker, self.backbone, plan.tasks, plan.conditions, self.seed)
        return cells | missing_cells(self.name, self.seed, self.inapplicable, "not applicable")

    async def run(self, at_once: asyncio.Semaphore) -> list[Cell]:
        """The cells. If the weights cannot be made or loaded, or the parent run cannot be written,
        all are failed.

        Args:
            at_once: how many rows probe at the same time.
        """
        try:
            self.source = await self.plan.source(self.name, self.seed)
            async with at_once:
                self.backbone = await self.load()
                self.backbone.remember()
                # Another command with the same row waits, then finds its cells and its parent. A
                # row waits for no other row, so these locks cannot wait for each other.
                subject = [self.name, self.seed, self.backbone.identity, self.plan.conditions]
                lock = lock_path("row", [self.tracker.uri, self.tracker.experiment, *subject])
                async with locked_async(lock, self._report_wait):
                    return await self._probe()
        except Exception as error:  # units report their own, see ``_run_unit``
            self.expect(0)
            self.run_id = ""
            reason = (
                f"could not load its weights or write its parent run: {self._report_once(error)}"
            )
            reasons = {task.name: reason for task in self.plan.tasks}
            return list(missing_cells(self.name, self.seed, reasons).values())

    async def _probe(self) -> list[Cell]:
        """Find the finished cells, and run the units of the others under the parent run."""
        plan, tracker, cells = self.plan, self.tracker, self.find()
        if finished := sum(cell.status == "cached" for cell in cells.values()):
            console.print(
                f"{self.name} · seed {self.seed}: {finished} of {len(plan.tasks)} tasks are"
                " finished and not run again (--force runs them)",
                style="dim",
            )
        pending = [[task for task in tasks if task.name not in cells] for tasks in plan.units]
        pending = [tasks for tasks in pending if tasks]
        self.expect(len(pending))
        self.model_id = log_backbone(tracker, self.backbone, self.source.run)
        with ExitStack() as stack:
            # until the run is RUNNING, a command with other tasks could resume it as well
            lock = lock_path("parent", [tracker.uri, tracker.experiment, self.record.run_key])
            async with locked_async(lock):
                earlier = None if plan.options.force else self._find_earlier()
                named = self.record.naming_tags()  # those of this command count
                if earlier and not named.items() <= earlier.naming_tags().items():
                    set_naming_tags(tracker.client, earlier, named)
                if not pending and earlier and self._is_complete(earlier, cells.values()):
                    self.run_id = earlier.run_id
                    return [cells[task.name] for task in plan.tasks]
                run = stack.enter_context(self._open_run(earlier))
            for unit_cells in await asyncio.gather(*(self._run_unit(each) for each in pending)):
                cells |= unit_cells
            ordered = [cells[task.name] for task in plan.tasks]
            self.log_cells(run, ordered)
        return ordered

    async def _run_unit(self, tasks: Sequence[PlannedTask]) -> dict[str, Cell]:
        """Task → cell, of one unit. If the unit raises, all are failed with that reason."""
        job = self.plan.job(
            tasks,
            self.tracker.experiment,
            backbone=self.backbone,
            model_id=self.model_id,
            seed=self.seed,
            parent_id=self.run_id,
        )
        is_trained = self.plan.is_trained(self.name)
        priority = Priority.DEFAULT if is_trained else Priority.FIRST_NUMBERS
        try:
            cells = await probe(job, self.executor, priority)
            return {cell.task: cell for cell in cells}
        except Exception as error:
            reason = self._report_once(error)
            console.print(f"{job.title}: {reason}", style="red")
            return missing_cells(self.name, self.seed, {task.name: reason for task in tasks})

    def expect(self, units: int) -> None:
        """Set how many units of this row will run, which the progress counts."""
        self.executor.overview.expected["probe"] += units - self.expected
        self.expected = units

    def _report_once(self, error: Exception) -> str:
        """``report_failure``, which prints the traceback of each error once."""
        if error not in self.reported:
            self.reported[error] = report_failure(error)
        return self.reported[error]

    def _report_wait(self) -> None:
        line = f"{self.name} · seed {self.seed}: another command runs this; waiting for it"
        console.print(line, style="dim")

    @property
    def _recipe(self) -> tuple[str, str]:
        """Name of the recipe that trained the weights, and what it changes; '' if unknown."""
        weights = self.source.create_arguments.get("weights")
        return checkpoint_metadata(weights)[1:] if weights else (self.backbone.name, "")

    @cached_property
    def record(self) -> ParentRun:
        """The parent run's record. A run with the same key is resumed; one with ``--limit`` is
        never the same as one on all images."""
        plan, backbone = self.plan, self.backbone
        suite, limit = plan.suite.name, plan.options.limit
        identity = {
            "suite": suite,
            "seed": self.seed,
            "backbone": backbone.identity,
            "name": backbone.name,
            "set": plan.options.overrides,
            "limit": limit,
        }
        source = plan.backbones[self.name]
        if source.label:  # a run for each label; cells know none
            identity["label"] = source.label
        name = f"{self.name} · {suite} · seed {self.seed}"
        return ParentRun(
            name=f"{name} · only {limit} images" if limit else name,
            backbone=backbone.name,
            label=self.name if source.label or self.name != backbone.name else "",
            architecture=backbone.architecture,
            suite=suite,
            seed=self.seed,
            weights=backbone.weights.sha256,
            network=backbone.network,
            settings=self._recipe[1],
            weights_source=backbone.weights.source,
            licence=backbone.weights.licence,
            run_key=content_key(identity),
            model=self.model_id,
            train_run=self.source.run,
            experts=trained_experts(*self._recipe),
            main_metrics=tuple(f"{task.name}/{task.main_metric}" for task in plan.tasks),
            protocols={
                task_tag(task): content_key(conditions)
                for task, conditions in plan.conditions.items()
            },
            costs=dict(self.source.cost),
            own_tags=dict(plan.options.tags),
        )

    def _find_earlier(self) -> ParentRun | None:
        """The newest run to resume, or None: one that no process writes, and whose numbers of these
        tasks were measured under the same conditions (on the same data, for example)."""
        # a process may have been killed while this one waited for its lock
        self.tracker.close_stale()
        protocols = self.record.protocols.items()
        for run in self.tracker.search(**{TAGS["run_key"]: self.record.run_key}):
            if not isinstance(run, ParentRun) or run.status == "still running":
                continue
            if all(run.protocols.get(task, value) == value for task, value in protocols):
                return run
        return None

    def _is_complete(self, earlier: ParentRun, cells: Iterable[Cell]) -> bool:
        """Whether an earlier run is finished and has all metrics of the cells; a cell may have been
        computed under another parent, and its metrics may then be missing here."""
        logged = set(map(metric_key, earlier.metrics))
        return earlier.is_finished and set(map(metric_key, _metrics(cells))) <= logged

    @contextmanager
    def _open_run(self, earlier: ParentRun | None) -> Iterator[Run]:
        """The parent run, new or resumed, with all that is known before the first cell."""
        options, backbone, record = self.plan.options, self.backbone, self.record
        params = {
            "backbone": record.backbone,
            "suite": record.suite,
            "seed": record.seed,
            "device": self.executor.device,
            **({"limit": options.limit} if options.limit else {}),
            **options.overrides,
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
        with self.tracker.run(
            record.name, tags=record.to_tags(), params=params, resume=resume
        ) as run:
            self.run_id, self.is_new = run.id, True
            if options.overrides:  # which tell it from others of its backbone and seed
                run.set_tags({"set": " ".join(f"{k}={v}" for k, v in options.overrides.items())})
            run.log_json(content, records.PARENT)
            config = self.plan.as_config_file()
            text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
            run.log_text(text, records.OPTIONS)
            for number, (path, source) in enumerate(
                registry.plugin_sources()
            ):  # names may be equal
                name = f"plugins/{number}-{Path(path).name}"
                run.log_text(source.decode(errors="replace"), name)
            run.log_models(inputs=[self.model_id])
            run.log_new_metrics(cost_metrics(record.costs))
            yield run

    def log_cells(self, run: Run, cells: Sequence[Cell]) -> None:
        """Log the metrics of all cells and the suite's average, if there is one; mark the parent
        run FAILED if a cell failed."""
        run.log_new_metrics(_metrics(cells))
        reused = {task_tag(cell.task): cell.run_id for cell in cells if cell.status == "cached"}
        updates: dict[str, Any] = {"reused": reused}
        suite = self.plan.suite
        if averages := suite_averages(suite, cells):
            for variant, means in averages.items():
                names = {group: f"{AVERAGE}/{variant}/{group}" for group in means}
                names[AVERAGE] = "/".join(filter(None, [AVERAGE, variant]))
                run.log_metrics({names[group]: mean for group, mean in means.items()})
            groups = [f"{group}/{name}" for group in suite.groups for name in suite.groups[group]]
            metric = suite.group_metric if groups else ""
            updates |= {"average": suite.average, "groups": groups, "group_metric": metric}
        run.set_tags(self.record.model_copy(update=updates).to_tags())
        if failed := [cell for cell in cells if cell.status == "failed"]:
            run.fail("; ".join(f"{cell.task}: {cell.reason}" for cell in failed))


def _metrics(cells: Iterable[Cell]) -> dict[str, float]:
    return {f"{cell.task}/{name}": value for cell in cells for name, value in cell.metrics.items()}


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
    for source in plan.backbones.values():
        if path := source.create_arguments["weights"]:
            mark_in_use(Path(path))
    try:
        with Bar() as bar:
            # Started below: what does not fit is refused before there are workers and a store. The
            # rest of the plan needs workers.
            executor = make_executor(options, bar)
            plan = plan.with_pipeline(executor)
            _print_notes(plan)
            planned = [plan.planned_backbone(name) for name in plan.backbones]
            _print_summaries([each for each in planned if not plan.is_trained(each.column)])
            inapplicable = {each.column: plan.inapplicable_tasks(each) for each in planned}
            with start_executor(executor, plan.experiment) as tracker:
                plan = replace(plan, tasks=await ask_for_precision(plan.tasks, executor))
                plan = await plan.with_data(executor.num_workers)
                # where memory ends, a worker is killed: a failed task, not the end of the run
                is_large = any(getattr(task.settings, "is_tuned", False) for task in plan.tasks)
                if plan.pipeline is None and not is_large:
                    executor.expect(len(planned) * len(plan.seeds) * len(plan.units))
                if not executor.in_this_process:
                    drop_last_model()  # of ``planned_backbone``; each worker loads its own
                reported: dict[Exception, str] = {}
                rows = [
                    Row(plan, each, seed, inapplicable[each.column], executor, tracker, reported)
                    for seed in plan.seeds
                    for each in planned
                ]
                return await _run_rows(plan, rows, executor, tracker)
    finally:
        drop_last_model()  # of units in this process


async def _run_rows(
    plan: Plan, rows: Sequence[Row], executor: Executor, tracker: Tracker
) -> RunResult:
    """The cells and parent runs of all rows, which run at once."""
    for row in rows:
        row.expect(len(plan.units))
    # A local worker keeps one backbone in memory, so at most as many backbones as workers at a
    # time; remote executors have no such limit.
    at_once = asyncio.Semaphore(len(rows) if executor.is_remote else executor.slots)
    results = await asyncio.gather(*(row.run(at_once) for row in rows))
    cells = [cell for row_cells in results for cell in row_cells]
    if any(row.is_new for row in rows):
        save_view(tracker.client, tracker.experiment_id)
    records = [
        (row.record.model_copy(update={"backbone": row.name}), row) for row in rows if row.model_id
    ]
    labels = weights_labels([*cells, *(record for record, _ in records)])
    run_ids = {
        (with_label(record, labels).backbone, row.seed): row.run_id
        for record, row in records
        if row.run_id
    }
    cells = [with_label(cell, labels) for cell in cells]
    return RunResult(plan.suite, plan.tasks, cells, run_ids, tracker, plan.absent)


async def check_async(options: RunOptions) -> None:
    """Check the options, the data and the MLflow store of a run, and make data that the suite
    makes; nothing is probed. Raises as ``run_async``."""
    plan = make_plan(options)
    with open_executor_and_tracker(options, plan.experiment) as (executor, _):
        await plan.with_pipeline(executor).with_data(executor.num_workers)


def _print_notes(plan: Plan) -> None:
    _ = plan.folders  # raises where one is missing: no note stands beside an error
    for note in plan.notes:
        console.print(note, style="dim")


def _print_summaries(planned: Sequence[BackboneInfo]) -> None:
    for info in planned:
        if info.summary:
            console.print(info.summary, style="dim")
    columns: dict[str, list[str]] = {}
    for info in planned:
        columns.setdefault(info.network, []).append(info.column)
    for names in columns.values():
        if len(set(names)) > 1:
            console.print(f"{', '.join(dict.fromkeys(names))}: the same weights", style="dim")


def _plan_without_executor(options: RunOptions) -> Plan:
    """The plan of a run that makes nothing. Where the run would ask a worker for its precision, it
    is bf16 here."""
    plan = make_plan(options).with_pipeline(None)
    return replace(plan, tasks=[task.with_precision("bf16") for task in plan.tasks])


def dump_config(options: RunOptions) -> None:
    """Print the resolved config of each task on each backbone, for the first seed.

    Raises:
        UserError: as ``run`` does, or data or weights of the suite do not exist yet.
    """
    plan = _plan_without_executor(replace(options, seeds=1))
    texts = asyncio.run(_configs(plan))
    sys.stdout.write("\n".join(texts) + "\n")


async def _configs(plan: Plan) -> list[str]:
    options, device = plan.options, choose_device(plan.options.device)
    plan = await _existing(f"the data of suite {plan.suite.name!r}", plan.with_data(0))
    texts = []
    for name, seed in plan.rows:
        source = await _existing(f"the weights of {name!r}", plan.source(name, seed))
        backbone = backbones.create(**source.create_arguments)
        for task in plan.tasks:
            context = task.context(
                plan.data[task.name],
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
    """Print what has to be made first, which units are done and which are to do, and what these
    take: the rows of the run, with an executor that is not started. Raises ``UserError`` as
    ``run``."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported
    plan = _plan_without_executor(options)
    _print_notes(plan)
    with unstarted_executor(options) as executor:
        asyncio.run(_print_units(plan, executor))


async def if_made(work: Awaitable[Any], titles: list[str]) -> Any:
    """The result of ``work``, or None if something has to be made first, whose titles are added."""
    try:
        return await work
    except NotMade as error:
        titles.extend(error.titles)
        return None


async def _print_units(plan: Plan, executor: Executor) -> None:
    titles: list[str] = []  # of what has to be made, in the order of the work
    plan = await if_made(plan.with_data(0, cached_only=True), titles) or plan
    sources = {row: await if_made(plan.source(*row), titles) for row in plan.rows}
    for title in dict.fromkeys(titles):
        console.print(f"  to do · {title}")
    if not plan.data:
        console.print("  note · tasks on the same images become one unit once the data are made")
    counts, tracker = Counter({"done": 0, "to do": 0}), Tracker.existing(plan.experiment)
    planned: dict[str, BackboneInfo] = {}
    pending: list[tuple[str, int, Sequence[PlannedTask]]] = []  # units
    for (name, seed), source in sources.items():
        cells = await _look_up(plan, planned, tracker, name, seed, source)
        states = {task.name: "to do" for task in plan.tasks}
        for cell in cells.values():
            states[cell.task] = "done" if cell.status == "cached" else cell.status
            if cell.reason:
                console.print(
                    f"  {cell.status} · {name} · seed {seed} · {cell.task}: {cell.reason}"
                )
        counts.update(states.values())
        for state, tasks in product(("done", "to do"), plan.units):
            if part := [task for task in tasks if states[task.name] == state]:
                console.print(f"  {state} · {unit_title(name, seed, part)}")
                if state == "to do":
                    pending.append((name, seed, part))
    refuse_inapplicable(counts.elements())
    if pending:
        print_cost(plan, executor, tracker, planned, pending)
    totals = ", ".join(f"{number} {state}" for state, number in counts.items())
    amounts = {"backbone": plan.backbones, "task": plan.tasks, "seed": plan.seeds}
    sizes = " × ".join(count(len(values), name) for name, values in amounts.items())
    console.print(f"{sizes}: {totals}")


async def _look_up(
    plan: Plan,
    planned: dict[str, BackboneInfo],
    tracker: Tracker | None,
    name: str,
    seed: int,
    source: BackboneSource,
) -> dict[str, Cell]:
    """``Row.find`` of a row without an executor. Of a backbone that a run would download, only what
    does not fit its architecture.

    Args:
        planned: name → ``Plan.planned_backbone``, of those that are described already; updated.
    """
    try:
        info = planned.get(name) or plan.planned_backbone(name)
        _print_summaries([info] if name not in planned else [])
        planned[name] = info
        row = Row(plan, info, seed, plan.inapplicable_tasks(info), source=source)
        if source:
            row.backbone = await row.load()
            for task in plan.tasks:
                if task.stored_heads:
                    task.stored_heads.cell_of(row.backbone, seed)
    except NotDownloaded as error:
        console.print(f"  note · {name}: {error}")
        with suppress(NotDownloaded):
            own = plan.backbones[name].create_arguments["name"].removeprefix("random/")
            untrained = describe_backbone({"name": f"random/{own}"})
            return missing_cells(name, seed, plan.inapplicable_tasks(untrained), "not applicable")
        return {}
    if tracker is not None:
        row.tracker = tracker
    return row.find()


# processor seconds that encode an image, for each million of parameters: a ViT-S/16 (22 million)
# encodes 13.4 images a second on two cores (docs/benchmarks.md)
ENCODE_SECONDS = 2 / 13.4 / 22


def print_cost(
    plan: Plan,
    executor: Executor,
    tracker: Tracker | None,
    planned: Mapping[str, BackboneInfo],
    pending: Sequence[tuple[str, int, Sequence[PlannedTask]]],
) -> None:
    """Print what the pending units encode, how they run, and what they take: by earlier cells of
    the same task, if possible of the same backbone, else by their images alone."""
    earlier: dict[str, list[Cell]] = {task.name: [] for task in plan.tasks}
    for cell in tracker.search("attributes.status = 'FINISHED'") if tracker else ():
        if isinstance(cell, Cell) and cell.task in earlier:
            earlier[cell.task].append(cell)
    cpus, gpus = executor.resources().values()
    images, seconds, disk, bases = 0, 0.0, 0.0, Counter[str]()
    for name, _, tasks in pending:
        data = {plan.data[task.name].spec.name: plan.data[task.name] for task in tasks if plan.data}
        encoded = sum(len(split) for each in data.values() for split in each.samples.values())
        images += encoded
        for task in tasks:
            cells = [cell for cell in earlier[task.name] if cell.backbone == name]
            if cells := cells or earlier[task.name]:
                bases["by earlier cells of the same tasks"] += 1
                seconds += fmean(cell.seconds for cell in cells) * (gpus or cpus)
                disk += fmean(cell.costs.get("disk_bytes", 0.0) for cell in cells)
            elif gpus or not encoded or name not in planned:
                bases["unknown"] += 1
            else:
                bases["by encoding alone (rate of docs/benchmarks.md), without heads"] += 1
                millions = planned[name].params["parameters"] / 1e6
                seconds += encoded / len(tasks) * millions * ENCODE_SECONDS
    if plan.data:
        console.print(f"  encode · at most {images} images")
    kind = "GPU" if gpus else "processor"
    basis = ", ".join(f"{count(tasks, 'task')} {source}" for source, tasks in bases.items())
    amounts = f"about {seconds / 3600:.2g} {kind} hours and {disk / 1e9:.2g} GB of features"
    if {*bases} == {"unknown"}:
        amounts = f"{kind} hours and GB of features"
    console.print(f"  {amounts}: {basis}")
    for line in executor.preview([unit_title(*unit) for unit in pending]):
        console.print(f"  {line}")


def refuse_inapplicable(statuses: Iterable[str]) -> None:
    """Raise ``UserError`` if all cells of a run are not applicable."""
    if all(status == "not applicable" for status in statuses):
        raise UserError(
            "none of these tasks applies to these backbones; choose others with --task or"
            " --backbone"
        )
