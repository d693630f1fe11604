"""What a run will do, decided before any work: backbones, tasks and their settings."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import backbones
import benchmark.catalog  # noqa: F401 – registers every dataset, probe and suite
from benchmark.axes import (
    SAMPLES,
    axes,
    is_numeric,
    read_values,
    sets_axis,
    split_variant,
    variants,
)
from benchmark.execution.progress import console
from benchmark.options import DataOptions, ExecutionOptions, RunOptions
from benchmark.records import PlannedTask
from benchmark.suites.registry import SUITES, Suite, SuiteArtifacts, find_suite, settings_in
from cliptex_common import plugins
from cliptex_common.device import Device, computes_in_bf16, current_device, planned_device
from cliptex_common.errors import UserError, suggest
from cliptex_common.settings import field_names, setting_of, with_changes
from cliptex_common.visible_devices import is_accelerator_name
from probes.datasets.check import DatasetNotFound, find_folder
from probes.datasets.specs.webdataset import register_folders
from probes.layers import requested_layer
from probes.protocols.base import find_preset
from probes.registry import PROBES, find_task


@dataclass(frozen=True)
class RunPlan:
    """What a run will do.

    Attributes:
        backbones: their names.
        overrides: setting → value, from ``--set``.
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

    def artifacts(self) -> SuiteArtifacts:
        """What the suite creates for this run; nothing is created yet."""
        # the suite trains nothing if the user brings weights
        names = self.backbones if self.options.weights is None else ()
        return self.suite.artifacts(self.experiment, names, self.seeds)

    def backbone_arguments(self, name: str, seed: int) -> dict[str, Any]:
        """Arguments of ``backbones.create`` for a backbone that the suite does not train."""
        weights = self.options.weights
        return {"name": name, "weights": None if weights is None else str(weights), "seed": seed}

    def as_config_file(self) -> dict[str, Any]:
        """The options as ``--config`` reads them: absolute paths, nothing about execution."""
        options = self.options
        values: dict[str, Any] = {
            "backbone": list(self.backbones),
            "only": True,
            "seed": self.seeds[0],
            "seeds": len(self.seeds),
            "suite": self.suite.name,
            "task": list(options.tasks),
            "set": dict(self.overrides),
            "partial": options.partial,
            "limit": options.limit,
            "data": {name: str(path.absolute()) for name, path in options.data.items()},
            "weights": options.weights and str(options.weights.absolute()),
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
    register_folders(options.data_root)
    suite = find_suite(options.suite) if options.suite else _suite_of(options.tasks)
    names, notes = _backbones(suite, options)
    if options.weights is not None and len(names) != 1:
        raise UserError(
            f"--weights applies to one backbone, but {len(names)} are given:"
            f" {', '.join(names)}; run them one by one"
        )
    for name in names:
        backbones.find(name.removeprefix("random/"))
    tasks, reasons = decide_precision(plan_tasks(suite, options.tasks, options.overrides), options)
    notes += reasons
    absent: Sequence[PlannedTask] = ()
    if suite.skips_absent_data and not options.tasks:
        tasks, absent = _split_by_folder(suite, tasks, options)
        if absent:
            notes.append(
                f"{len(absent)} of {len(tasks) + len(absent)} tasks of {suite.name} have no data:"
                f" {_folders(absent)}"
            )
    seeds = range(options.seed, options.seed + options.seeds)
    return RunPlan(options, suite, names, seeds, options.overrides, tasks, absent, notes)


def _suite_of(tasks: Sequence[str]) -> Suite:
    """The first suite, in order of registration (``mini`` before others), that lists all tasks;
    if none does, the first that accepts them."""
    for task in tasks:
        find_task(task)  # suggests the nearest name if no suite can have it
    suites = SUITES.load_entry_points().values()
    candidates = [
        suite
        for suite in suites
        if suite.images is None  # a quick look is asked for by its name
        and all(settings_in(suite, task) is not None for task in tasks)
    ]
    if not candidates:
        homes = {task: _suite_of([task]).name for task in tasks if len(tasks) > 1}
        listed = ", ".join(f"{task} of {name}" for task, name in homes.items()) or tasks[0]
        raise UserError(
            f"no suite has all of these tasks ({listed}); run those of one suite at a time"
        )
    names = {task.partition(":")[0] for task in tasks}
    return next((suite for suite in candidates if names <= set(suite.tasks)), candidates[0])


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
) -> tuple[list[PlannedTask], list[PlannedTask]]:
    """Tasks whose dataset has a folder, and the others. Raises ``UserError`` if none has one."""
    present, absent = [], []
    for task in tasks:
        try:
            find_folder(task.spec, options.data_root, options.data)
            present.append(task)
        except DatasetNotFound:
            absent.append(task)
    if not present:
        where = f"in {options.data_root}" if options.data_root else "given; add --data-root DIR"
        raise UserError(
            f"suite {suite.name!r}: none of its {len(tasks)} datasets is {where}; its folders are"
            f" {_folders(absent)}"
        )
    return present, absent


