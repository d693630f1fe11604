"""``run --dry-run`` and ``run --dump-config``: what a run would do, looked up without making anything."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import backbones
from backbones import UserError
from backbones.cliptex.protocols import Silent
from benchmark.evaluation.cell import finished_cell
from benchmark.evaluation.data import prepare_data
from benchmark.evaluation.device import choose_device, device_kind
from benchmark.evaluation.groups import task_groups
from benchmark.evaluation.needs import needs
from benchmark.evaluation.plan import PlannedTask
from benchmark.evaluation.runner import RunOptions, RunPlan, make_plan
from benchmark.execution import Bar, Executor, make_executor
from benchmark.execution.progress import console
from benchmark.suites.registry import PreviewStage, SuitePreview
from probes.base import Context
from probes.datasets.check import NotExamined
from probes.feature_budget import gigabytes
from reports.store import tracking_uri
from reports.tracking import Tracker


def _look(plan: RunPlan) -> SuitePreview:
    """What of the suite's own things is there."""
    look = plan.suite.preview
    return look(plan.suite.name, plan.made_names, plan.seeds) if look else SuitePreview()


def _config(plan: RunPlan, there: SuitePreview, name: str, seed: int) -> Mapping[str, Any] | None:
    """Keyword arguments of ``backbones.create``; None while the suite has not made its weights."""
    return there.backbones[name, seed] if (name, seed) in there.backbones else plan.config(name, seed)


def dump_config(options: RunOptions) -> None:
    """Print the resolved config of each task on each backbone.

    Raises:
        UserError: as ``run`` does, or data or weights that the suite makes are not made yet.
    """
    plan = make_plan(options)
    there = _look(plan)
    if there.data is None:
        raise UserError(
            f"the data of suite {plan.suite.name!r} are not made yet, and --dump-config makes nothing; run it once"
        )
    data = prepare_data(
        plan.tasks, {**there.data, **options.data}, options.data_root, options.partial, options.num_workers
    )
    texts = []
    for name in plan.names:
        config = _config(plan, there, name, options.seed)
        if config is None:
            raise UserError(f"the weights of {name!r} are not made yet, and --dump-config makes nothing; run it once")
        backbone = backbones.create(**config)
        for task in plan.tasks:
            context = Context(
                backbone=backbone, backbone_config=config, data=data[task.name], settings=task.settings, seed=options.seed,
                device=choose_device(options.executor.device), work_dir=Path("work_dirs") / task.name, log=Silent(),
                progress=Silent(), workers=options.num_workers,
            )  # fmt: skip
            text = task.probe.config(context)
            comment = "//" if text.lstrip().startswith("{") else "#"
            texts.append(f"{comment} {name} · {task.name}\n{text}")
    sys.stdout.write("\n".join(texts) + "\n")


@dataclass
class _Sums:
    """What is left, added up; ``unknown`` names what was never measured on this kind of device."""

    seconds: float = 0.0
    gpu_seconds: float = 0.0
    bytes: float = 0.0
    units: int = 0
    measured: bool = False
    unknown: list[str] = field(default_factory=list)

    def add(self, name: str, measured: tuple[float, float] | None, gpus: int, units: int = 1) -> None:
        self.units += units
        if measured is None:
            self.unknown.append(name)
            return
        self.measured = True
        self.seconds += measured[0]
        self.gpu_seconds += measured[0] * gpus
        self.bytes += measured[1]


def dry_run(options: RunOptions) -> None:
    """Print cells done and to do, the units of what is to do with their needs and places, and what that will cost."""
    plan = make_plan(options)
    there = _look(plan)
    bar = Bar()
    executor = make_executor(options.executor, bar)
    with executor:
        executor.check_store(tracking_uri())
        _Preview(plan, there, executor, Tracker.existing(plan.experiment)).show()


