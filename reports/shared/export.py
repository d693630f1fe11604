"""Exporting results, so that others can compare with them: no paths, hosts, users or secrets."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cliptex_common.errors import UserError
from cliptex_common.files import canonical_json, content_key
from cliptex_common.secrets import hide_secrets
from reports.detections import FILE as DETECTIONS
from reports.detections import TYPES
from reports.mlflow.query import Scored, Store, StoredRun
from reports.npz import read_npz
from reports.parts.provenance import read_json
from reports.selection import Selection, select, without_studies
from reports.shared.archive import (
    ENVIRONMENT,
    PARAMS,
    PARENT_TAGS,
    PER_IMAGE,
    PROTOCOL,
    TASK_TAGS,
    SharedRun,
    write_archive,
)
from reports.shared.check import ABOUT, COST
from reports.stats.per_image import agrees, image_scores, why_unscored


@dataclass(frozen=True)
class Export:
    """What was written: backbones, number of task runs, and why others were left out."""

    backbones: list[str]
    cells: int
    notes: list[str]


def export(
    store: Store,
    experiments: Sequence[str],
    path: Path,
    backbones: Sequence[str] = (),
    tasks: Sequence[str] = (),
    source: str = "",
) -> Export:
    """Write the finished task runs of experiments that have per-image scores.

    Args:
        backbones, tasks: only these; default: all.
        source: who shares them, in a few words.

    Raises:
        TrackingError: no finished run.
        UserError: the file cannot be written, or no run can be shared.
    """
    runs = without_studies(store.runs(experiments))
    selection = select(runs, experiments, backbones, tasks=tasks)
    exporter = _Exporter(store, selection)
    for cells in selection.cells.values():
        for cell in cells:
            exporter.add(cell)
    shared = list(exporter.runs.values())
    if not shared:
        raise UserError("; ".join(["nothing to share", *exporter.notes[:3]]))
    write_archive(path, source, version("cliptex-benchmark"), shared, exporter.members)
    names = dict.fromkeys(run.tags["backbone"] for run in shared)
    count = sum(run.parent is not None for run in shared)
    return Export(list(names), count, [*selection.notes, *exporter.notes])


class _Exporter:
    """Collects runs and files."""

    def __init__(self, store: Store, selection: Selection) -> None:
        self.store, self.selection = store, selection
        self.runs: dict[str, SharedRun] = {}
        self.members: dict[str, bytes] = {}
        self.notes: list[str] = []
        self.environments: dict[str, dict[str, Any]] = {}  # parent's id → its run.json

    def add(self, cell: Scored) -> None:
        """Add a task run and its parent; a note tells why one is left out."""
        parent = self.selection.parents.get((cell.backbone, cell.seed))
        arrays = _arrays(self.store, cell.run, PER_IMAGE)
        detections = _arrays(self.store, cell.run, DETECTIONS)
        scores = image_scores(cell.kind, arrays, detections) if arrays else None
        verified = {
            name: value
            for name, value in cell.metrics.items()
            if scores is not None and name in scores.metrics and agrees(scores.value(name), value)
        }
        conditions = read_json(self.store, cell.run, PROTOCOL)
        reason = ""
        if parent is None:
            reason = "its parent run is missing"
        elif scores is None:
            reason = why_unscored(cell.kind)
        elif next(iter(cell.declared)) not in verified:
            reason = "its main metric cannot be computed from per-image scores"
        elif without_paths(conditions) != conditions:
            reason = "its settings name a file of this machine"
        elif without_paths(identity := self._identity(parent)) != identity:
            reason = "its backbone names a file of this machine"
        if reason or parent is None:
            label = f"{cell.backbone} · {cell.task} · seed {cell.seed}"
            self.notes.append(f"{label} is left out: {reason}")
            return
        costs = {name: v for name, v in cell.run.metrics.items() if name.startswith(COST)}
        run = SharedRun(
            id=content_key(["cell", cell.run.tags.get("cell", ""), cell.backbone]),
            parent=self._add_parent(parent),
            name=cell.task,
            tags={**_tags(cell.run, TASK_TAGS), "backbone": cell.backbone},
            params={name: cell.run.params[name] for name in PARAMS if name in cell.run.params},
            metrics={**verified, **costs},
        )
        self.runs[run.id] = run
        self.members[f"{run.id}/{PROTOCOL}"] = canonical_json(conditions).encode()
        compact = {name: _compact(values) for name, values in arrays.items()}
        self.members[f"{run.id}/{PER_IMAGE}"] = _npz(compact)
        if detections:
            columns = {name: values for name, values in detections.items() if name in TYPES}
            self.members[f"{run.id}/{DETECTIONS}"] = _npz(columns)

    def _add_parent(self, parent: StoredRun) -> str:
        identity = content_key(["run", parent.tags["run.key"], parent.tags["backbone"]])
        if identity not in self.runs:
            environment = self._environment(parent).get("environment", {})
            content = {
                "backbone": self._identity(parent),
                "environment": {name: environment.get(name) for name in ("python", "packages")},
            }
            protocols = tuple(tag for tag in parent.tags if tag.startswith("protocol."))
            tags = _tags(parent, (*PARENT_TAGS, *protocols))
            costs = {n: v for n, v in parent.metrics.items() if n.startswith(COST)}
            name = f"{parent.tags['backbone']} · seed {parent.tags['seed']}"
            self.runs[identity] = SharedRun(id=identity, name=name, tags=tags, metrics=costs)
            text = canonical_json(without_paths(content))
            self.members[f"{identity}/{ENVIRONMENT}"] = text.encode()
        return identity

    def _environment(self, parent: StoredRun) -> dict[str, Any]:
        if parent.id not in self.environments:
            self.environments[parent.id] = read_json(self.store, parent, ENVIRONMENT)
        return self.environments[parent.id]

    def _identity(self, parent: StoredRun) -> dict[str, Any]:
        stored = self._environment(parent).get("backbone", {})
        return {name: value for name, value in stored.items() if name not in ABOUT}


def without_paths(value: Any) -> Any:
    """JSON with the last part of each absolute path instead of the path, and without secrets."""
    if isinstance(value, dict):
        return {key: without_paths(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_paths(each) for each in value]
    if not isinstance(value, str):
        return value
    return PurePosixPath(value).name if value.startswith(("/", "~")) else hide_secrets(value)


def _tags(run: StoredRun, names: Sequence[str]) -> dict[str, str]:
    return {name: without_paths(run.tags[name]) for name in names if name in run.tags}


def _arrays(store: Store, run: StoredRun, name: str) -> dict[str, np.ndarray]:
    path = store.artifact(run, name)
    return read_npz(path.read_bytes()) if path else {}


def _compact(values: np.ndarray) -> np.ndarray:
    """Whole numbers in the smallest type that has them all."""
    if values.dtype.kind not in "iu" or not values.size:
        return values
    smallest = np.result_type(*map(np.min_scalar_type, (values.min(), values.max())))
    return values.astype(smallest)


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
