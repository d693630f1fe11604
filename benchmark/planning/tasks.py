"""The tasks of a run with their settings. A setting that is declared an axis makes a variant of a
task for each of its values (``--set layers=3,6,9,12``)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import product
from types import MappingProxyType
from typing import Any

from benchmark.probing.records import PlannedTask, StoredHeads
from benchmark.suites.registry import SUITES, Suite, find_suite
from cliptex_common.errors import UserError, suggest
from cliptex_common.settings import (
    axes_of,
    field_names,
    setting_of,
    split_task,
    with_changes,
)
from probes.base import Probe
from probes.layers import requested_layer
from probes.protocols.base import find_preset
from probes.registry import PROBES, find_task, trained_task

# Axes of how much is trained on. Variants are named by their values alone (``voc/linear:0.1``), and
# a single value makes one, too.
TRAIN_SIZES = ("train_share", "shots")


def choose_suite(name: str | None, tasks: Sequence[str]) -> Suite:
    """The suite called ``name``; without a name the first that accepts all tasks, if possible one
    that lists them all. If none accepts them, a suite of these tasks alone, each with the settings
    that its own suite gives it. Suites are in order of registration, ``mini`` first.

    Raises:
        UserError: no such suite or task, or tasks of two suites that make their own data.
    """
    if name:
        return find_suite(name)
    candidates = [
        suite
        for suite in SUITES.load_entry_points().values()
        if suite.images is None  # a quick look is asked for by its name
        and all(settings_in(suite, task) is not None for task in tasks)
    ]
    names = list(dict.fromkeys(task.partition(":")[0] for task in tasks))
    if not candidates:
        return _combined_suite(names)
    return next((suite for suite in candidates if suite.tasks.keys() >= set(names)), candidates[0])


def _combined_suite(tasks: Sequence[str]) -> Suite:
    """See ``choose_suite``."""
    if len(tasks) == 1:
        raise UserError(f"no suite has the task {tasks[0]}; name one that does with --suite")
    owners = {task: choose_suite(None, [task]) for task in tasks}
    suites = list({owner.name: owner for owner in owners.values()}.values())
    makers = [suite for suite in suites if suite.pipeline]
    if len(makers) > 1:
        listed = ", ".join(f"{task} of {owner.name}" for task, owner in owners.items())
        raise UserError(f"two of these suites make their own data ({listed}); run them apart")
    settings = {task: settings_in(owner, task) or {} for task, owner in owners.items()}
    name = "+".join(suite.name for suite in suites)
    if makers:
        return replace(makers[0], name=name, tasks=settings)
    return Suite(name, about="tasks of several suites", tasks=settings)


def settings_in(suite: Suite, task: str) -> Mapping[str, Any] | None:
    """A suite's changes to the settings of a task, or None if it does not accept the task.

    A variant (``TASK:VALUE``) has the settings of its task, and a task that is scored with what
    another one trains has those of that one. A task that the suite does not list is accepted if the
    suite lists others on its dataset, which it is like (``_shared_settings``), or if
    ``any_dataset`` allows it.
    """
    task = task.partition(":")[0]
    trained = trained_task(task)
    for name in (trained, task):
        if name in suite.tasks:
            return suite.tasks[name]
    dataset = _dataset(trained)
    if names := [name for name in suite.tasks if _dataset(name) == dataset]:
        return _shared_settings(suite, names, find_task(trained)[1])
    suites = SUITES.load_entry_points().values()
    listed = {_dataset(name) for each in suites for name in each.tasks}
    return {} if suite.any_dataset and dataset not in listed else None


def _shared_settings(suite: Suite, names: Sequence[str], probe: Probe) -> dict[str, Any]:
    """The changes that a suite makes in all these tasks, as far as ``probe`` has the settings. If
    some of the tasks have its type of settings, only they count."""
    of_type = [name for name in names if find_task(name)[1].settings_type is probe.settings_type]
    first, *rest = [suite.tasks[name] for name in of_type or names]
    fields, ranges = field_names(probe.settings_type), axis_ranges(first, axes(probe))
    return {
        key: value
        for key, value in first.items()
        if (setting_of(key) in fields or key in ranges)
        and all(each.get(key) == value for each in rest)
    }


def _dataset(task: str) -> str:
    return task.partition("/")[0]


def train_size_axis(probe: Probe) -> str:
    """``shots`` or ``train_share``, whichever ``:VALUE`` sets; '' if the probe is not trained."""
    if "shots" in field_names(probe.settings_type):
        return "shots"
    return "train_share" if "train" in probe.splits else ""


def axes(probe: Probe) -> dict[str, str]:
    """Axis → the setting that it changes."""
    train_size = {name: name for name in [train_size_axis(probe)] if name}
    return {**train_size, **axes_of(probe.settings_type)}


def is_axis_value(own_axes: Mapping[str, str], key: str, text: str) -> bool:
    """Whether ``--set KEY=TEXT`` gives values of one of these axes. One that is not called like its
    setting (``layers`` changes ``features``) has only numbers and shares as values."""
    field = own_axes.get(key)
    return field is not None and (field == key or is_numeric(text))


def is_numeric(text: str) -> bool:
    """Whether a text has no words, only numbers and shares."""
    return set(text) <= set("0123456789.%, ")


def split_variant(name: str, probe: Probe) -> dict[str, str]:
    """The axes that a task's name fixes: ``voc/linear:0.1:size=224`` → ``{"train_share": "0.1",
    "size": "224"}``.

    Raises:
        UserError: the probe has no such axis.
    """
    task, *parts = name.split(":")
    fixed: dict[str, str] = {}
    for part in filter(None, parts):
        axis, equals, value = part.partition("=")
        if not equals:
            axis, value = train_size_axis(probe), part
        if not axis:
            raise UserError(
                f"{name}: {task} trains on nothing and has no variants; leave :{part} out"
            )
        if axis not in axes(probe):
            raise UserError(f"{name}: {task} has no axis {axis!r}, only {', '.join(axes(probe))}")
        fixed[axis] = value
    return fixed


def read_values(axis: str, text: str) -> list[str]:
    """The values of an axis as ``--set`` has them, each once. Raises ``UserError`` for a comma
    without two different values."""
    values = list(dict.fromkeys(part.strip() for part in text.split(",")))
    if "," in text and (len(values) < 2 or "" in values):
        raise UserError(
            f"--set {axis}={text}: an axis has two or more different values, separated by single"
            " commas; for one value leave the comma out"
        )
    return values


def _with_value(task: PlannedTask, axis: str, setting: str, value: str) -> PlannedTask:
    """The task with one value of an axis, which joins its name. A share or a number of shots that
    the task has anyway does not."""
    if axis == "train_share":
        changed = with_changes(task, {axis: value})
        actual = changed.train_share
    else:
        changed = replace(task, settings=with_changes(task.settings, {setting: value}))
        actual = getattr(changed.settings, setting)
    if axis in TRAIN_SIZES:
        return task if changed == task else replace(changed, name=f"{task.name}:{actual}")
    if isinstance(actual, tuple):
        (actual,) = actual
    return replace(changed, name=f"{task.name}:{axis}={actual}")


def plan_tasks(
    suite: Suite,
    requested: Sequence[str],
    overrides: Mapping[str, str],
    heads: Mapping[str, StoredHeads] = MappingProxyType({}),
) -> list[PlannedTask]:
    """The suite's tasks (or the requested ones) with their settings: the probe's defaults, changed
    by the suite, by a published protocol (``protocol=NAME``), and by the user, in this order.

    An override applies to every task that has the setting; ``TASK.SETTING`` applies to that task
    and takes precedence. A requested task may be one that the suite does not list, see
    ``settings_in``. Several values of an axis (``size=224,448``) make a variant of each task for
    every combination, called ``TASK:size=224``, and a requested variant fixes the axis.
    ``TASK:VALUE`` is TASK with this share of train or (few-shot) this number of shots. A task that
    is scored with what another one trains has the settings of that one, which is planned, too, if
    it trains a head.

    Args:
        heads: task → stored heads, which are used instead, with the settings that they have.

    Raises:
        UserError: an unknown task, a task that is not in the suite, an override that changes no
            task, a protocol that does not apply, an axis with too few values, or heads for no task.
    """
    tasks: dict[str, PlannedTask] = {}
    # in these three, the task '' stands for all tasks
    requests = {split_task(key): text for key, text in overrides.items()}
    applied: set[tuple[str, str]] = set()  # task and setting
    allowed = {"": set(TRAIN_SIZES)}  # task → its settings and axes
    for name in _in_order(suite, requested or list(suite.tasks)):
        base = name.partition(":")[0]
        trained = trained_task(base)
        listed = settings_in(suite, name)
        probe = find_task(name)[1]
        if listed is None:
            owner = choose_suite(None, [base]).name
            raise UserError(
                f"suite {suite.name!r} has no task {name!r}, suite {owner!r} has; without --suite"
                " each task has the settings of its own suite"
            )
        allowed[trained] = field_names(probe.settings_type) | axes(probe).keys()
        allowed[""] |= allowed[trained]
        texts = axis_ranges(listed, axes(probe))
        for scope in ("", trained):  # what is set of this task alone comes last
            texts |= {setting: text for (task, setting), text in requests.items() if task == scope}
        used, variants = _plan_variants(name, listed, texts)
        applied |= {(scope, key) for scope in ("", trained) for key in used}
        tasks |= {task.name: task for task in variants}
    for (task, key), text in requests.items():
        if task not in allowed:
            raise UserError(f"--set {task}.{key}: no such task is chosen; {suggest(task, allowed)}")
        if (task, key) not in applied:
            raise _unused_override(task, key, text, allowed[task])
    for name in heads.keys() - requested:  # not trained again, although the suite lists it
        tasks.pop(name, None)
    for planned in list(tasks.values()):
        if not planned.uses_head:
            continue
        training_task = planned.training_task
        stored = heads.get(training_task.name)
        if stored and stored.kind == planned.spec.kind:
            tasks[planned.name] = _with_heads(planned, stored, requests)
        else:
            tasks.setdefault(training_task.name, training_task)
    used_heads = {planned.training_task.name for planned in tasks.values() if planned.heads}
    if unused := heads.keys() - used_heads:
        raise UserError(f"--head: no chosen task is scored with the head of {', '.join(unused)}")
    layers = [requested_layer(planned.settings) for planned in tasks.values()]
    encoded = tuple(dict.fromkeys(layer for layer in layers if layer is not None))
    return [replace(planned, encoded_layers=encoded) for planned in tasks.values()]


def _plan_variants(
    name: str, listed: Mapping[str, Any], texts: Mapping[str, str]
) -> tuple[Collection[str], list[PlannedTask]]:
    """The keys of ``texts`` that a task has, and a variant of the task for every combination of
    their axes' values; without axes the task itself.

    Args:
        name: of the task, or of a variant, which fixes axes.
        listed: the suite's changes to its settings.
        texts: setting or axis → value, or values, as ``--set`` has them.
    """
    task, probe = name.partition(":")[0], find_task(name)[1]
    own_axes, fields = axes(probe), field_names(probe.settings_type)
    ranges = {axis: [value] for axis, value in split_variant(name, probe).items()}
    used = {
        key: text
        for key, text in texts.items()
        if key not in ranges and (setting_of(key) in fields or is_axis_value(own_axes, key, text))
    }
    changes = {}
    for key, text in used.items():
        if key in own_axes and ("," in text or key in TRAIN_SIZES):
            ranges[key] = read_values(key, text)
        else:
            changes[own_axes.get(key, key)] = text
    ranges = {axis: ranges[axis] for axis in own_axes if axis in ranges}  # one order, so one name
    planned = replace(_planned(trained_task(task), listed, changes), name=task)
    variants = []
    for values in product(*ranges.values()):
        variant = planned
        for axis, value in zip(ranges, values, strict=True):
            variant = _with_value(variant, axis, own_axes[axis], value)
        _check_settings(variant, {*changes, *ranges})
        variants.append(variant)
    return used, variants


def _with_heads(
    task: PlannedTask, heads: StoredHeads, requests: Mapping[tuple[str, str], str]
) -> PlannedTask:
    """The task with stored heads and their settings. Raises ``UserError`` if ``requests``, (task or
    '', setting) → text, have another value of one."""
    trained, settings = task.training_task.name, task.probe.settings_type()
    settings = with_changes(settings, heads.conditions["settings"])
    for (scope, key), text in requests.items():
        applies = scope in ("", trained.partition(":")[0])
        is_setting = setting_of(key) in field_names(type(settings))
        if applies and is_setting and with_changes(settings, {key: text}) != settings:
            raise UserError(
                f"--set {key}={text}: the head of {trained} was trained with"
                f" {getattr(settings, setting_of(key))}, and heads keep their settings"
            )
    return replace(task, settings=settings, heads=heads)


def _in_order(suite: Suite, names: Sequence[str]) -> list[str]:
    """Names of tasks in the suite's order, then those that it does not list."""
    order = {name: position for position, name in enumerate(suite.tasks)}
    return sorted(names, key=lambda name: order.get(name.partition(":")[0], len(order)))


