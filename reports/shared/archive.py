"""The file of shared results: a zip with all that tables and paired intervals need.

``manifest.json`` has the sha256 of every other member, ``runs.json`` the records of cells and of
their parent runs, with tags and metrics as in MLflow; below ``ID/`` are files of the record with
this id. Equal results give equal bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cliptex_common.files import atomic_write, canonical_json
from reports.artifacts import DETECTIONS, PARENT, PER_IMAGE, PROTOCOL
from reports.cell import Cell, ParentRun, Record, read_record
from reports.errors import TrackingError

MANIFEST, RUNS = "manifest.json", "runs.json"
FILES = "|".join(map(re.escape, (PROTOCOL, PARENT, PER_IMAGE, DETECTIONS)))
MEMBER = re.compile(rf"{re.escape(RUNS)}|[0-9a-f]{{16}}/({FILES})")
DATE = (1980, 1, 1, 0, 0, 0)


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


@dataclass(frozen=True)
class SharedResults:
    """The content of a file; ``title`` is its name without the ending."""

    title: str
    manifest: Manifest
    cells: list[Cell]
    parents: dict[str, ParentRun]
    members: Mapping[str, bytes]

    def json(self, record: Record, name: str) -> Any:
        """A JSON file of a record."""
        return json.loads(self.members[f"{record.run_id}/{name}"])

    def new_names(self, weights: Mapping[tuple[str, int], str]) -> dict[str, str]:
        """Backbone → its name with the title of this file, of backbones that have other weights
        here than in ``weights``: (backbone, seed) → sha256."""
        return {
            parent.backbone: f"{parent.backbone} ({self.title})"
            for parent in self.parents.values()
            if weights.get((parent.backbone, parent.seed), parent.weights) != parent.weights
        }


def write_archive(
    path: Path, source: str, version: str, records: Sequence[Record], members: Mapping[str, bytes]
) -> None:
    """Write a file of shared results.

    Raises:
        UserError: the folder cannot be written.
    """
    ordered = sorted(records, key=lambda record: (record.parent != "", record.name, record.run_id))
    content = canonical_json([_entry(record) for record in ordered]).encode()
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
        TrackingError: it is no such file, or was changed after it was written.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
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
        records = [_read_entry(**entry) for entry in json.loads(members[RUNS])]
    except TrackingError:
        raise
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise TrackingError(f"{title}: {field}: {first['msg']}") from error
    except (zipfile.BadZipFile, KeyError, OSError, EOFError, ValueError, TypeError) as error:
        raise TrackingError(f"{title} is not a file of `results export`: {error}") from error
    cells = [record for record in records if isinstance(record, Cell)]
    parents = {record.run_id: record for record in records if isinstance(record, ParentRun)}
    return SharedResults(title, manifest, cells, parents, members)


def _entry(record: Record) -> dict[str, Any]:
    """A record in the form in which MLflow holds it, too."""
    return {
        "id": record.run_id,
        "parent": record.parent or None,
        "name": record.name,
        "tags": record.to_tags(),
        "params": record.params,
        "metrics": record.all_metrics(),
    }


def _read_entry(id: str, parent: str | None, name: str, **content: Any) -> Record:
    return read_record(run_id=id, parent=parent or "", name=name, **content)
