"""Shared results: exported, read, checked, and joined with the results of the store.

A file is a zip with all that tables and paired intervals need, and no paths, hosts, users or
secrets. ``manifest.json`` has the sha256 of every other member, ``runs.json`` the records of cells
and of their parent runs, with tags and metrics as in MLflow; below ``ID/`` are files of the record
with this id. Equal results give equal bytes. A check computes each identity and metric again.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tempfile
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from cliptex_common.errors import UserError, first_line, hide_secrets, redact, report_malformed
from cliptex_common.files import atomic_write, canonical_json, content_key, expand_user, home
from cliptex_common.settings import matching
from reports.per_image import ImageScores, agrees, image_scores, why_unscored
from reports.records import (
    DAMAGED,
    DECLARERS,
    DETECTIONS,
    PARENT,
    PER_IMAGE,
    PROTOCOL,
    TYPES,
    Cell,
    Metric,
    ParentRun,
    Record,
    TrackingError,
    cell_key,
    inflate,
    network_key,
    read_arrays,
    read_record,
    shortened_notes,
)
from reports.selection import select, shown_runs, without_studies
from reports.store import Artifacts, Store, missing_artifacts

R = TypeVar("R", Cell, ParentRun)
MANIFEST, RUNS = "manifest.json", "runs.json"
FILES = "|".join(map(re.escape, (PROTOCOL, PARENT, PER_IMAGE, DETECTIONS)))
MEMBER = re.compile(rf"{re.escape(RUNS)}|[0-9a-f]{{16}}/({FILES})")
DATE = (1980, 1, 1, 0, 0, 0)
LARGEST = 1 << 30  # bytes of a file; it and each npz file in it inflate to at most twice as many
MOST_BYTES, MOST_TIMES = 1 << 26, 50  # a file inflates to at most a + b times its size


# what a terminal would act on is no text of a file that somebody else has written
Text = Annotated[
    str, matching(r"[^\x00-\x08\x0b-\x1f\x7f-\x9f]*", "a text has no control characters")
]


class Manifest(BaseModel):
    """What the file says of itself.

    Attributes:
        source: who shares it, in a few words; may be empty.
        version: of the suite that wrote it.
        files: member → sha256.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    source: Text = ""
    version: Text
    files: dict[Text, str]


class SharedRun(BaseModel):
    """An entry of ``runs.json``: a record in the form in which MLflow holds it, too."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    id: Text
    parent: Text | None
    name: Text
    tags: dict[Text, Text]
    params: dict[Text, Text]
    metrics: dict[Text, float]

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
    libraries: dict[Text, str] = {}
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


def new_names(own: Iterable[R], records: Collection[R], title: str) -> dict[str, str]:
    """Backbone → its name with the title of a file, of backbones of which the runs of the file
    (``own``) share no weights with those of this name in ``records``."""
    names = {run.backbone for run in records}
    weights = {(run.backbone, run.weights) for run in records}
    names -= {run.backbone for run in own if (run.backbone, run.weights) in weights}
    return {name: f"{name} ({title})" for name in names}


def shared_id(record: Any) -> str:
    """The id of a cell or parent run in a file: equal results have equal ids. Any other record of a
    damaged file has no ``run_key``, and the file is refused."""
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
                raise TrackingError(f"{title}: unknown file {name!r}")
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
        raise TrackingError(f"{title}: {field!r:.150}: {first['msg']}") from error
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
    declared = _declared(cell, Conditions.model_validate_json(content))
    if not declared:
        raise TrackingError(f"{results.title}: {cell.label}: {_no_probe(cell)}")
    metrics = {name: cell.metrics[name] for name in declared if name in cell.metrics}
    return cell.model_copy(update={"declared": declared, "metrics": metrics})


def _declared(cell: Cell, conditions: Conditions) -> dict[str, Metric]:
    """The metrics of the cell's probe; none if no probe that is loaded has its task."""
    main = conditions.dataset.extra.main_metric
    declared = (declare(cell.task, cell.kind, main) for declare in DECLARERS)
    return next(filter(None, declared), {})


def _no_probe(cell: Cell) -> str:
    return (
        f"no probe for this task on data of kind {cell.kind!r}; give the plugin that it ran with"
        " (--plugin FILE)"
    )