def _folders(tasks: Sequence[PlannedTask]) -> str:
    """``wds_cifar10, wds_mnist …``, at most six."""
    folders = list(dict.fromkeys(task.spec.folder for task in tasks))
    return ", ".join(folders[:6]) + " …" * (len(folders) > 6)


def plan_tasks(
    suite: Suite, requested: Sequence[str], overrides: Mapping[str, str]
) -> list[PlannedTask]:
    """The suite's tasks (or the requested ones) with their settings: the probe's defaults, changed
    by the suite, by a published protocol (``protocol=NAME``), and by the user, in this order.

    An override applies to every task that has the setting. A requested task may be one that the
    suite does not list, see ``settings_in``. Several values of an axis (``size=224,448``) make a
    variant of each task for every combination, called ``TASK:size=224``, and a requested variant
    fixes the axis. ``TASK:VALUE`` is TASK with this share of train or (few-shot) this number of
    shots.

    Raises:
        UserError: an unknown task, a task that is not in the suite, an override that changes no
            task, a protocol that does not apply, or an axis with too few or too many values.
    """
    tasks: dict[str, PlannedTask] = {}
    applied: set[str] = set()
    allowed = set(SAMPLES)
    for name in _requested_tasks(suite, requested):
        base = name.partition(":")[0]
        probe = find_task(base)[1]
        own_axes, fields = axes(probe), field_names(probe.settings_type)
        allowed |= fields | own_axes.keys()
        fixed = split_variant(name, probe)
        ranges = {axis: [value] for axis, value in fixed.items()}
        changes = {}
        for key, text in {**suite_ranges(suite, base), **overrides}.items():
            if key in fixed or not (setting_of(key) in fields or sets_axis(own_axes, key, text)):
                continue
            if key in own_axes and ("," in text or key in SAMPLES):
                ranges[key] = read_values(key, text)
            else:
                changes[own_axes.get(key, key)] = text
            applied.add(key)
        ranges = {axis: ranges[axis] for axis in own_axes if axis in ranges}  # one name each
        for task in variants(plan_task(suite, base, changes), ranges):
            _check_settings(task, {*changes, *ranges})
            tasks[task.name] = task
    for key, text in overrides.items():
        if key not in applied:
            hint = suggest(key, allowed)
            if owners := _probes_with(setting_of(key)):
                hint = f"it is a setting of {', '.join(owners)}"
            if key in allowed and not is_numeric(text):
                raise UserError(f"--set {key}={text}: the tasks take numbers or shares for {key}")
            if key in allowed:
                hint = "TASK:VALUE fixes it, and tasks without training do not have it"
            raise UserError(f"--set {key}: none of the tasks has this setting; {hint}")
    layers = [requested_layer(task.settings) for task in tasks.values()]
    encoded = tuple(dict.fromkeys(layer for layer in layers if layer is not None))
    return [replace(task, encoded_layers=encoded) for task in tasks.values()]


def print_notes(notes: Iterable[str]) -> None:
    """Print the notes of a plan."""
    for note in notes:
        console.print(note, style="dim", markup=False)


