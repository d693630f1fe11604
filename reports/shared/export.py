"""Exporting results, so that others can compare with them: no paths, hosts, users or secrets."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np

from cliptex_common.errors import UserError
from cliptex_common.files import canonical_json
from cliptex_common.secrets import hide_secrets
from reports.artifacts import DETECTIONS, PARENT, PER_IMAGE, PROTOCOL
from reports.cell import Cell, ParentRun
from reports.detections import TYPES
from reports.mlflow.query import Store
from reports.selection import select, without_studies
from reports.shared.archive import shared_id, write_archive
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
    notes = []
    for cell in chain.from_iterable(selection.cells.values()):
        try:
            exporter.add(cell, selection.parents.get((cell.backbone, cell.seed)))
        except _Unshareable as reason:
            notes.append(f"{cell.label} is left out: {reason}")
    if not exporter.cells:
        raise UserError("; ".join(["nothing to share", *notes[:3]]))
    records = [*exporter.parents.values(), *exporter.cells]
    write_archive(path, source, version("cliptex-benchmark"), records, exporter.members)
    names = dict.fromkeys(cell.backbone for cell in exporter.cells)
    return ExportSummary(list(names), len(exporter.cells), notes)


class _Unshareable(Exception):
    """Why a cell is left out."""


class _Exporter:
    """Collects records and their files."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.parents: dict[str, ParentRun] = {}
        self.cells: list[Cell] = []
        self.members: dict[str, bytes] = {}

    def add(self, cell: Cell, parent: ParentRun | None) -> None:
        """Add a cell and its parent; raises ``_Unshareable``."""
        if parent is None:
            raise _Unshareable("its parent run is missing")
        # not the name of its column, which depends on what else the store has
        cell = cell.model_copy(update={"backbone": parent.backbone})
        arrays = self.store.arrays(cell, PER_IMAGE)
        detections = self.store.arrays(cell, DETECTIONS)
        scores = image_scores(cell.kind, arrays, detections) if arrays else None
        if scores is None:
            raise _Unshareable(why_unscored(cell.kind))
        verified = {
            name: value
            for name, value in cell.metrics.items()
            if name in scores.metrics and agrees(scores.value(name), value)
        }
        if cell.main not in verified:
            raise _Unshareable("its main metric cannot be computed from per-image scores")
        conditions = self.store.json(cell, PROTOCOL)
        if without_paths(conditions) != conditions:
            raise _Unshareable("its settings name a file of this machine")
        parent_id = shared_id(parent)
        if parent_id not in self.parents:
            self._add_parent(parent, parent_id)
        run_id = shared_id(cell)
        changes = {"run_id": run_id, "name": cell.task, "parent": parent_id, "metrics": verified}
        self.cells.append(_shareable(cell, changes))
        self.members[f"{run_id}/{PROTOCOL}"] = canonical_json(conditions).encode()
        compact = {name: _compact(values) for name, values in arrays.items()}
        self.members[f"{run_id}/{PER_IMAGE}"] = _npz(compact)
        if detections:
            columns = {name: values for name, values in detections.items() if name in TYPES}
            self.members[f"{run_id}/{DETECTIONS}"] = _npz(columns)

    def _add_parent(self, parent: ParentRun, run_id: str) -> None:
        described = self.store.json(parent, PARENT)
        stored, environment = (described.get(name, {}) for name in ("backbone", "environment"))
        identity = {name: value for name, value in stored.items() if name not in ABOUT}
        if without_paths(identity) != identity:
            raise _Unshareable("its backbone names a file of this machine")
        packages = {name: environment.get(name) for name in ("python", "packages")}
        content = without_paths({"backbone": identity, "environment": packages})
        self.members[f"{run_id}/{PARENT}"] = canonical_json(content).encode()
        name = f"{parent.backbone} · seed {parent.seed}"
        changes = {"run_id": run_id, "name": name, "parent": "", "metrics": {}, "reused": {}}
        self.parents[run_id] = _shareable(parent, changes)


def _shareable(record: R, changes: dict[str, Any]) -> R:
    """A record without what holds only in this store, and without paths and secrets."""
    texts = {
        field: "" if field in LOCAL else without_paths(value)
        for field, value in record
        if isinstance(value, str)
    }
    return record.model_copy(update={**texts, **changes})


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