def check_results(results: SharedResults) -> dict[str, ImageScores]:
    """Verify all cells of a file; returns the per-image scores of each, by its run's id.

    Raises:
        TrackingError: a cell lacks a field, its protocol or identity is not the one that its hash
            was made of, its images are not those of other cells on the same data, or a metric does
            not follow from its per-image scores.
    """
    images: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {}
    scores = {}
    for cell in results.cells:
        try:
            scores[cell.run_id] = _check_cell(results, cell)
        except _Refused as error:
            raise TrackingError(f"{results.title}: {cell.label}: {error}") from error
        except DAMAGED as error:
            problem = f"a field or file is missing or damaged ({error!r})"
            raise TrackingError(f"{results.title}: {cell.label}: {problem}") from error
        names = scores[cell.run_id].images
        first, first_names = images.setdefault((cell.task, cell.fingerprint), (cell.label, names))
        if names != first_names:
            raise TrackingError(
                f"{results.title}: {cell.label}: its images are not those of {first}, though both"
                " claim the same data"
            )
    return scores


class _Refused(Exception):
    """Why a cell is not believed."""


def _check_cell(results: SharedResults, cell: Cell) -> ImageScores:
    parent, conditions = results.parents[cell.parent], results.json(cell, PROTOCOL)
    for field in ("backbone", "seed", "weights"):
        if getattr(cell, field) != getattr(parent, field):
            raise _Refused(f"its {field} is not that of its parent run")
    if content_key(conditions) != cell.protocol:
        raise _Refused("its protocol is not the one that the tag `protocol` is the hash of")
    dataset, task = conditions["dataset"], cell.task.partition(":")[0]
    described = (conditions["task"], dataset["name"], dataset["fingerprint"], task)
    if described != (cell.task, cell.dataset, cell.fingerprint, f"{cell.dataset}/{cell.probe}"):
        raise _Refused("task, dataset, probe or data fingerprint are not those of its protocol")
    identity = results.json(parent, PARENT)["backbone"]
    if identity["sha256"] != cell.weights:
        raise _Refused("its weights are not those of its parent run")
    if {cell.network, parent.network} - {"", network_key(identity)}:
        raise _Refused("weights and configuration are not those that its network is the hash of")
    if cell_key(identity, conditions, cell.seed, cell.head) != cell.key:
        raise _Refused(
            "backbone, protocol, seed and head are not those that the tag `cell` is the hash of"
        )
    arrays = {
        name: read_arrays(content)
        for name in (PER_IMAGE, DETECTIONS)
        if (content := results.members.get(f"{cell.run_id}/{name}"))
    }
    scores = None
    if PER_IMAGE in arrays:
        scores = image_scores(cell.kind, arrays[PER_IMAGE], arrays.get(DETECTIONS))
    if scores is None:
        raise _Refused(why_unscored(cell.kind))
    if cell.main not in cell.metrics:
        raise _Refused(f"its main metric {cell.main} is missing")
    for name, value in cell.metrics.items():
        again = scores.value(name) if name in scores.metrics else np.nan
        if not agrees(again, value):
            raise _Refused(f"{name} is {value:.6g}, but {again:.6g} by its per-image scores")
    return scores


# of a backbone in run.json, beside its identity
NOT_IDENTITY = ("name", "source", "licence", "config")
# fields that hold only in this store
LOCAL_FIELDS = ("threads", "model", "train_run", "average", "groups", "group_metric", "study")


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
    notes += shortened_notes(exporter.cells)
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
            raise _Unshareable(missing_artifacts([cell.artifacts]) or why_unscored(cell.kind))
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
        if not _declared(cell, Conditions.model_validate(conditions)):
            raise _Unshareable(_no_probe(cell))
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
        identity = {name: value for name, value in stored.items() if name not in NOT_IDENTITY}
        if without_paths(identity) != identity:
            raise _Unshareable("its backbone names a file of this machine")
        packages = {name: environment.get(name) for name in ("python", "packages")}
        content = without_paths({"backbone": identity, "environment": packages})
        self.members[f"{run_id}/{PARENT}"] = canonical_json(content).encode()
        name = f"{parent.backbone} · seed {parent.seed}"
        changes = {"run_id": run_id, "name": name, "parent": "", "metrics": {}, "reused": {}}
        changes["own_tags"] = {}
        self.parents[run_id] = _shareable(parent, changes)


