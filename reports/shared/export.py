"""Exporting results, so that others can compare with them: no paths, hosts, users or secrets."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np

from cliptex_common.errors import UserError
from cliptex_common.files import canonical_json, content_key
from cliptex_common.secrets import hide_secrets
from reports.artifacts import DETECTIONS, PARENT, PER_IMAGE, PROTOCOL
from reports.cell import Cell, ParentRun
from reports.detections import TYPES
from reports.mlflow.query import Store
from reports.selection import select, without_studies
from reports.shared.archive import write_archive
from reports.stats.per_image import agrees, image_scores, why_unscored

ABOUT = ("name", "source", "licence", "config")  # of a backbone in run.json, beside its identity
R = TypeVar("R", Cell, ParentRun)
# fields that hold only in this store
LOCAL = ("threads", "model", "train_run", "average", "study")


@dataclass(frozen=True)
class ExportSummary:
    """What was written: backbones, number of cells, and why others were left out."""

    backbones: list[str]
    cells: int
    notes: list[str]


def export_results(
    store: Store,
    experiments: Sequence[str],
    path: Path,
    backbones: Sequence[str] = (),
    tasks: Sequence[str] = (),
    source: str = "",
) -> ExportSummary:
    """Write the finished cells of experiments that have per-image scores.

    Args:
        backbones, tasks: only these; default: all.
        source: who shares them, in a few words.

    Raises:
        TrackingError: no finished run.
        UserError: the file cannot be written, or no cell can be shared.
    """
    runs = without_studies(store.runs(experiments))
    selection = select(runs, experiments, backbones, tasks=tasks)
    exporter = _Exporter(store)
    for cells in selection.cells.values():
        for cell in cells:
            exporter.add(cell, selection.parents.get((cell.backbone, cell.seed)))
    if not exporter.cells:
        raise UserError("; ".join(["nothing to share", *exporter.notes[:3]]))
    records = [*exporter.parents.values(), *exporter.cells]
    write_archive(path, source, version("cliptex-benchmark"), records, exporter.members)
    names = dict.fromkeys(cell.backbone for cell in exporter.cells)
    return ExportSummary(list(names), len(exporter.cells), [*selection.notes, *exporter.notes])


class _Exporter:
    """Collects records and their files."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.parents: dict[str, ParentRun] = {}
        self.cells: list[Cell] = []
        self.members: dict[str, bytes] = {}
        self.notes: list[str] = []
        self.descriptions: dict[str, dict[str, Any]] = {}  # id of a parent run → its run.json

    def add(self, cell: Cell, parent: ParentRun | None) -> None:
        """Add a cell and its parent; a note says why one is left out."""
        arrays = self.store.arrays(cell, PER_IMAGE)
        detections = self.store.arrays(cell, DETECTIONS)
        scores = image_scores(cell.kind, arrays, detections) if arrays else None
        verified = {
            name: value
            for name, value in cell.metrics.items()
            if scores is not None and name in scores.metrics and agrees(scores.value(name), value)
        }
        conditions = self.store.json(cell, PROTOCOL)
        reason = ""
        if parent is None:
            reason = "its parent run is missing"
        elif scores is None:
            reason = why_unscored(cell.kind)
        elif cell.main not in verified:
            reason = "its main metric cannot be computed from per-image scores"
        elif without_paths(conditions) != conditions:
            reason = "its settings name a file of this machine"
        elif without_paths(identity := self._identity(parent)) != identity:
            reason = "its backbone names a file of this machine"
        if reason or parent is None:
            self.notes.append(f"{cell.label} is left out: {reason}")
            return
        run_id = content_key(["cell", cell.key, cell.backbone])
        shared = _shareable(cell, run_id, cell.task)
        own = {"parent": self._add_parent(parent), "metrics": verified}
        self.cells.append(shared.model_copy(update=own))
        self.members[f"{run_id}/{PROTOCOL}"] = canonical_json(conditions).encode()
        compact = {name: _compact(values) for name, values in arrays.items()}
        self.members[f"{run_id}/{PER_IMAGE}"] = _npz(compact)
        if detections:
            columns = {name: values for name, values in detections.items() if name in TYPES}
            self.members[f"{run_id}/{DETECTIONS}"] = _npz(columns)

    def _add_parent(self, parent: ParentRun) -> str:
        run_id = content_key(["run", parent.run_key, parent.backbone])
        if run_id not in self.parents:
            environment = self._describe(parent).get("environment", {})
            content = {
                "backbone": self._identity(parent),
                "environment": {name: environment.get(name) for name in ("python", "packages")},
            }
            name = f"{parent.backbone} · seed {parent.seed}"
            shared = _shareable(parent, run_id, name)
            own = {"parent": "", "metrics": {}, "reused": {}}
            self.parents[run_id] = shared.model_copy(update=own)
            text = canonical_json(without_paths(content))
            self.members[f"{run_id}/{PARENT}"] = text.encode()
        return run_id

    def _describe(self, parent: ParentRun) -> dict[str, Any]:
        if parent.run_id not in self.descriptions:
            self.descriptions[parent.run_id] = self.store.json(parent, PARENT)
        return self.descriptions[parent.run_id]

    def _identity(self, parent: ParentRun) -> dict[str, Any]:
        stored = self._describe(parent).get("backbone", {})
        return {name: value for name, value in stored.items() if name not in ABOUT}


def _shareable(record: R, run_id: str, name: str) -> R:
    """A record without what holds only in this store, and without paths and secrets."""
    texts = {
        field: "" if field in LOCAL else without_paths(value)
        for field, value in record
        if isinstance(value, str)
    }
    return record.model_copy(update={**texts, "run_id": run_id, "name": name})


def without_paths(value: Any) -> Any:
    """JSON with the last part of each absolute path instead of the path, and without secrets."""
    if isinstance(value, dict):
        return {key: without_paths(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_paths(each) for each in value]
    if not isinstance(value, str):
        return value
    return PurePosixPath(value).name if value.startswith(("/", "~")) else hide_secrets(value)


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
