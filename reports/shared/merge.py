"""Shared results beside one's own: their records join those of the store, so that one selection and
one analysis see all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from cliptex_common.errors import first_line
from cliptex_common.files import content_key, home
from cliptex_common.secrets import hide_secrets, redact
from reports.artifacts import DETECTIONS, PER_IMAGE, PROTOCOL
from reports.cell import Cell, ParentRun, Record
from reports.errors import TrackingError
from reports.mlflow.query import Store
from reports.shared.archive import LARGEST, SharedResults, read_archive
from reports.shared.check import check_results
from reports.shared.standings import settings_key
from reports.stats.per_image import agrees

SUFFIX = ".zip"
TIMEOUT = 30.0  # seconds without a byte
MOST_SECONDS = 600.0  # of a download
BLOCK = 1 << 20
# settings of probes that draw random numbers by the seed: others give equal scores with each seed
SEEDED = {"epochs", "max_iters", "shots"}


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
    titles: dict[str, tuple[str, Cell]] = {}
    originals: dict[tuple[str | None, ...], Cell] = {}
    for title, content in files:
        results = read_archive(content, title)
        cells, notes = [], []
        for cell in sorted(results.cells, key=lambda cell: cell.seed):
            other, same = titles.setdefault(cell.run_id, (title, cell))
            mine, theirs = (each.metrics.get(cell.main, 0.0) for each in (same, cell))
            if not agrees(mine, theirs):
                raise TrackingError(
                    f"{other} and {title} have other scores of {cell.label}:"
                    f" {mine:.6g} and {theirs:.6g} {cell.main}; leave one file out"
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
    for results in read_files(find_files(locations)):
        merger.add(results)
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

    def add(self, results: SharedResults) -> None:
        """Add the records of one file."""
        title, folder = results.title, unpack(results)
        self.notes += results.notes
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
