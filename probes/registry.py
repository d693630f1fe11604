"""Probes by ``kind of dataset/name``, datasets by name: one file and one registration each."""

from __future__ import annotations

import sys
from dataclasses import replace

from common.errors import UserError, nearest
from common.registry import Registry, instance_of
from probes.base import Probe
from probes.datasets.base import DatasetSpec
from reports.metrics import Metric

_is_probe = instance_of(Probe, lambda probe: f"{probe.kind}/{probe.name}")


def _declares_metrics(given: str, probe: Probe) -> Probe:
    """A ``check`` of entry points: a package from before metrics were declared is told what to
    do."""
    _is_probe(given, probe)
    if not all(isinstance(metric, Metric) for metric in probe.metrics.values()):
        raise TypeError(
            f"metrics of {given} must be given as probes.base.Metric (direction, unit, range,"
            " label)"
        )
    return probe


PROBES: Registry[Probe] = Registry("probe", "probes", _declares_metrics)
DATASETS: Registry[DatasetSpec] = Registry("dataset", "datasets", instance_of(DatasetSpec))


def register_probe(probe: Probe) -> Probe:
    """Add a probe. Raises ``ValueError`` when its place is taken."""
    return PROBES.register(f"{probe.kind}/{probe.name}", probe)


def register_dataset(spec: DatasetSpec) -> DatasetSpec:
    """Add a dataset, which the calling module declares. Raises ``ValueError`` when its name is
    taken."""
    if not spec.module:
        spec = replace(spec, module=sys._getframe(1).f_globals["__name__"])
    return DATASETS.register(spec.name, spec)


def tasks() -> dict[str, tuple[DatasetSpec, Probe]]:
    """Every task, those of other packages included."""
    probes = PROBES.load_entry_points().values()
    return {
        f"{spec.name}/{probe.name}": (spec, _on(probe, spec))
        for spec in DATASETS.load_entry_points().values()
        for probe in probes
        if probe.kind == spec.kind
    }


def _on(probe: Probe, spec: DatasetSpec) -> Probe:
    """The probe as it is scored on this dataset, where it is told."""
    return probe.on(spec) if hasattr(probe, "on") else probe


def find_task(name: str) -> tuple[DatasetSpec, Probe]:
    """Dataset and probe of a task name such as ``voc/pspnet``, or of a variant of one
    (``voc/pspnet:0.1``).

    Raises:
        UserError: there is no such dataset or it has no such probe (names the nearest), or the
            package that brings it is broken.
    """
    name, _, _ = name.partition(":")
    dataset, _, probe = name.partition("/")
    if (spec := DATASETS.get(dataset)) and (place := f"{spec.kind}/{probe}") in PROBES:
        return spec, _on(PROBES[place], spec)
    known = tasks()
    if name in known:
        return known[name]
    if dataset in DATASETS.broken:
        DATASETS.find(dataset)
    if dataset in DATASETS and (place := f"{DATASETS[dataset].kind}/{probe}") in PROBES.broken:
        PROBES.find(place)
    raise UserError(f"no task {name!r}; {nearest(name, known)}")