def _probes_with(setting: str) -> list[str]:
    """Names of the probes that have a setting or an axis."""
    probes = PROBES.load_entry_points().values()
    names = {
        probe.name
        for probe in probes
        if setting in field_names(probe.settings_type) or setting in axes(probe)
    }
    return sorted(names)


def decide_precision(
    tasks: Sequence[PlannedTask], options: ExecutionOptions, option: str = "--set"
) -> tuple[list[PlannedTask], list[str]]:
    """Tasks with bf16 in place of ``precision=auto`` where their device computes in it, else fp32;
    and a line that says so, if there are any.

    The device is that of ``options``; for ``auto`` on a cluster an accelerator, otherwise what this
    machine has.

    Args:
        option: of the command line that changes settings of tasks, for the line.

    Raises:
        UserError: torch knows no such device.
    """
    automatic = [task for task in tasks if getattr(task.settings, "precision", "") == "auto"]
    if not automatic:
        return list(tasks), []
    device: Device = options.device
    if device == "auto":
        is_cluster = options.executor == "slurm" or "address" in options.executor_arg
        device = planned_device("auto") if is_cluster else current_device()
    name = "the CPU" if not is_accelerator_name(str(device)) else str(device)
    if computes_in_bf16(device):
        precision = "bf16"
        note = f"precision bf16, in which {name} computes ({option} precision=fp32)"
    else:
        precision = "fp32"
        note = f"precision fp32: {name} only emulates bf16"
    decided = [
        replace(task, settings=replace(task.settings, precision=precision))
        if task in automatic
        else task
        for task in tasks
    ]
    return decided, [note]


def _requested_tasks(suite: Suite, requested: Sequence[str]) -> list[str]:
    """Names in the suite's order, then those that it does not list."""
    for name in requested:
        find_task(name)  # suggests the nearest name if there is no such task
        if settings_in(suite, name) is None:
            raise UserError(
                f"suite {suite.name!r} has no task {name!r}; {suggest(name, suite.tasks)}"
            )
    if not requested:
        return list(suite.tasks)
    order = {name: position for position, name in enumerate(suite.tasks)}
    return sorted(requested, key=lambda name: order.get(name.partition(":")[0], len(order)))


def suite_ranges(suite: Suite, name: str) -> dict[str, str]:
    """Axis → the values, separated by commas, that a suite gives it in a task."""
    own_axes, listed = axes(find_task(name)[1]), settings_in(suite, name) or {}
    texts = {axis: str(value) for axis, value in listed.items() if axis in own_axes}
    return {axis: text for axis, text in texts.items() if "," in text}


def plan_task(suite: Suite, name: str, changes: Mapping[str, str]) -> PlannedTask:
    """A task with its settings: of the suite, of its protocol, and of the user.

    Raises:
        UserError: an unknown task, setting or value.
    """
    spec, probe = find_task(name)
    ranges = suite_ranges(suite, name)
    listed = settings_in(suite, name) or {}
    values = {key: value for key, value in listed.items() if key not in ranges}
    # not listed: the values come from tasks with other probes; drop settings that this probe lacks
    if name not in suite.tasks:
        fields = field_names(probe.settings_type)
        values = {key: value for key, value in values.items() if setting_of(key) in fields}
    protocol = {**values, **changes}.get("protocol")
    if protocol is not None:
        values |= find_preset(protocol, spec, probe).settings
        values["protocol"] = protocol
    defaults = with_changes(probe.settings_type(), getattr(probe, "defaults", {}))
    return PlannedTask(name, with_changes(defaults, {**values, **changes}))


def _check_settings(task: PlannedTask, changed: Collection[str]) -> None:
    """Raise ``UserError`` where settings of a task contradict each other; ``changed``: those that
    the user, or an axis, sets."""
    if check := getattr(task.probe, "check_settings", None):
        check(task.settings)
    epochs = getattr(task.settings, "epochs", 0)
    if "max_iters" in changed and "epochs" not in changed and epochs:
        raise UserError(
            f"--set max_iters changes nothing in {task.name}, whose length is epochs={epochs:g};"
            " set epochs=0 as well, or epochs"
        )
