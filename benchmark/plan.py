"""What a run will do, decided and checked before any work: tasks, their settings, and the identity
of each cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from backbones import Backbone, UserError
from backbones.versions import PROBING, versions
from benchmark.suites.registry import Suite, settings_in
from common.errors import nearest
from common.files import content_key
from common.settings import field_names, read_value, with_changes
from probes.base import Probe
from probes.datasets.base import DatasetSpec, PreparedDataset
from probes.datasets.share import with_share
from probes.protocols.base import find_preset, preset_deviations
from probes.registry import find_task


@dataclass(frozen=True)
class PlannedTask:
    """A task with the settings it will run with, and the share of train that it is trained on."""

    name: str
    spec: DatasetSpec
    probe: Probe
    settings: Any
    train_share: float = 1.0

    def of(self, data: PreparedDataset, seed: int) -> PreparedDataset:
        """The dataset with the share of train that is trained on."""
        return with_share(data, self.train_share, seed)

    def deviations(self, data: PreparedDataset) -> list[str]:
        """What differs from the published protocol that the settings name, one line; none for the
        suite's own."""
        preset = (
            find_preset(self.settings.protocol, self.spec, self.probe)
            if has_protocol(self.probe)
            else None
        )
        found = preset_deviations(preset, self.settings, data.spec) if preset else []
        found += (
            [f"train_share={self.train_share:g}"]
            if preset and preset.settings and self.train_share < 1
            else []
        )
        return [f"differs from {self.settings.protocol}: {', '.join(found)}"] if found else []

    def protocol(self, data: PreparedDataset) -> dict[str, Any]:
        """All that a number of this task depends on besides the backbone and the seed; two runs
        whose protocols differ must not stand in one column."""
        return {
            "task": self.name,
            "version": self.probe.version,
            "libraries": versions(*PROBING),
            "settings": asdict(self.settings),
            **({"train_share": self.train_share} if self.train_share < 1 else {}),
            "dataset": {
                "name": self.spec.name,
                "fingerprint": data.fingerprint,
                "partial": data.partial,
                "extra": dict(data.spec.extra),
            },
        }


def split_names(values: Sequence[str]) -> list[str]:
    """Repeatable and comma-separated: ``["a,b", "c"]`` → ``["a", "b", "c"]``, without repeats, in
    order. Raises ``UserError`` where something was given that names nothing."""
    names = list(
        dict.fromkeys(name.strip() for value in values for name in value.split(",") if name.strip())
    )
    if values and not names:
        raise UserError(
            f"{values[0]!r} names nothing; give names separated by commas, or leave the option out"
        )
    return names


def plan_tasks(
    suite: Suite, chosen: Sequence[str], overrides: Mapping[str, str]
) -> list[PlannedTask]:
    """The suite's tasks (or the chosen ones), each with its settings: the probe's defaults, over
    them the suite's, over them those of a published protocol (``protocol=NAME``), over all the
    user's.

    An override applies to every task that has such a setting. A chosen task that the suite does not
    list is one all the same where it has others on that dataset; see ``settings_in``. A task named
    ``TASK:VALUE`` is a variant of it, with that share of train or (few-shot) so many shots;
    ``train_share=0.01,0.1,1`` and ``shots=1,5`` make several of each that can have them.

    Raises:
        UserError: unknown task, a task that is not in the suite, a setting that no chosen task has,
            or a protocol that does not apply to one of them.
    """
    names = list(suite.tasks)
    if chosen:
        for name in chosen:
            find_task(name)  # says the nearest when it exists nowhere
            if settings_in(suite, name) is None:
                raise UserError(
                    f"suite {suite.name!r} has no task {name!r}; {nearest(name, suite.tasks)}"
                )
        names = [name for name in suite.tasks if name in chosen]
        names += [name for name in chosen if name not in names]
    tasks: dict[str, PlannedTask] = {}
    used, known = set[str](), set(AXES)
    for variant in [variant for name in names for variant in _variants(name, overrides)]:
        name, _, value = variant.partition(":")
        spec, probe = find_task(name)
        axis = axis_of(probe)
        used |= {axis} if value else set()
        fields, given = field_names(probe.settings_type), settings_in(suite, name) or {}
        if name not in suite.tasks:  # they are other probes'
            given = {key: value for key, value in given.items() if key in fields}
        fitting = {key: value for key, value in overrides.items() if key in fields - AXES}
        known |= fields
        used |= set(fitting)
        changes = {**given, **fitting}
        if "protocol" in changes:
            changes = {**given, **find_preset(changes["protocol"], spec, probe).settings, **fitting}
        settings = with_changes(probe.settings_type(), changes)
        if (
            "max_iters" in fitting
            and "epochs" not in fitting
            and (epochs := getattr(settings, "epochs", 0))
        ):
            raise UserError(
                f"--set max_iters changes nothing in {name}, whose length is epochs={epochs:g}; set"
                " epochs=0 as well, or epochs"
            )
        task = PlannedTask(name, spec, probe, settings)
        task = _variant(task, axis, value) if value else task
        tasks[task.name] = task
    for key in overrides:
        if key not in used:
            raise UserError(f"--set {key}: no chosen task has this setting; {nearest(key, known)}")
    return list(tasks.values())


AXES = frozenset(
    {"train_share", "shots"}
)  # settings of which a task can have several, each a variant of it


def axis_of(probe: Probe) -> str:
    """What variants of a probe's tasks differ in; '' where it trains on nothing."""
    return (
        "shots"
        if "shots" in field_names(probe.settings_type)
        else "train_share"
        if "train" in probe.splits
        else ""
    )


def _variants(name: str, overrides: Mapping[str, str]) -> list[str]:
    values = overrides.get(axis_of(find_task(name)[1]), "") if ":" not in name else ""
    return [f"{name}:{value.strip()}" for value in values.split(",")] if values else [name]


def _variant(task: PlannedTask, axis: str, value: str) -> PlannedTask:
    """The task as it is with this value of its axis; the task itself where it has that anyway.

    Raises:
        UserError: the value does not fit, or the task trains on nothing.
    """
    if not axis:
        raise UserError(
            f"{task.name}:{value}: {task.name} trains on nothing, so that it has no variants; leave"
            f" :{value} out"
        )
    if axis == "shots":
        settings = with_changes(task.settings, {axis: value})
        return (
            task
            if settings == task.settings
            else replace(task, name=f"{task.name}:{settings.shots}", settings=settings)
        )
    share = read_value(axis, value, float)
    if not 0 < share <= 1:
        raise UserError(
            f"train_share={value} is not possible; it must be a share of train above 0, 1 at most"
        )
    return task if share == 1 else replace(task, name=f"{task.name}:{share:g}", train_share=share)


def has_protocol(probe: Probe) -> bool:
    """Whether a probe knows published protocols."""
    return "protocol" in field_names(probe.settings_type)


def find_planned(name: str) -> Probe | None:
    """The probe of a task, None where the name is no task's."""
    try:
        return find_task(name)[1]
    except UserError:
        return None


def cell_key(backbone: Backbone, protocol: Mapping[str, Any], seed: int) -> str:
    """Identity of one number: same backbone weights and layers, same protocol, same seed."""
    return content_key({"backbone": backbone.identity(), "protocol": protocol, "seed": seed})
