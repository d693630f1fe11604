"""``data check``: which datasets are present and complete; ``data get``: download them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.cli.options import FLAG, PAIRS, add, add_data, folder, output_json, parse_folders
from benchmark.cli.parser import add_command, add_commands, with_examples
from common.errors import UserError

if TYPE_CHECKING:
    from probes.datasets.survey import Row

STYLES = {
    "complete": "green",
    "available": "green",
    "partial": "yellow",
    "broken": "red",
    "absent": "dim",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``data``."""
    with_examples(parser, "check --data-root DIR", "get voc coco --to DIR")
    commands = add_commands(parser, "what")
    examples = "--data-root DIR --full", "--data voc=/data/VOCdevkit/VOC2012 --json"
    check = add_command(commands, "check", "show which datasets are complete", *examples)
    add_data(check)
    check.add_argument("--full", **FLAG, help="also decode every file")
    add(check, "--num-workers", default=2, help="data-loading processes (default: 2)")
    add(check, "--json")
    get = add_command(
        commands,
        "get",
        "download datasets into the layout that `check` expects; without names, list them",
        "voc coco --to DIR",
        "imagenet --archive ILSVRC2012_img_val.tar --to DIR",
    )
    get.add_argument(
        "names", nargs="*", metavar="NAME", help="voc, ade20k, coco, nyu … wds_NAME, or zeroshot38"
    )
    get.add_argument(
        "--to",
        type=folder,
        default=Path("data"),
        metavar="DIR",
        help="the --data-root (default: ./data)",
    )
    get.add_argument(
        "--archive",
        **{**PAIRS, "metavar": "PATH"},
        type=Path,
        help="an archive that you have downloaded (repeatable)",
    )
    get.add_argument("--train", **FLAG, help="also the training shards of wds_NAME")
    add(get, "--dry-run")


def main(options: argparse.Namespace) -> int:
    """Run ``check`` or ``get``."""
    return check(options) if options.what == "check" else get(options)


def check(options: argparse.Namespace) -> int:
    """Print a line for each dataset; exit code 1 if one is broken."""
    import benchmark.catalog  # noqa: F401 – registers every dataset
    from benchmark.execution.progress import Bar, console
    from probes.datasets.specs.webdataset import register_folders
    from probes.datasets.survey import survey

    if options.data_root is None and not options.data:
        raise UserError("give --data-root DIR and/or --data NAME=DIR")
    register_folders(options.data_root)
    folders = parse_folders(options.data)
    with Bar() as bar:
        rows = survey(
            options.data_root,
            folders,
            full=options.full,
            workers=options.num_workers,
            progress=bar,
        )
    if not output_json(options, [asdict(row) for row in rows]):
        show(rows)
        absent = [row for row in rows if row.state == "absent"]
        if options.data_root:
            for row in absent:
                if "no folder wds_" not in row.message:  # 38 of zeroshot38
                    console.print(f"{row.name:<12} absent    {row.message}", style="dim")
        if absent:
            console.print("`data get` downloads datasets", style="dim")
    return 1 if any(row.state == "broken" for row in rows) else 0


def show(rows: Sequence[Row]) -> None:
    """Print state and counts of the datasets that are present."""
    from rich.text import Text

    from benchmark.execution.progress import console

    for row in rows:
        if row.state != "absent":
            counts = []
            for split, count in row.counts.items():
                total = f" of {row.expected[split]}" if split in row.expected else ""
                counts.append(f"{split} {count}{total}")
            line = Text(f"{row.name:<12} {row.state:<9}", style=STYLES[row.state])
            console.print(line.append(f" {', '.join(counts)}", "default"))
            if row.message:
                console.print(f"{'':<13}{row.message}")
    if any(row.state == "partial" for row in rows):
        console.print(
            "partial datasets run with --partial; their results are not comparable with published"
            " ones"
        )


def get(options: argparse.Namespace) -> int:
    """Download, unpack and check datasets; a failure does not stop the others."""
    import benchmark.catalog  # noqa: F401
    from benchmark.execution.progress import console
    from probes.datasets.download.table import ENTRIES
    from probes.datasets.specs.webdataset import TASKS

    if not options.names:
        for entry in ENTRIES.values():
            size = sum(archive.size for archive in entry.archives) / 1e9
            console.print(f"{entry.name:<10} {size:6.1f} GB  {entry.about}")
        about = "a webdataset folder of huggingface.co/clip-benchmark or huggingface.co/djghosh"
        console.print(f"{'wds_NAME':<21} {about}")
        console.print(f"{'zeroshot38':<21} the 38 of OpenCLIP's zero-shot tasks")
        return 0
    if options.archive and len(options.names) > 1:
        raise UserError("--archive needs a single NAME; run the command for each")
    names = options.names
    if names == ["zeroshot38"]:
        names = [f"wds_{task.name}" for task in TASKS]
    failed = []
    for name in names:
        try:
            _get(name, options)
        except UserError as error:
            if len(names) == 1:
                raise
            failed.append(name)
            console.print(f"error: {error}", style="red")
    if failed:
        raise UserError(f"failed: {', '.join(failed)}; run the command again")
    if not options.dry_run:
        console.print(f"next: python -m benchmark data check --data-root {options.to} --full")
    return 0


def _get(name: str, options: argparse.Namespace) -> None:
    from benchmark.execution.progress import Bar, console
    from probes.datasets.download import hub
    from probes.datasets.download.get import get as download
    from probes.datasets.download.table import find_entry
    from probes.datasets.specs.webdataset import datasets_of, register_folders
    from probes.datasets.survey import survey

    if name.startswith("wds_"):
        name = name.replace("/", "-")
        if options.dry_run:
            _, _, files = hub.hub_files(name, options.train)
            _show_plan(name, options.to, sum(file.size or 0 for file in files))
            return
        folder = hub.get_webdataset(name, options.to, options.train)
        register_folders(options.to)
        datasets: Sequence[str] = datasets_of(name)
    else:
        entry = find_entry(name)
        datasets = entry.datasets
        folder = options.to / entry.folder
        rows = survey(options.to, {}, only=datasets)
        if all(row.state == "complete" for row in rows):
            console.print(f"{name} is complete in {options.to}")
            return
        if options.dry_run:
            _show_plan(name, options.to, sum(archive.size for archive in entry.archives))
            return
        with Bar() as bar:
            download(entry, options.to, options.archive, bar, console.print)
    console.print(f"{name} is in {folder}")
    show(survey(options.to, {}, only=datasets))


def _show_plan(name: str, to: Path, size: int) -> None:
    from benchmark.execution.progress import console

    console.print(f"would download {name} into {to}: about {size / 1e9:.1f} GB")