def _shareable(record: R, changes: dict[str, Any]) -> R:
    """A record without what holds only in this store, and without paths and secrets."""
    texts = {
        field: "" if field in LOCAL_FIELDS else without_paths(value)
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


SUFFIX = ".zip"
TIMEOUT = 30.0  # seconds without a byte
MOST_SECONDS = 600.0  # of a download
BLOCK = 1 << 20
# settings of probes that draw random numbers by the seed: others give equal scores with each seed
SEEDED = {"epochs", "max_iters", "shots"}


def load_files(locations: Sequence[str]) -> list[tuple[str, bytes]]:
    """Title and content of each file at ``locations``: files, folders, URLs.

    Raises:
        TrackingError: there is none at one of them.
    """
    return [file for location in locations for file in _find(location)]


def _find(location: str) -> list[tuple[str, bytes]]:
    path = expand_user(location)
    if "://" in location:
        with report_malformed(f"{location} is no URL", "check it"):
            stem = PurePosixPath(urlsplit(location).path).stem
        return [(stem, _fetch(location))]
    if path.is_dir():
        paths = sorted(each for each in path.glob(f"*{SUFFIX}") if each.is_file())
        if not paths:
            raise TrackingError(f"no file of `results export` (*{SUFFIX}) in {path}")
        return [(each.stem, _read(each)) for each in paths]
    if path.is_file():
        return [(path.stem, _read(path))]
    raise TrackingError(
        f"no shared results at {location}; give a file or folder of `results export`, or a URL"
    )


def _read(path: Path) -> bytes:
    if (size := path.stat().st_size) > LARGEST:
        raise TrackingError(
            f"{path} has {size / 1e9:.1f} GB, and files of `results export` at most"
            f" {LARGEST / 1e9:.1f}; export some backbones at a time (--backbone)"
        )
    return path.read_bytes()


def _fetch(url: str) -> bytes:
    import fsspec

    options: dict[str, Any] = {}
    if url.startswith("http"):
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(MOST_SECONDS, sock_connect=TIMEOUT, sock_read=TIMEOUT)
        options = {"client_kwargs": {"timeout": timeout}, "block_size": 0}  # one request
    content = bytearray()
    try:
        with fsspec.open(url, "rb", **options) as file:
            while block := file.read(BLOCK):
                content += block
                if len(content) > LARGEST:
                    raise ValueError(f"it has more than {LARGEST / 1e9:.1f} GB")
        return bytes(content)
    except Exception as error:  # each protocol has its own errors
        # fsspec's own error of a server says the URL alone
        reason = redact(first_line(error.__cause__ or error))
        raise TrackingError(f"cannot fetch {hide_secrets(url)}: {reason}; check the URL") from error


def read_files(files: Iterable[tuple[str, bytes]]) -> Iterator[SharedResults]:
    """The results in files, each by title and content, with what they must not have in common.

    Scores that a backbone has with several seeds count once, with the first of these seeds, where
    the probe draws random numbers. They are not refused: two heads may agree on every image of an
    easy or a small dataset.

    Raises:
        TrackingError: a file cannot be read, or two files disagree on the scores of one cell.
    """
    titles: dict[str, tuple[str, Cell]] = {}  # id → the first file that has it, and it there
    # backbone, protocol and the sha256 of all scores → the cell of the lowest seed
    originals: dict[tuple[str | None, ...], Cell] = {}
    for title, content in files:
        results = read_archive(content, title)
        cells, notes = [], []
        for cell in sorted(results.cells, key=lambda cell: cell.seed):
            first_title, first = titles.setdefault(cell.run_id, (title, cell))
            values = [each.metrics.get(cell.main, 0.0) for each in (first, cell)]
            if not agrees(*values):
                raise TrackingError(
                    f"{first_title} and {title} have other scores of {cell.label}:"
                    f" {values[0]:.6g} and {values[1]:.6g} {cell.main}; leave one file out"
                )
            digests = results.manifest.files
            scores = [digests.get(f"{cell.run_id}/{name}") for name in (PER_IMAGE, DETECTIONS)]
            original = originals.setdefault((cell.backbone, cell.protocol, *scores), cell)
            settings = results.json(cell, PROTOCOL).get("settings", {})
            if original.seed == cell.seed or not SEEDED & settings.keys():
                cells.append(cell)
            else:
                notes.append(
                    f"{title}: {cell.label} has the scores of seed {original.seed} on every image;"
                    " they count once"
                )
        yield replace(results, cells=cells, notes=notes)


def read_shared(
    files: Iterable[tuple[str, bytes]], own: Sequence[Record], store: Artifacts
) -> tuple[list[Cell | ParentRun], list[str]]:
    """The records of shared files as a report reads them, and what a reader must know of them.

    A backbone that has other weights here, or in an earlier file, gets the file's title added to
    its name; a network that is here has its name here. Results whose protocol differs from one's
    own only in the versions of libraries share its column.

    Args:
        files: title and content of each.
        own: the runs of the store that the report is about.

    Raises:
        TrackingError: a file cannot be read or is refused.
    """
    merger = _Merger(own, store)
    for results in read_files(files):
        merger.add(results)
    # The newest of equal cells counts. Shared ones get times before 1970, older than all that is in
    # the store, so that own results count where both have a cell.
    records = sorted(merger.records.values(), key=lambda record: record.backbone)
    ordered = [
        record.model_copy(update={"started": number - len(records)})
        for number, record in enumerate(records)
    ]
    return ordered, merger.notes


class _Merger:
    """Collects the records of files."""

    def __init__(self, own: Sequence[Record], store: Artifacts) -> None:
        self.records: dict[str, Cell | ParentRun] = {}
        self.notes: list[str] = []
        cells = [run for run in own if isinstance(run, Cell) and run.is_finished]
        self.seen: list[Cell | ParentRun] = [*cells]
        # task, settings and data → the protocol's hash and its libraries
        self.protocols: dict[str, tuple[str, dict[str, str]]] = {}
        for cell in {cell.protocol: cell for cell in cells}.values():
            self._protocol(cell.protocol, store.json(cell, PROTOCOL))

    def _protocol(self, protocol: str, conditions: dict[str, Any]) -> tuple[str, dict[str, str]]:
        settings = {name: each for name, each in conditions.items() if name != "libraries"}
        entry = protocol, conditions.get("libraries", {})
        return self.protocols.setdefault(content_key(settings), entry)

    def add(self, results: SharedResults) -> None:
        """Add the records of one file."""
        title, folder = results.title, unpack(results)
        self.notes += results.notes
        records: list[Any] = shown_runs([*results.parents.values(), *results.cells])
        names = new_names(records, self.seen, title)
        own_names = {(run.weights, run.network): run.backbone for run in self.seen if run.network}
        protocols = self._protocols(results)
        source = results.manifest.source or f"{title}{SUFFIX}"
        for record in records:
            name = names.get(record.backbone, record.backbone)
            name = own_names.get((record.weights, record.network), name)
            changes: dict[str, Any] = {
                "backbone": name,
                "experiment": title,
                "artifacts": str(folder / record.run_id),
                "source": source,
            }
            if isinstance(record, Cell):
                changes["protocol"] = protocols[record.protocol]
            else:
                planned = record.protocols.items()
                changes["protocols"] = {task: protocols.get(each, each) for task, each in planned}
                changes["label"] = ""  # it is the name now
            record = self.records.setdefault(record.run_id, record.model_copy(update=changes))
            self.seen.append(record)

    def _protocols(self, results: SharedResults) -> dict[str, str]:
        """Protocol of the file → the one that it is shown under."""
        protocols, differing = {}, set()
        for cell in {cell.protocol: cell for cell in results.cells}.values():
            conditions = results.json(cell, PROTOCOL)
            protocols[cell.protocol], libraries = self._protocol(cell.protocol, conditions)
            theirs = conditions.get("libraries", {})
            differing |= {n for n in theirs | libraries if theirs.get(n) != libraries.get(n)}
        if differing:
            self.notes.append(
                f"results shared in {results.title} were made with other versions of"
                f" {', '.join(sorted(differing))}; they share a column where all else agrees"
            )
        return protocols


def unpack(results: SharedResults) -> Path:
    """The folder that has the members of a file. It is verified each time: a plugin may have
    changed since it was unpacked.

    Raises:
        TrackingError: the file is refused.
    """
    check_results(results)
    folder = home() / "shared" / content_key(results.manifest.model_dump())
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            root = Path(scratch) / "results"
            for name, member in results.members.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(member)
            with suppress(OSError):  # another process has unpacked it meanwhile
                root.rename(folder)
    return folder
