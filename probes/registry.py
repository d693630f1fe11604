"""Probes by ``kind of dataset/name``, datasets and dense heads by name; and the tasks that probes
and datasets make."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from cliptex_common import registry as plugins
from cliptex_common.errors import UserError, suggest
from cliptex_common.registry import Registry, instance_of
from probes.base import Probe
from probes.datasets.base import DECLARED, DatasetSpec
from probes.dense.tasks import DENSE_TASKS
from reports.records import DECLARERS, Metric

PROBES: Registry[Probe] = Registry(
    "probe", "probes", instance_of(Probe, lambda probe: f"{probe.kind}/{probe.name}")
)
# kinds of dense heads, not trained ones: ``probes.dense.probe.register_head`` fills it, and
# ``PROBES`` with the probes of each
HEADS: Registry[Any] = Registry("head", "heads")
DATASETS: Registry[DatasetSpec] = Registry(
    "dataset", "datasets", instance_of(DatasetSpec), ("probes.catalog", "probes.experts")
)


def register_probe(probe: Probe) -> Probe:
    """Add a probe. Raises ``UserError`` when its kind and name are registered already."""
    return PROBES.register(f"{probe.kind}/{probe.name}", probe)


def register_dataset(spec: DatasetSpec) -> DatasetSpec:
    """Add a dataset of the calling module.

    Raises:
        UserError: its name is registered, or it lacks what datasets of its kind declare.
    """
    declared = DECLARED.get(spec.kind, {})
    if missing := [f"{key}, {about}" for key, about in declared.items() if key not in spec.extra]:
        raise UserError(
            f"dataset {spec.name!r} does not declare, in extra={{…}} of its DatasetSpec:"
            f" {'; '.join(missing)}"
        )
    if not spec.module:
        module = sys._getframe(1).f_globals["__name__"]  # of the caller
        if plugins.calling_plugin():  # configs cannot import a plugin's file
            module = __name__
        spec = replace(spec, module=module)
    return DATASETS.register(spec.name, spec)


def tasks() -> dict[str, tuple[DatasetSpec, Probe]]:
    """Every task, including those of other packages."""
    for registry in (DENSE_TASKS, HEADS):
        registry.load_entry_points()  # their probes too
    probes = PROBES.load_entry_points().values()
    return {
        f"{spec.name}/{probe.name}": (spec, _scored_on(spec, probe))
        for spec in DATASETS.load_entry_points().values()
        for probe in probes
        if probe.kind == spec.kind
    }


def _scored_on(spec: DatasetSpec, probe: Probe) -> Probe:
    return probe.with_main_metric(spec.extra.get("main_metric", ""))


def _declared_metrics(task: str, kind: str, main_metric: str) -> dict[str, Metric]:
    """The metrics of a task's probe, for reports; none of an unknown one."""
    dataset, _, name = task.partition(":")[0].partition("/")
    key = f"{kind}/{name}"
    if key not in PROBES:
        tasks()  # with those of other packages
    if key not in PROBES or (dataset in DATASETS and DATASETS[dataset].kind != kind):
        return {}
    return dict(PROBES[key].with_main_metric(main_metric).metrics)


DECLARERS.append(_declared_metrics)  # reports ask it for the metrics of a task


def trained_task(name: str) -> str:
    """The task that trains what a task is scored with: that of another dataset
    (``DatasetSpec.trained_on``) or probe (``Probe.head_of``), or the task itself."""
    spec, probe = find_task(name)
    if "train" not in probe.splits:
        return name
    trained = f"{spec.trained_on or spec.name}/{probe.head_of or probe.name}"
    return trained if trained != f"{spec.name}/{probe.name}" else name


def find_task(name: str) -> tuple[DatasetSpec, Probe]:
    """Dataset and probe of a task such as ``voc/pspnet``, or of a variant (``voc/pspnet:0.1``).

    Raises:
        UserError: no such dataset, or no such probe for it (suggests the nearest), or the package
            that provides it is broken.
    """
    name, _, _ = name.partition(":")
    dataset, _, probe = name.partition("/")
    if spec := DATASETS.get(dataset):
        key = f"{spec.kind}/{probe}"
        if key in PROBES:
            return spec, _scored_on(spec, PROBES[key])
    all_tasks = tasks()  # with those of other packages
    if name in all_tasks:
        return all_tasks[name]
    if dataset in DATASETS.broken:
        DATASETS.find(dataset)  # raises, and says what is broken
    if spec := DATASETS.get(dataset):
        if f"{spec.kind}/{probe}" in PROBES.broken:
            PROBES.find(f"{spec.kind}/{probe}")
        kinds = {each.kind for each in PROBES.values()}
        if spec.kind not in kinds:
            raise UserError(
                f"dataset {dataset!r} has kind {spec.kind!r}, which no probe is for;"
                f" {suggest(spec.kind, kinds)}"
            )
    raise UserError(f"no task {name!r}; {suggest(name, all_tasks)}")