def _unused_override(task: str, key: str, text: str, allowed: Collection[str]) -> UserError:
    """The error of an override that changes no task, or not ``task``, whose settings and axes are
    ``allowed``."""
    if key in allowed and not is_numeric(text):
        return UserError(f"--set {key}={text}: the tasks take numbers or shares for {key}")
    hint = suggest(key, allowed)
    if owners := _probes_with(setting_of(key)):
        hint = f"it is a setting of {', '.join(owners)}"
    if key in allowed:
        hint = "TASK:VALUE fixes it, and tasks without training do not have it"
    if task:
        return UserError(f"--set {task}.{key}: {task} does not have this setting; {hint}")
    return UserError(f"--set {key}: none of the tasks has this setting; {hint}")


def _probes_with(setting: str) -> list[str]:
    """Names of the probes that have a setting or an axis."""
    probes = PROBES.load_entry_points().values()
    names = {
        probe.name
        for probe in probes
        if setting in field_names(probe.settings_type) or setting in axes(probe)
    }
    return sorted(names)


def axis_ranges(settings: Mapping[str, Any], own_axes: Mapping[str, str]) -> dict[str, str]:
    """Axis → its values, separated by commas, of a suite's settings."""
    return {
        axis: str(value)
        for axis, value in settings.items()
        if axis in own_axes and "," in str(value)
    }


