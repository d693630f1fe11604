"""``run --dry-run`` and ``run --dump-config``: what a run would do, looked up without making anything."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Mapping
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
from probes.features.budget import gigabytes
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
                device=choose_device(options.executor.task_device), work_dir=Path("work_dirs") / task.name, log=Silent(),
                progress=Silent(), num_workers=options.num_workers,
            )  # fmt: skip
            text = task.probe.config(context)
            comment = "//" if text.lstrip().startswith("{") else "#"
            texts.append(f"{comment} {name} · {task.name}\n{text}")
    sys.stdout.write("\n".join(texts) + "\n")


def dry_run(options: RunOptions) -> None:
    """Print cells done and to do, the units of what is to do with their needs and places, and what that will cost."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hubs' library is imported: weights are looked up, not fetched
    plan = make_plan(options)
    executor = make_executor(options.executor, Bar())
    try:
        executor.check_store(tracking_uri())
        _Preview(plan, _look(plan), executor, Tracker.existing(plan.experiment)).show()
    finally:
        executor.release()


class _Preview:
    """What is left to do, line by line, and its sums; ``unknown`` names what was never measured on this kind of device."""

    def __init__(self, plan: RunPlan, there: SuitePreview, executor: Executor, tracker: Tracker | None) -> None:
        self.plan, self.there, self.executor, self.tracker = plan, there, executor, tracker
        self.units, self.seconds, self.gpu_seconds, self.bytes = 0, 0.0, 0.0, 0.0
        self.unknown: list[str] = []
        self.counts = {"done": 0, "to do": 0, "not applicable": 0}

    def show(self) -> None:
        """All lines."""
        plan = self.plan
        for stage in self.there.stages:
            if not stage.available:
                self._say(stage.name, stage.kind, [self._stage_cost(stage)], stage.units)
        for seed in plan.seeds:
            for name in plan.names:
                left = self._left(name, seed)
                for group in task_groups(left, self._data) if self._data is not None else [[task] for task in left]:
                    title = f"{name} · seed {seed} · {' + '.join(task.name for task in group)}"
                    filters = (f"tags.task = '{task.name}'" for task in group)
                    self._say(title, "probe", [self._measured(each, "cost/seconds") for each in filters])
        told = ", ".join(f"{count} {what}" for what, count in self.counts.items() if count or what != "not applicable")
        console.print(
            f"{len(plan.names)} backbones × {len(plan.tasks)} tasks × {len(plan.seeds)} seeds: {told}", markup=False
        )
        self._say_sums()

    def _left(self, name: str, seed: int) -> list[PlannedTask]:
        """The tasks that this backbone still has to do, counted."""
        left: list[PlannedTask] = []
        config = _config(self.plan, self.there, name, seed)
        try:
            backbone = backbones.create(**config) if config is not None else None
        except UserError as error:  # of a hub, and not fetched yet
            console.print(f"  note · {name}: {error}", style="dim", markup=False)
            backbone = None
        for task in self.plan.tasks:
            what = "to do"
            if backbone is not None and task.probe.needs_text and not backbone.has_text:
                what = "not applicable"
            elif backbone is not None and self._done(backbone, task, seed):
                what = "done"
            else:
                left.append(task)
            self.counts[what] += 1
        return left

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

    def _stage_cost(self, stage: PreviewStage) -> tuple[float, float] | None:
        what = stage.name.partition(" · ")[0].split()[-1]
        filters = {
            "train": (f"tags.stage = 'train' and tags.recipe = '{what}'", "cost/train_seconds"),
            "expert": (f"tags.stage = 'experts' and tags.expert = '{what}'", "cost/train_seconds"),
            "label": ("tags.stage = 'label'", "cost/label_seconds"),
        }
        return self._measured(*filters[stage.kind]) if stage.kind in filters else None

    def _measured(self, filter_string: str, metric: str) -> tuple[float, float] | None:
        """Median seconds and most bytes of earlier runs on this kind of device, None where there is none."""
        try:
            device = choose_device(self.plan.options.executor.task_device)
        except UserError:
            return None
        if self.tracker is None or (self.executor.has_gpus and device.type == "cpu"):
            return None  # how quick other machines' GPUs are is not known here
        filter_string += f" and tags.`device.kind` = '{device_kind(device)}' and attributes.status = 'FINISHED'"
        runs = [run.data.metrics for run in self.tracker.search(filter_string)]
        seconds = [metrics[metric] for metrics in runs if metric in metrics]
        if not seconds:
            return None
        return statistics.median(seconds), max(metrics.get("cost/disk_bytes", 0.0) for metrics in runs)

    def _say(self, name: str, kind: str, measured: list[tuple[float, float] | None], units: int = 1) -> None:
        """A line for units that are left; ``measured`` has what each of their parts took."""
        options = self.plan.options
        asked = needs(kind, self.executor, options.executor.task_device, options.num_workers)
        known = [each for each in measured if each is not None]
        seconds = sum(each[0] for each in known)
        took = f"about {_time(seconds)}" if len(known) == len(measured) else "time unknown"
        where = self.executor.where(asked["cpus"], asked["gpus"])
        console.print(f"  to do · {name}: {units} unit{'s' * (units > 1)}, {where}, {took}", markup=False)
        self.units += units
        self.seconds += seconds
        self.gpu_seconds += seconds * asked["gpus"]
        self.bytes += sum(each[1] for each in known)
        if len(known) < len(measured):
            self.unknown.append(name)

    def _say_sums(self) -> None:
        if not self.units:
            console.print("nothing is left to do", markup=False)
            return
        line = f"{self.units} units to do"
        if self.seconds:
            at_once = max(1, self.executor.width)
            line += f": about {_time(self.seconds / at_once)} with {at_once} at once, {gigabytes(self.bytes)} on disk"
            line += f", {self.gpu_seconds / 3600:.1f} GPU-hours" if self.gpu_seconds else ""
        console.print(line, markup=False)
        if self.unknown:
            more = f" and {len(self.unknown) - 4} more" if len(self.unknown) > 4 else ""
            names = ", ".join(self.unknown[:4]) + more
            console.print(
                f"not counted, since no earlier run on this kind of device is in MLflow: {names}", markup=False
            )


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
