"""``data check``: which datasets are present and complete; ``data get``: download them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import NonNegativeInt

import benchmark.suites.catalog  # noqa: F401 – registers every dataset
from benchmark.cli.output import print_state, print_table
from benchmark.cli.parser import JsonOptions, Positionals
from benchmark.execution.progress import Bar, console
from benchmark.planning.options import DryRunOptions, FolderOptions
from cliptex_common.errors import UserError
from cliptex_common.settings import Folder, options_dataclass
from probes.checks.survey import DatasetState, survey
from probes.datasets.download import hub
from probes.datasets.download.get import get
from probes.datasets.download.table import ENTRIES, find_entry
from probes.datasets.specs.webdataset import DATACOMP, datasets_of, register_folders

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
    num_workers: NonNegativeInt = 2
    """data-loading processes"""

    def main(self) -> int:
        """Print a line for each dataset; exit code 2 if one is broken."""
        if self.data_root is None and not self.data:
            raise UserError("give --data-root DIR and/or --data NAME=DIR")
        if self.data_root and not self.data_root.is_dir():
            raise UserError(f"no folder {self.data_root}; `data get` downloads datasets")
        with Bar() as bar:
            rows = survey(
                self.data_root, self.data, full=self.full, workers=self.num_workers, progress=bar
            )
        if not self.output_json([asdict(row) for row in rows]):
            present = [row for row in rows if row.state != "absent"]
            absent = [row for row in rows if row.state == "absent"]
            if self.data_root:  # without the 38 of zeroshot38
                present += [row for row in absent if "no folder wds_" not in row.message]
            _show(present)
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
            files = hub.hub_files(name, self.train)[2] if is_webdataset else entry.archives
            size = sum(file.size or 0 for file in files) / 1e9
            console.print(f"would download {name} into {self.to}: about {size:.1f} GB")
            return
        if is_webdataset:
            folder = hub.get_webdataset(name, self.to, self.train)
            register_folders(self.to)
        else:
            with Bar() as bar:
                folder = get(entry, self.to, self.archive, bar, console.print)
        console.print(f"{name} is in {folder}")
        _show(survey(self.to, {}, only=datasets_of(name) if is_webdataset else entry.datasets))


COMMAND = {"check": CheckDatasets, "get": GetDatasets}


def _show(rows: Sequence[DatasetState]) -> None:
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
