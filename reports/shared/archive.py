"""The file of shared results: a zip with all that tables and paired intervals need.

``manifest.json`` has the sha256 of every other member, ``runs.json`` the records of cells and of
their parent runs, with tags and metrics as in MLflow; below ``ID/`` are files of the record with
this id. Equal results give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from cliptex_common.files import atomic_write, canonical_json, content_key
from reports.artifacts import DAMAGED, DETECTIONS, PARENT, PER_IMAGE, PROTOCOL, inflate
from reports.cell import Cell, ParentRun, Record, read_record
from reports.errors import TrackingError
from reports.metrics import DECLARERS

MANIFEST, RUNS = "manifest.json", "runs.json"
FILES = "|".join(map(re.escape, (PROTOCOL, PARENT, PER_IMAGE, DETECTIONS)))
MEMBER = re.compile(rf"{re.escape(RUNS)}|[0-9a-f]{{16}}/({FILES})")
DATE = (1980, 1, 1, 0, 0, 0)
LARGEST = 1 << 30  # bytes of a file; it and each npz file in it inflate to at most twice as many
MOST_BYTES, MOST_TIMES = 1 << 26, 50  # a file inflates to at most a + b times its size


class Manifest(BaseModel):
    """What the file says of itself.

    Attributes:
        source: who shares it, in a few words; may be empty.
        version: of the suite that wrote it.
        files: member → sha256.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    source: str = ""
    version: str
    files: dict[str, str]


class SharedRun(BaseModel):
    """A record in the form in which MLflow holds it, too."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    id: str
    parent: str | None
    name: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]

    @classmethod
    def of(cls, record: Record) -> SharedRun:
        return cls.model_construct(
            id=record.run_id,
            parent=record.parent or None,
            name=record.name,
            tags=record.to_tags(),
            params=record.params,
            metrics=record.all_metrics(),
        )

    def record(self) -> Record:
        fields = {"run_id": self.id, "parent": self.parent or "", "name": self.name}
        return read_record(self.tags, self.params, self.metrics, **fields)


class DatasetExtra(BaseModel):
    main_metric: str = ""


class DatasetConditions(BaseModel):
    name: str
    fingerprint: str
    extra: DatasetExtra = DatasetExtra()


class Conditions(BaseModel):
    """What is read of a cell's ``protocol.json``."""

    task: str
    dataset: DatasetConditions
    libraries: dict[str, str] = {}
    settings: dict[str, Any] = {}


class InputSize(BaseModel):
    size: list[int] = []


class Identity(BaseModel):
    sha256: str
    data: InputSize = InputSize()


class Description(BaseModel):
    """What is read of a parent's ``run.json``."""

    backbone: Identity
    environment: dict[str, Any] = {}


ENTRIES = TypeAdapter(list[SharedRun])
SHAPES: dict[str, type[BaseModel]] = {PROTOCOL: Conditions, PARENT: Description}


@dataclass(frozen=True)
class SharedResults:
    """The content of a file; ``title`` is its name without the ending, ``notes`` what a reader must
    know."""

    title: str
    manifest: Manifest
    cells: list[Cell]
    parents: dict[str, ParentRun]
    members: Mapping[str, bytes]
    notes: Sequence[str] = ()

    def json(self, record: Record, name: str) -> Any:
        """A JSON file of a record."""
        return json.loads(self.members[f"{record.run_id}/{name}"])

    def new_names(self, others: Collection[Cell | ParentRun]) -> dict[str, str]:
        """Backbone → its name with the title of this file, of backbones that share no weights with
        those of this name in ``others``."""
        names = {run.backbone for run in others}
        known = {(run.backbone, run.weights) for run in others}
        own = self.parents.values()
        names -= {run.backbone for run in own if (run.backbone, run.weights) in known}
        return {name: f"{name} ({self.title})" for name in names}


