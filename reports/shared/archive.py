"""The file of shared results: a zip with all that tables and paired intervals need.

``manifest.json`` has the sha256 of every other member, ``runs.json`` the runs with their tags and
metrics; below ``ID/`` are a task run's ``protocol.json``, ``per_image.npz`` and perhaps
``detections.npz``, or a parent run's ``run.json``. Equal results give equal bytes.
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
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from cliptex_common.files import atomic_write, canonical_json
from reports.errors import TrackingError

MANIFEST, RUNS = "manifest.json", "runs.json"
PROTOCOL, ENVIRONMENT, PER_IMAGE = "protocol.json", "run.json", "per_image.npz"
MEMBER = re.compile(
    r"runs\.json|[0-9a-f]{16}/(protocol\.json|run\.json|per_image\.npz|detections\.npz)"
)
DATE = (1980, 1, 1, 0, 0, 0)
TASK_TAGS = (
    *("task", "dataset", "kind", "probe", "backbone", "weights.sha256", "seed", "suite"),
    *("device.kind", "protocol", "cell", "data.fingerprint", "data.partial", "preset", "differs"),
    *("metrics.declared", "git.commit"),
)
PARENT_TAGS = (
    *("backbone", "architecture", "suite", "seed", "weights.sha256", "weights.source"),
    *("weights.licence", "run.key", "experts", "metrics.main", "git.commit"),
)
PARAMS = ("shots", "train_share")  # by which learning curves are drawn

Name = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class SharedRun(BaseModel):
    """A run of the file; a task run has the id of its ``parent``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Name
    parent: Name | None = None
    name: str
    tags: dict[str, str]
    params: dict[str, str] = {}
    metrics: dict[str, float]


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
    runs: list[SharedRun]
    members: Mapping[str, bytes]

    def json(self, name: str) -> Any:
        """A JSON member."""
        return json.loads(self.members[name])


def write_archive(
    path: Path, source: str, version: str, runs: Sequence[SharedRun], members: Mapping[str, bytes]
) -> None:
    """Write a file of shared results.

    Raises:
        UserError: the folder cannot be written.
    """
    ordered = sorted(runs, key=lambda run: (run.parent is not None, run.name, run.id))
    content = canonical_json([run.model_dump() for run in ordered]).encode()
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
        runs = TypeAdapter(list[SharedRun]).validate_json(members[RUNS])
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise TrackingError(f"{title}: {field}: {first['msg']}") from error
    except (zipfile.BadZipFile, KeyError, OSError, EOFError, ValueError) as error:
        raise TrackingError(f"{title} is not a file of `results export`: {error}") from error
    return SharedResults(title, manifest, runs, members)
