"""Probes by (kind of dataset, name), datasets by name: one file and one registration each."""

from __future__ import annotations

from backbones.errors import UserError, nearest
from probes.base import Probe
from probes.datasets.base import DatasetSpec, Kind

PROBES: dict[tuple[Kind, str], Probe] = {}
DATASETS: dict[str, DatasetSpec] = {}


def register_probe(probe: Probe) -> Probe:
    """Add a probe. Raises ``ValueError`` when its place is taken."""
    place = (probe.kind, probe.name)
    if place in PROBES:
        raise ValueError(f"there is a probe {probe.name!r} for {probe.kind} already")
    PROBES[place] = probe
    return probe


def register_dataset(spec: DatasetSpec) -> DatasetSpec:
    """Add a dataset. Raises ``ValueError`` when its name is taken."""
    if spec.name in DATASETS:
        raise ValueError(f"there is a dataset {spec.name!r} already")
    DATASETS[spec.name] = spec
    return spec


def find_task(name: str) -> tuple[DatasetSpec, Probe]:
    """Dataset and probe of a task name such as ``voc/pspnet``.

    Raises:
        UserError: there is no such dataset or it has no such probe; names the nearest.
    """
    known = {
        f"{spec.name}/{probe}": (spec, PROBES[kind, probe])
        for spec in DATASETS.values()
        for kind, probe in PROBES
        if kind == spec.kind
    }
    if name not in known:
        raise UserError(f"no task {name!r}; {nearest(name, known)}")
    return known[name]
