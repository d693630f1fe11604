"""What a run will do, decided before any work: backbones, tasks and their settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import backbones
import benchmark.suites.catalog  # noqa: F401 – registers every dataset, probe and suite
from benchmark.execution.device import decide_precision
from benchmark.planning.heads import stored_heads
from benchmark.planning.options import DataOptions, RunOptions
from benchmark.planning.tasks import choose_suite, plan_tasks
from benchmark.probing.records import PlannedTask
from benchmark.suites.registry import SUITES, Suite, find_suite
from cliptex_common import plugins
from cliptex_common.errors import UserError
from probes.checks.check import DatasetNotFound, find_folder
from probes.datasets.base import UnfitCopy
from probes.features.budget import chosen_limit


@dataclass(frozen=True)
class RunPlan:
    """What a run will do.

    Attributes:
        backbones: their names.
        overrides: setting, or TASK.SETTING, → value, from ``--set``.
        absent: tasks of the suite that are left out because their data have no folder.
        notes: lines to print first.
    """

    options: RunOptions
    suite: Suite
    backbones: Sequence[str]
    seeds: Sequence[int]
    overrides: Mapping[str, str]
    tasks: Sequence[PlannedTask]
    absent: Sequence[PlannedTask] = ()
    notes: Sequence[str] = ()

    @property
    def experiment(self) -> str:
        return self.options.experiment or self.suite.name

    @property
    def rows(self) -> list[tuple[str, int]]:
        """Name and seed of each backbone."""
        return [(name, seed) for seed in self.seeds for name in self.backbones]

    def as_config_file(self) -> dict[str, Any]:
        """The options as a ``--config`` file of the same run: absolute paths, nothing about
        execution."""
        options = self.options
        values: dict[str, Any] = {
            "backbone": list(self.backbones),
            "only": True,
            "seed": self.seeds[0],
            "seeds": len(self.seeds),
            "suite": self.suite.name if self.suite.name in SUITES else None,
            "task": list(options.tasks),
            "set": dict(self.overrides),
            "partial": options.partial,
            "limit": options.limit,
            "data": {name: str(path.absolute()) for name, path in options.data.items()},
            "weights": options.weights and str(options.weights.absolute()),
            "head": list(options.heads),
            "data-root": options.data_root and str(options.data_root.absolute()),
            "experiment": self.experiment,
            "plugin": [path for path, _ in plugins.loaded()],
        }
        return {key: value for key, value in values.items() if value or key == "seed"}


def make_plan(options: RunOptions) -> RunPlan:
    """The plan of a run.

    Raises:
        UserError: an unknown backbone, suite, task or setting, or options that contradict each
            other.
    """
    chosen_limit()  # a wrong one would only show when features are first cached
    heads = stored_heads(options.heads)
    suite = find_suite(options.suite) if options.suite else choose_suite(options.tasks)
    tasks = plan_tasks(suite, options.tasks, options.overrides, heads)
    names, notes = _backbones(suite, options)
    if options.weights is not None and len(names) != 1:
        raise UserError(
            f"--weights applies to one backbone, but {len(names)} are given:"
            f" {', '.join(names)}; run them one by one"
        )
    for name in names:
        backbones.find(name.removeprefix("random/"))
    absent: Sequence[PlannedTask] = ()
    chosen = {name.partition(":")[0] for name in options.tasks or suite.tasks}
    if added := [task.name for task in tasks if task.name.partition(":")[0] not in chosen]:
        notes.append(f"{', '.join(added)}: trained here, because other tasks use its head")
    if suite.skips_absent_data and not options.tasks:
        tasks, absent, unfit = _split_by_folder(suite, tasks, options)
        if absent:
            notes.append(
                f"{len(absent)} of {len(tasks) + len(absent)} tasks of {suite.name} have no data:"
                f" {_folders(absent)}"
            )
        notes += [f"{name} is left out: {reason}" for name, reason in unfit.items()]
    if any(task.is_precision_open for task in tasks):
        precision, note = decide_precision(options)
        tasks = [task.with_precision(precision) for task in tasks]
        notes.append(note)
    seeds = range(options.seed, options.seed + options.seeds)
    return RunPlan(options, suite, names, seeds, options.overrides, tasks, absent, notes)


def _backbones(suite: Suite, options: RunOptions) -> tuple[list[str], list[str]]:
    """Names of the backbones to run, and notes about them. Raises ``UserError`` if there are none.

    If there is exactly one name and it is a key of ``Suite.backbone_sets``, that set runs instead.
    A set that contains its own name is a backbone with its baselines (see ``Suite``); with
    ``--only`` or ``--weights``, only the backbone runs.
    """
    names = list(dict.fromkeys(options.backbones)) or list(suite.default_backbones)
    if not names:
        raise UserError(f"suite {suite.name} has no default backbones; give --backbone NAME")
    if len(names) != 1 or names[0] not in suite.backbone_sets:
        return names, []
    name, members = names[0], list(suite.backbone_sets[names[0]])
    if name not in members:
        return members, [f"{name} stands for {', '.join(members)}"]
    if options.only or options.weights is not None or members == names:
        return names, []
    baselines = ", ".join(member for member in members if member != name)
    return members, [f"{name} runs beside its baselines {baselines} (--only: without them)"]


def _split_by_folder(
    suite: Suite, tasks: Sequence[PlannedTask], options: DataOptions
) -> tuple[list[PlannedTask], list[PlannedTask], dict[str, str]]:
    """Tasks whose dataset has a folder, tasks whose dataset has none, and dataset → reason of unfit
    copies, whose tasks are in neither. Raises ``UserError`` if no task has a folder."""
    present, absent, unfit = [], [], {}
    for task in tasks:
        try:
            for each in task.with_training_task:
                each.spec.at(find_folder(each.spec, options.data_root, options.data))
            present.append(task)
        except DatasetNotFound:
            absent.append(task)
        except UnfitCopy as error:
            unfit[task.spec.name] = str(error)
    if not present:
        where = f"in {options.data_root}" if options.data_root else "given; add --data-root DIR"
        raise UserError(
            f"suite {suite.name!r}: none of its {len(tasks)} datasets is {where}; its folders are"
            f" {_folders(absent)}"
        )
    return present, absent, unfit


def _folders(tasks: Sequence[PlannedTask]) -> str:
    """``wds_cifar10, wds_mnist …``, at most six."""
    folders = list(dict.fromkeys(task.spec.folder for task in tasks))
    return ", ".join(folders[:6]) + " …" * (len(folders) > 6)
