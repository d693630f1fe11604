"""``data``: datasets on this machine; ``cache``: reusable artifacts under ``$CLIPTEX_HOME``."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import Timeout
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

import benchmark.catalog  # noqa: F401 – registers every dataset
from benchmark.commands.looking import print_state, print_table
from benchmark.options import Changes, DryRunOptions, FolderOptions, TaskName
from benchmark.parser import JsonOptions, Positionals
from benchmark.progress import Bar, console
from cliptex_common.errors import UserError, suggest
from cliptex_common.files import (
    guard_removal,
    home,
    lock_path,
    locked,
    read_json_object,
    write_text,
)
from cliptex_common.settings import Folder, options_dataclass
from probes.datasets import download
from probes.datasets.check import SPLITS, DatasetState, find_folder, survey
from probes.datasets.download import ENTRIES, find_entry, get
from probes.datasets.webdataset import DATACOMP, datasets_of, register_folders

# Folder under $CLIPTEX_HOME → what each entry is. Left out are locks, users, processes and tasks,
# which running commands need and remove themselves.
KINDS = {
    "features": "encoded features",
    "mini": "rendered world",
    "experts": "expert",
    "labels": "pseudo-labels",
    "weights": "backbone weights",
    "work": "unfinished cell",
    "shared": "shared results",
    "shards": "fetched shard",
    "artifacts": "fetched files of a run",
}
# folders that are one entry, of many small files
INDICES = {
    "datasets": "checks of datasets",
    "content_hashes": "hashes of images",
    "efficiency": "costs of backbones",
    "backbones": "identities of backbones",
    "pair-index": "indices of pairs",
    "label-index": "indices of pseudo-labels",
    "tar-index": "indices of tars",
}


@dataclass(frozen=True)
class CacheEntry:
    """One file or folder; ``used`` is in seconds since the epoch."""

    kind: str
    name: str
    path: Path
    size: int
    used: float
    about: str


@options_dataclass
class KindOptions:
    """Which entries."""

    kind: str | None = None
    """only these: features, mini, experts, labels, weights, work, shared, shards, artifacts,
    datasets, content_hashes, efficiency, backbones, pair-index, label-index, tar-index"""

    def entries(self) -> list[CacheEntry]:
        """Those of the kind, in order of their names."""
        kinds = [*KINDS, *INDICES]
        if self.kind and self.kind not in kinds:
            raise UserError(f"unknown --kind {self.kind}; {suggest(self.kind, kinds)}")
        kinds = [self.kind] if self.kind else kinds
        return [entry for kind in kinds for entry in _read(kind)]


@options_dataclass
class ListCache(KindOptions, JsonOptions):
    """List what is cached, its size and when it was last used.

    examples:
      python -m benchmark cache ls --json
      python -m benchmark cache ls --kind features
    """

    def main(self) -> int:
        """Print a line for each entry, and the total."""
        entries = self.entries()
        if not self.output_json([asdict(entry) for entry in entries]):
            _show_entries(entries)
        return 0


@options_dataclass
class RemoveFromCache(KindOptions, DryRunOptions):
    """Remove entries by name (a unique prefix suffices), kind or age; asks first.

    examples:
      python -m benchmark cache rm 3f2a
      python -m benchmark cache rm --kind features --older-than 30 --yes
    """

    names: Positionals[Sequence[str]] = ()
    """see `cache ls`"""
    older_than: NonNegativeFloat | None = None
    """only entries that were not used for so many days"""
    yes: bool = False
    """do not ask"""

    def main(self) -> int:
        """Exit code 1 if an entry is in use."""
        if not self.names and self.kind is None and self.older_than is None:
            raise UserError("choose entries by name (see `cache ls`), --kind or --older-than")
        entries = self.entries()
        if self.names:
            entries = [_find(entries, name) for name in self.names]
        if self.older_than is not None:
            limit = time.time() - 86400 * self.older_than
            entries = [entry for entry in entries if entry.used < limit]
        _show_entries(entries)
        if self.dry_run or not entries or not (self.yes or _confirm("remove these? [y/N] ")):
            return 0
        in_use = [entry for entry in entries if not _remove(entry)]
        for entry in in_use:
            console.print(f"in use: {entry.kind}/{entry.name}")
        console.print(f"removed {len(entries) - len(in_use)}")
        return 1 if in_use else 0


CACHE_COMMAND = {"ls": ListCache, "rm": RemoveFromCache}


def _read(kind: str) -> Iterator[CacheEntry]:
    """The entries of a kind, in order of their names."""
    for path in sorted(home().glob(kind if kind in INDICES else f"{kind}/[!.]*")):
        if path.suffix == ".lock":
            continue
        with suppress(FileNotFoundError):  # removed by another process meanwhile
            files = [path, *path.rglob("*")]
            size = sum(file.stat().st_size for file in files if file.is_file())
            key = read_json_object(path / "key.json")
            about = f"{key['kind']}: {key['about']}" if key else {**KINDS, **INDICES}[kind]
            yield CacheEntry(kind, path.name, path, size, path.stat().st_mtime, about)


def _show_entries(entries: Sequence[CacheEntry]) -> None:
    """Print a line for each entry, and the total."""
    rows = []
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        rows.append((entry.kind, entry.name, f"{_size(entry.size):>9}", used, entry.about))
    print_table(rows)
    console.print(f"{_size(sum(entry.size for entry in entries))} in {home()}")


def _confirm(question: str) -> bool:
    if not sys.stdin.isatty():
        raise UserError("cache rm asks first, and there is no terminal: give --yes or --dry-run")
    return input(question).strip().lower() in ("y", "yes")


def _remove(entry: CacheEntry) -> bool:
    """Remove an entry unless a process creates or uses it; returns whether it is removed."""
    from probes.features.store import remove_store

    path = entry.path
    if entry.kind == "features":
        return remove_store(path)
    # the locks of those who make entries: ``executor.exclusive``, of cells ``cell.cell_locks``; a
    # training's checkpoint is under the lock of its weights
    lock = ("make", str(path.absolute()).removesuffix(".resume"))
    if entry.kind == "work":
        lock = ("cell", entry.name)
    with suppress(Timeout), locked(lock_path(*lock), wait=False), guard_removal(path) as is_free:
        if is_free and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif is_free:
            path.unlink(missing_ok=True)
    return not path.exists()


def _find(entries: Sequence[CacheEntry], name: str) -> CacheEntry:
    """The entry of a name, ``KIND/NAME`` or unique prefix."""
    name = name.split("/")[-1]
    matches = [entry for entry in entries if entry.name == name]
    matches = matches or [entry for entry in entries if entry.name.startswith(name)]
    if len(matches) > 1:
        raise UserError(f"{len(matches)} cached entries begin with {name!r}; give a longer prefix")
    if not matches:
        hint = suggest(name, [entry.name for entry in entries])
        raise UserError(f"no cached entry {name!r}; {hint}")
    return matches[0]


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


STYLES = {
    "complete": "green",
    "available": "green",
    "partial": "yellow",
    "broken": "red",
    "absent": "dim",
}


@options_dataclass
class CheckDatasets(FolderOptions, JsonOptions):
    """Show which datasets are complete.

    examples:
      python -m benchmark data check --data-root DIR --full
      python -m benchmark data check --data voc=/data/VOCdevkit/VOC2012 --json
    """

    full: bool = False
    """also decode every file"""
    present: bool = False
    """only those that are there, complete or not"""
    num_workers: NonNegativeInt = 2
    """data-loading processes"""

    def main(self) -> int:
        """Print a line for each dataset; exit code 2 if one is broken."""
        if self.data_root is None and not self.data:
            raise UserError("give --data-root DIR and/or --data NAME=DIR")
        self.check_root()
        with Bar() as bar:
            rows = survey(
                self.data_root, self.data, full=self.full, workers=self.num_workers, progress=bar
            )
        if self.present:
            rows = [row for row in rows if row.state != "absent"]
        if not self.output_json([asdict(row) for row in rows]):
            present = [row for row in rows if row.state != "absent"]
            absent = [row for row in rows if row.state == "absent"]
            # their messages tell the 38 webdatasets of zeroshot38, which would drown the others
            if self.data_root:
                present += [row for row in absent if "no folder wds_" not in row.message]
            _show_datasets(present)
            if any(row.state == "absent" for row in present):
                console.print("`data get` downloads datasets", style="dim")
        return 2 if any(row.state == "broken" for row in rows) else 0


@options_dataclass
class GetDatasets(DryRunOptions):
    """Download datasets into the layout that `check` expects; without names, list them.

    examples:
      python -m benchmark data get voc coco --to DIR
      python -m benchmark data get imagenet --archive ILSVRC2012_img_val.tar --to DIR
    """

    names: Positionals[Sequence[str]] = ()
    """voc, ade20k, coco, nyu … wds_NAME, or zeroshot38"""
    to: Folder = Path("data")
    """the --data-root"""
    archive: Sequence[Path] = ()
    """an archive that you have downloaded (repeatable)"""
    train: bool = False
    """also the training shards of wds_NAME"""

    def main(self) -> int:
        """Download, unpack and check datasets; a failure does not stop the others."""
        if not self.names:
            rows = []
            for entry in ENTRIES.values():
                size = sum(archive.size for archive in entry.archives) / 1e9
                rows.append((entry.name, f"{size:6.1f} GB", entry.about))
            about = "a webdataset folder of huggingface.co/clip-benchmark or huggingface.co/djghosh"
            rows.append(("wds_NAME", "", about))
            rows.append(("zeroshot38", "", "the 38 of OpenCLIP's zero-shot tasks"))
            print_table(rows)
            return 0
        if self.archive and len(self.names) > 1:
            raise UserError("--archive needs a single NAME; run the command for each")
        names = self.names
        if names == ["zeroshot38"]:
            names = [f"wds_{task.name}" for task in DATACOMP]
        failed = []
        for name in names:
            try:
                self._get(name)
            except UserError as error:
                if len(names) == 1:
                    raise
                failed.append(name)
                console.print(f"error: {error}", style="red")
        if failed:
            raise UserError(f"failed: {', '.join(failed)}; run the command again")
        if not self.dry_run:
            console.print(f"next: python -m benchmark data check --data-root {self.to} --full")
        return 0

    def _get(self, name: str) -> None:
        is_webdataset = name.startswith("wds_")
        if is_webdataset:
            name = name.replace("/", "-")
        else:
            entry = find_entry(name)
            if all(row.state == "complete" for row in survey(self.to, {}, only=entry.datasets)):
                console.print(f"{name} is complete in {self.to}")
                return
        if self.dry_run:
            files = download.hub_files(name, self.train)[2] if is_webdataset else entry.archives
            size = sum(file.size or 0 for file in files) / 1e9
            console.print(f"would download {name} into {self.to}: about {size:.1f} GB")
            return
        if is_webdataset:
            folder = download.get_webdataset(name, self.to, self.train)
            register_folders(self.to)
        else:
            with Bar() as bar:
                folder = get(entry, self.to, self.archive, bar, console.print)
        console.print(f"{name} is in {folder}")
        _show_datasets(
            survey(self.to, {}, only=datasets_of(name) if is_webdataset else entry.datasets)
        )


@options_dataclass
class ShowSamples(FolderOptions):
    """Draw samples of a task as its probe sees them at train and at val, with their ground truth: a
    page, in seconds, without a backbone and without a store.

    examples:
      python -m benchmark data show camvid/linear --data camvid=DIR
      python -m benchmark data show nyu-depth/dpt --data-root DIR --count 8 --out depth.html
    """

    task: TaskName
    """what is shown; see `list tasks`"""
    out: Path | None = None
    """the page (default: samples-TASK.html here)"""
    count: PositiveInt = 4
    """samples of each split, evenly spaced"""
    overrides: Changes = field(default_factory=dict)
    """change a setting of the task (repeatable): size, crop, flip …"""

    def main(self) -> int:
        """Write the page."""
        from benchmark.suites import choose_suite
        from benchmark.tasks import plan_tasks
        from probes.samples import SampleRequest, draw_samples
        from reports.render import render_samples

        self.check_root()
        planned = plan_tasks(choose_suite([self.task]), [self.task], self.overrides)[0]
        root = find_folder(planned.spec, self.data_root, self.data)
        spec, splits = planned.spec.at(root), dict[str, Any]()
        for split in SPLITS if "train" in planned.splits else planned.splits:
            try:
                splits[split] = draw_samples(
                    SampleRequest(spec, root, planned.probe, planned.settings, split, self.count)
                )
            except UserError as error:
                splits[split] = str(error)
        if all(isinstance(drawn, str) for drawn in splits.values()):
            raise UserError("; ".join(splits.values()))
        about = f"{spec.about or spec.kind}; {root}"
        path = self.out or Path(f"samples-{planned.name.replace('/', '-')}.html")
        write_text(path, render_samples(planned.name, about, splits))
        console.print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
        return 0


DATA_COMMAND = {"check": CheckDatasets, "show": ShowSamples, "get": GetDatasets}


def _show_datasets(rows: Sequence[DatasetState]) -> None:
    """Print state and counts of datasets."""
    width = max((len(row.name) for row in rows), default=0)
    for row in rows:
        counts = []
        for split, count in row.counts.items():
            total = f" of {row.expected[split]}" if split in row.expected else ""
            counts.append(f"{split} {count}{total}")
        state = f"{row.name:<{width}} {row.state:<9}"
        print_state(state, STYLES[row.state], ", ".join(counts), row.message)
    if any(row.state == "partial" for row in rows):
        console.print(
            "partial datasets run with --partial; their results are not comparable with published"
            " ones"
        )