def shared_id(record: Any) -> str:
    """The id of a cell or parent run in a file: equal results have equal ids."""
    if isinstance(record, Cell):
        return content_key(["cell", record.key, record.backbone])
    return content_key(["run", record.run_key, record.backbone])


def write_archive(
    path: Path, source: str, version: str, records: Sequence[Record], members: Mapping[str, bytes]
) -> None:
    """Write a file of shared results.

    Raises:
        UserError: the folder cannot be written.
    """
    ordered = sorted(records, key=lambda record: (record.parent != "", record.name, record.run_id))
    content = canonical_json([SharedRun.of(record).model_dump() for record in ordered]).encode()
    members = {**members, RUNS: content}
    digests = {name: hashlib.sha256(members[name]).hexdigest() for name in sorted(members)}
    manifest = Manifest(source=source, version=version, files=digests)
    text = canonical_json(manifest.model_dump()).encode()
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in (MANIFEST, *digests):
            info = zipfile.ZipInfo(name, DATE)
            if not name.endswith(".npz"):  # compressed already
                info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, text if name == MANIFEST else members[name], compresslevel=9)


def read_archive(content: bytes, title: str) -> SharedResults:
    """Read a file of shared results and verify its checksums.

    Raises:
        TrackingError: it is no such file, was changed after it was written, or has no results.
    """
    budget = MOST_BYTES + MOST_TIMES * len(content)
    try:
        members = inflate(content, min(budget, 2 * LARGEST))
        budget -= sum(map(len, members.values()))
        manifest = Manifest.model_validate_json(members.pop(MANIFEST))
        for name in sorted(members.keys() | manifest.files.keys()):
            if not MEMBER.fullmatch(name):
                raise TrackingError(f"{title}: unknown file {name}")
            digest = hashlib.sha256(members.get(name, b"")).hexdigest()
            if digest != manifest.files.get(name):
                raise TrackingError(
                    f"{title}: {name} is not what was exported (its sha256 differs); export the"
                    " results again"
                )
            if name.endswith(".npz"):
                budget -= sum(map(len, inflate(members[name], min(budget, 2 * LARGEST)).values()))
            elif shape := SHAPES.get(name.rpartition("/")[2]):
                value = json.loads(members[name])
                json.dumps(value, allow_nan=False)  # the page could not be read
                shape.model_validate(value)
        records = [entry.record() for entry in ENTRIES.validate_json(members[RUNS])]
        ids = [shared_id(record) for record in records]
        if ids != [record.run_id for record in records] or len({*ids}) < len(ids):
            raise TrackingError(f"{title}: a result has another id than its own, or is there twice")
    except TrackingError:
        raise
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise TrackingError(f"{title}: {field}: {first['msg']}") from error
    except DAMAGED as error:
        raise TrackingError(f"{title} is not a file of `results export`: {error}") from error
    cells = [record for record in records if isinstance(record, Cell)]
    if not cells:
        raise TrackingError(f"{title} has no results")
    parents = {record.run_id: record for record in records if isinstance(record, ParentRun)}
    results = SharedResults(title, manifest, cells, parents, members)
    return replace(results, cells=[_with_metrics(results, cell) for cell in cells])


def _with_metrics(results: SharedResults, cell: Cell) -> Cell:
    """The cell with the metrics that its probe declares, whatever the file says of them."""
    content = results.members.get(f"{cell.run_id}/{PROTOCOL}")
    if content is None:
        raise TrackingError(f"{results.title}: {cell.label}: {PROTOCOL} is missing")
    main = Conditions.model_validate_json(content).dataset.extra.main_metric
    for declare in DECLARERS:
        if declared := declare(cell.task, cell.kind, main):
            metrics = {name: cell.metrics[name] for name in declared if name in cell.metrics}
            return cell.model_copy(update={"declared": declared, "metrics": metrics})
    raise TrackingError(
        f"{results.title}: {cell.label}: no probe for this task on data of kind {cell.kind!r}; give"
        " the plugin that it ran with (--plugin FILE)"
    )
