"""Shared results beside one's own: their records join those of the store, so that one selection and
one analysis see all."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from cliptex_common.errors import first_line
from cliptex_common.files import content_key, home
from cliptex_common.secrets import hide_secrets, redact
from reports.artifacts import PROTOCOL
from reports.cell import Cell, ParentRun, Record
from reports.errors import TrackingError
from reports.mlflow.query import Store
from reports.shared.archive import SharedResults, read_archive
from reports.shared.check import check_results
from reports.shared.standings import settings_key

SUFFIX = ".zip"
TIMEOUT = 30.0  # seconds without a byte


def find_files(locations: Sequence[str]) -> list[tuple[str, bytes]]:
    """Title and content of each file at ``locations``: files, folders, URLs.

    Raises:
        TrackingError: there is none at one of them.
    """
    return [file for location in locations for file in _find(location)]


def _find(location: str) -> list[tuple[str, bytes]]:
    path = Path(location).expanduser()
    if "://" in location:
        return [(PurePosixPath(urlsplit(location).path).stem, _fetch(location))]
    if path.is_dir():
        paths = sorted(each for each in path.glob(f"*{SUFFIX}") if each.is_file())
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

    options = {}
    if url.startswith("http"):
        from aiohttp import ClientTimeout

        options["client_kwargs"] = {
            "timeout": ClientTimeout(sock_connect=TIMEOUT, sock_read=TIMEOUT)
        }
    try:
        with fsspec.open(url, "rb", **options) as file:
            return file.read()
    except Exception as error:  # each protocol has its own errors
        # fsspec's own error of a server says the URL alone
        reason = redact(first_line(error.__cause__ or error))
        raise TrackingError(f"cannot fetch {hide_secrets(url)}: {reason}; check the URL") from error


def read_shared(
    locations: Sequence[str], own: Sequence[Record], store: Store
) -> tuple[list[Cell | ParentRun], list[str]]:
    """The records of shared files as a report reads them, and what a reader must know of them.

    A backbone that has other weights here, or in an earlier file, gets the file's title added to
    its name. Results whose protocol differs from one's own only in the
    versions of libraries share its column.

    Args:
        own: the runs of the store that the report is about.

    Raises:
        TrackingError: a file cannot be read or is refused.
    """
    merger = _Merger(own, store)
    for title, content in find_files(locations):
        merger.add(title, content)
    # older than all that is in the store, so that own results count where both have a cell
    records = sorted(merger.records.values(), key=lambda record: record.backbone)
    ordered = [
        record.model_copy(update={"started": number - len(records)})
        for number, record in enumerate(records)
    ]
    return ordered, merger.notes


class _Merger:
    """Collects the records of files."""

    def __init__(self, own: Sequence[Record], store: Store) -> None:
        self.records: dict[str, Cell | ParentRun] = {}
        self.notes: list[str] = []
        cells = [run for run in own if isinstance(run, Cell) and run.is_finished]
        self.others: list[Cell | ParentRun] = [*cells]
        # task, settings and data → the protocol's hash and its libraries
        self.protocols: dict[str, tuple[str, dict[str, str]]] = {}
        for cell in {cell.protocol: cell for cell in cells}.values():
            self._protocol(cell.protocol, store.json(cell, PROTOCOL))

    def _protocol(self, protocol: str, conditions: dict[str, Any]) -> tuple[str, dict[str, str]]:
        entry = protocol, conditions.get("libraries", {})
        return self.protocols.setdefault(settings_key(conditions), entry)

    def add(self, title: str, content: bytes) -> None:
        """Add the records of one file."""
        results, folder = unpack(title, content)
        names = results.new_names(self.others)
        protocols = self._protocols(results)
        source = results.manifest.source or f"{title}{SUFFIX}"
        records: list[Cell | ParentRun] = [*results.parents.values(), *results.cells]
        for record in records:
            name = names.get(record.backbone, record.backbone)
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
            record = self.records.setdefault(record.run_id, record.model_copy(update=changes))
            self.others.append(record)

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


def unpack(title: str, content: bytes) -> tuple[SharedResults, Path]:
    """A file's results and the folder that has its members; verified when it is unpacked first.

    Raises:
        TrackingError: the file is refused.
    """
    results = read_archive(content, title)
    folder = home() / "shared" / content_key(results.manifest.model_dump())
    if not folder.is_dir():
        check_results(results)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            root = Path(scratch) / "results"
            for name, member in results.members.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(member)
            with suppress(OSError):  # another process has unpacked it meanwhile
                root.rename(folder)
    return results, folder