class _Preview:
    def __init__(self, plan: RunPlan, there: SuitePreview, executor: Executor, tracker: Tracker | None) -> None:
        self.plan, self.there, self.executor, self.tracker = plan, there, executor, tracker
        self.sums = _Sums()

    def show(self) -> None:
        """All lines."""
        plan = self.plan
        pending = [stage for stage in self.there.stages if not stage.available]
        for stage in pending:
            self._say_stage(stage)
        counts = dict.fromkeys(("done", "to do", "not applicable"), 0)
        for seed in plan.seeds:
            for name in plan.names:
                self._say_backbone(name, seed, counts)
        told = ", ".join(f"{count} {what}" for what, count in counts.items() if count or what != "not applicable")
        console.print(
            f"{len(plan.names)} backbones × {len(plan.tasks)} tasks × {len(plan.seeds)} seeds: {told}", markup=False
        )
        self._say_sums()

    def _say_stage(self, stage: PreviewStage) -> None:
        asked = self._needs(stage.kind)
        measured = self._stage_cost(stage)
        self.sums.add(stage.name, measured, asked["gpus"], stage.units)
        self._say(stage.name, stage.units, asked, measured)

    def _say_backbone(self, name: str, seed: int, counts: dict[str, int]) -> None:
        plan = self.plan
        left: list[PlannedTask] = []
        config = _config(plan, self.there, name, seed)
        backbone = backbones.create(**config) if config is not None else None
        for task in plan.tasks:
            if backbone is not None and task.probe.needs_text and not backbone.has_text:
                counts["not applicable"] += 1
            elif backbone is not None and self._done(backbone, task, seed):
                counts["done"] += 1
            else:
                counts["to do"] += 1
                left.append(task)
        for group in task_groups(left, self._data) if self._data is not None else [[task] for task in left]:
            asked = self._needs("probe")
            each = [self._task_cost(task) for task in group]
            known = [one for one in each if one is not None]
            measured = (sum(s for s, _ in known), sum(b for _, b in known)) if len(known) == len(group) else None
            title = f"{name} · seed {seed} · {' + '.join(task.name for task in group)}"
            self.sums.add(title, measured, asked["gpus"])
            self._say(title, 1, asked, measured)

    @cached_property
    def _data(self) -> Mapping[str, Any] | None:
        """The datasets; None while they are not made, or were never looked at."""
        options = self.plan.options
        if self.there.data is None:
            return None
        try:
            placed = {**self.there.data, **options.data}
            return prepare_data(self.plan.tasks, placed, options.data_root, options.partial, known_only=True)
        except NotExamined:
            return None

    def _done(self, backbone: Any, task: PlannedTask, seed: int) -> bool:
        if self._data is None or self.tracker is None or self.plan.options.force:
            return False
        return finished_cell(self.tracker, backbone, task, self._data[task.name], seed) is not None

    def _needs(self, kind: str) -> Mapping[str, int]:
        options = self.plan.options
        return needs(kind, self.executor, options.executor.device, options.num_workers)

    def _task_cost(self, task: PlannedTask) -> tuple[float, float] | None:
        return self._measured(f"tags.task = '{task.name}'", "cost/seconds")

    def _stage_cost(self, stage: PreviewStage) -> tuple[float, float] | None:
        what = stage.name.partition(" · ")[0].split()[-1]
        filters = {
            "train": (f"tags.stage = 'train' and tags.recipe = '{what}'", "cost/train_seconds"),
            "expert": (f"tags.stage = 'experts' and tags.expert = '{what}'", "cost/train_seconds"),
            "label": ("tags.stage = 'label'", "cost/label_seconds"),
        }
        return self._measured(*filters[stage.kind]) if stage.kind in filters else None

    def _measured(self, filter_string: str, metric: str) -> tuple[float, float] | None:
        """Median seconds and bytes of earlier runs on this kind of device, None where there is none."""
        if self.tracker is None:
            return None
        try:
            device = choose_device(self.plan.options.executor.device)
        except UserError:
            return None
        if self.executor.has_gpus and device.type == "cpu":
            return None  # how quick other machines' GPUs are is not known here
        kind = device_kind(device)
        runs = self.tracker.search(
            f"attributes.status = 'FINISHED' and {filter_string} and tags.`device.kind` = '{kind}'"
        )
        seconds = [run.data.metrics[metric] for run in runs if metric in run.data.metrics]
        if not seconds:
            return None
        sizes = [run.data.metrics.get("cost/disk_bytes", 0.0) for run in runs]
        return statistics.median(seconds), max(sizes)

    def _say(self, name: str, units: int, asked: Mapping[str, int], measured: tuple[float, float] | None) -> None:
        where = self.executor.where(asked["cpus"], asked["gpus"])
        took = "time unknown" if measured is None else f"about {_time(measured[0])}"
        console.print(f"  to do · {name}: {units} unit{'s' * (units > 1)}, {where}, {took}", markup=False)

    def _say_sums(self) -> None:
        sums = self.sums
        if not sums.units:
            console.print("nothing is left to do", markup=False)
            return
        line = f"{sums.units} units to do"
        if sums.measured:
            at_once = max(1, self.executor.width)
            line += f": about {_time(sums.seconds / at_once)} with {at_once} at once, {gigabytes(sums.bytes)} on disk"
            line += f", {sums.gpu_seconds / 3600:.1f} GPU-hours" if sums.gpu_seconds else ""
        console.print(line, markup=False)
        if sums.unknown:
            names = ", ".join(_some(sums.unknown))
            console.print(f"unknown, since no earlier run on this kind of device is in MLflow: {names}", markup=False)


def _some(names: Sequence[str], most: int = 4) -> list[str]:
    return [*names[:most], *([f"and {len(names) - most} more"] if len(names) > most else [])]


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
