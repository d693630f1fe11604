"""Shared results beside one's own: their runs join those of the store, so that one selection and
one analysis see all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from cliptex_common.errors import first_line
from cliptex_common.files import content_key, home
from cliptex_common.secrets import hide_secrets, redact
from reports.errors import TrackingError
from reports.mlflow.client import PARENT_TAG
from reports.mlflow.query import Store, StoredRun
from reports.parts.provenance import read_json
from reports.shared.archive import PROTOCOL, SharedResults, SharedRun, read_archive
from reports.shared.check import verify
from reports.shared.standings import settings_key

SUFFIX = ".zip"


@dataclass(frozen=True)
class Merged:
    """Runs of shared files as a report reads them.

    Attributes:
        notes: what a reader must know of them.
    """

    runs: list[StoredRun]
    notes: list[str]


def find_files(location: str) -> list[tuple[str, bytes]]:
    """Title and content of each file at ``location``: a file, a folder, or a URL.

    Raises:
        TrackingError: there is none.
    """
    path = Path(location).expanduser()
    if "://" in location:
        return [(PurePosixPath(urlsplit(location).path).stem, _fetch(location))]
    if path.is_dir():
        paths = sorted(path.glob(f"*{SUFFIX}"))
        if not paths:
            raise TrackingError(f"no file of `results export` (*{SUFFIX}) in {path}")
        return [(each.stem, each.read_bytes()) for each in paths]
    if path.is_file():
        return [(path.stem, path.read_bytes())]
    raise TrackingError(
        f"no shared results at {location}; give a file or folder of `results export`, or a URL"
    )


def _fetch(url: str) -> bytes:
    import fsspec

    try:
        with fsspec.open(url, "rb") as file:
            return file.read()
    except Exception as error:  # each protocol has its own errors
        reason = redact(first_line(error))
        raise TrackingError(f"cannot fetch {hide_secrets(url)}: {reason}; check the URL") from error


def merge(locations: Sequence[str], own: Sequence[StoredRun], store: Store) -> Merged:
    """The runs of shared files.

    A backbone that has other weights here, or in an earlier file, under the same name and seed gets
    the file's title added to its name. Results whose protocol differs from one's own only in the
    versions of libraries share its column.

    Args:
        own: the runs of the store that the report is about.

    Raises:
        TrackingError: a file cannot be read or is refused.
    """
    merged = _Merger(own, store)
    for location in locations:
        for title, content in find_files(location):
            merged.add(title, content)
    # older than all that is in the store, so that own results count where both have a cell
    runs = sorted(merged.runs.values(), key=lambda run: run.tags["backbone"])
    ordered = [replace(run, started=n - len(runs)) for n, run in enumerate(runs)]
    return Merged(ordered, merged.notes)


class _Merger:
    """Collects the runs of files."""

    def __init__(self, own: Sequence[StoredRun], store: Store) -> None:
        self.runs: dict[str, StoredRun] = {}
        self.notes: list[str] = []
        tasks = [run for run in own if run.is_task and run.status == "FINISHED"]
        self.weights = {_seed(run.tags): run.tags.get("weights.sha256", "") for run in tasks}
        # task, settings and data → the protocol's hash and its libraries
        self.protocols: dict[str, tuple[str, dict[str, str]]] = {}
        for run in {run.tags["protocol"]: run for run in tasks}.values():
            self._protocol(run.tags["protocol"], read_json(store, run, PROTOCOL))

    def _protocol(self, protocol: str, conditions: dict[str, Any]) -> tuple[str, dict[str, str]]:
        entry = protocol, conditions.get("libraries", {})
        return self.protocols.setdefault(settings_key(conditions), entry)

    def add(self, title: str, content: bytes) -> None:
        """Add the runs of one file."""
        results, folder = unpack(title, content)
        seeds = {_seed(run.tags): run.tags["weights.sha256"] for run in results.runs}
        ambiguous = {
            name
            for (name, seed), sha in seeds.items()
            if self.weights.get((name, seed), sha) != sha
        }
        renamed = {name: f"{name} ({title})" for name in sorted(ambiguous)}
        protocols, versions = self._protocols(results)
        for run in results.runs:
            tags = dict(run.tags)
            tags["backbone"] = renamed.get(tags["backbone"], tags["backbone"])
            for tag, value in tags.items():
                if tag == "protocol" or tag.startswith("protocol."):
                    tags[tag] = protocols.get(value, value)
            if run.parent:
                tags[PARENT_TAG] = run.parent
            self.weights.setdefault(_seed(tags), tags["weights.sha256"])
            source = results.manifest.source or f"{title}{SUFFIX}"
            self.runs.setdefault(run.id, _stored(run, tags, title, folder / run.id, source))
        if versions:
            self.notes.append(
                f"results shared in {title} were made with other versions of"
                f" {', '.join(sorted(versions))}; they share a column where all else agrees"
            )

    def _protocols(self, results: SharedResults) -> tuple[dict[str, str], set[str]]:
        """Protocol of the file → the one it is shown under; libraries of other versions."""
        protocols, differing = {}, set()
        runs = {run.tags["protocol"]: run for run in results.runs if run.parent}
        for protocol, run in runs.items():
            conditions = results.json(f"{run.id}/{PROTOCOL}")
            shown, libraries = self._protocol(protocol, conditions)
            protocols[protocol] = shown
            theirs = conditions.get("libraries", {})
            differing |= {n for n in theirs | libraries if theirs.get(n) != libraries.get(n)}
        return protocols, differing


def _seed(tags: Mapping[str, str]) -> tuple[str, str]:
    return tags.get("backbone", ""), tags.get("seed", "")


def _stored(
    run: SharedRun, tags: dict[str, str], title: str, folder: Path, source: str
) -> StoredRun:
    return StoredRun(
        id=run.id,
        name=run.name,
        experiment=title,
        experiment_id="",
        status="FINISHED",
        started=0,
        artifacts=str(folder),
        tags=tags,
        params=run.params,
        metrics=run.metrics,
        source=source,
    )


def unpack(title: str, content: bytes) -> tuple[SharedResults, Path]:
    """A file's results and the folder that has its members; verified when it is unpacked first.

    Raises:
        TrackingError: the file is refused.
    """
    results = read_archive(content, title)
    folder = home() / "shared" / content_key(results.manifest.model_dump())
    if not folder.is_dir():
        verify(results)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            root = Path(scratch) / "results"
            for name, member in results.members.items():
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(member)
            try:
                root.rename(folder)
            except OSError:  # another process has unpacked it meanwhile
                shutil.rmtree(root)
    return results, folder