def plan_task(suite: Suite, name: str, changes: Mapping[str, str]) -> PlannedTask:
    """A task with its settings: of the suite, of its protocol, and of the user.

    Raises:
        UserError: an unknown task, setting or value.
    """
    return _planned(name, settings_in(suite, name) or {}, changes)


def _planned(name: str, listed: Mapping[str, Any], changes: Mapping[str, str]) -> PlannedTask:
    """A task with a suite's settings for it, and with the user's ``changes``."""
    spec, probe = find_task(name)
    ranges = axis_ranges(listed, axes(probe))
    fixed = ranges.keys() | probe.defaults.keys()  # a suite changes no config file of a user
    values = {key: value for key, value in listed.items() if key not in fixed}
    protocol = {**values, **changes}.get("protocol")
    if protocol is not None:
        values |= find_preset(protocol, spec, probe).settings
        values["protocol"] = protocol
    defaults = with_changes(probe.settings_type(), probe.defaults)
    return PlannedTask(name, with_changes(defaults, {**values, **changes}))


def _check_settings(task: PlannedTask, changed: Collection[str]) -> None:
    """Raise ``UserError`` where a setting that the user, or an axis, sets changes nothing."""
    epochs = getattr(task.settings, "epochs", 0)
    if "max_iters" in changed and "epochs" not in changed and epochs:
        raise UserError(
            f"--set max_iters changes nothing in {task.name}, whose length is epochs={epochs:g};"
            " set epochs=0 as well, or epochs"
        )
