"""``data check``: which datasets are there, complete or not, and what is missing; ``data get``:
fetch them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.cli.options import FLAG, PAIRS, add, add_data, folder, gave_json, placed
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
    check = add_command(commands, "check", "what is there, what is missing", *examples)
    add_data(check)
    check.add_argument("--full", **FLAG, help="also decode every file")
    add(
        check,
        "--num-workers",
        default=2,
        help="what loads images; never changes a result (default: 2)",
    )
    add(check, "--json")
    about = "fetch datasets into the layout that `check` wants; without names: say which there are"
    get = add_command(
        commands,
        "get",
        about,
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
    about = "an archive you have got (repeatable)"
    get.add_argument("--archive", **PAIRS | {"metavar": "PATH"}, type=Path, help=about)
    get.add_argument("--train", **FLAG, help="also the training shards of wds_NAME")
    add(get, "--dry-run")


def main(options: argparse.Namespace) -> int:
    """One line a dataset; exit code 0 even when some are absent, since not everybody needs all."""
    return check(options) if options.what == "check" else get(options)


def check(options: argparse.Namespace) -> int:
    """What is there."""
    import benchmark.catalog  # noqa: F401 – registers every dataset, probe and suite
    from benchmark.execution.progress import Bar, console
    from benchmark.suites.registry import SUITES
    from probes.datasets.specs.webdataset import register_folders
    from probes.datasets.survey import survey
    from probes.registry import DATASETS

    if options.data_root is None and not options.data:
        raise UserError("say where to look: --data-root DIR and/or --data NAME=DIR")
    if options.data_root is not None and not options.data_root.is_dir():
        raise UserError(f"--data-root {options.data_root}: no such folder")
    register_folders(options.data_root)
    with Bar() as bar:
        rows = survey(
            options.data_root,
            placed(options.data),
            full=options.full,
            workers=options.num_workers,
            progress=bar,
        )
    if gave_json(options, [asdict(row) for row in rows]):
        return 0
    show(rows)
    absent = {row.name for row in rows if row.state == "absent"}
    told: set[str] = set()
    for suite in SUITES.values():
        if suite.what_is_there and options.data_root:
            names = list(dict.fromkeys(task.partition("/")[0] for task in suite.tasks))
            missing = [name for name in names if name in absent]
            listed = f"; missing: {', '.join(missing)}" if missing else ""
            console.print(
                f"{suite.name}: data of {len(names) - len(missing)} of {len(names)} tasks{listed}",
                markup=False,
            )
            told |= {
                name for name in names if DATASETS[name].module.endswith(".webdataset")
            }  # each has one reason
    for row in rows:
        if row.state == "absent" and options.data_root and row.name not in told:
            console.print(
                f"{row.name:<12} absent    {row.message}",
                style="dim",
                markup=False,
                highlight=False,
            )
    if absent:
        console.print("`data get` brings those that you want", style="dim")
    return 0


def show(rows: Sequence[Row]) -> None:
    """A line for each dataset that is there, and what should be known of it."""
    from rich.text import Text

    from benchmark.execution.progress import console

    for row in rows:
        counts = ", ".join(
            f"{split} {found}" + (f" of {row.expected[split]}" if split in row.expected else "")
            for split, found in row.found.items()
        )
        if row.state != "absent":
            state = Text(f"{row.name:<12} {row.state:<9}", style=STYLES[row.state])
            console.print(state.append(f" {counts}", "default"))
            if row.message:
                console.print(f"{'':<13}{row.message}", markup=False)
    if any(row.state == "partial" for row in rows):
        console.print(
            "partial datasets run with --partial; their numbers cannot be compared with published"
            " ones"
        )


def get(options: argparse.Namespace) -> int:
    """Fetch, unpack, and say what `data check` says of it. What cannot be had does not keep the
    others from coming."""
    import benchmark.catalog  # noqa: F401
    from benchmark.execution.progress import Bar, console
    from probes.datasets.download.get import get as fetched
    from probes.datasets.download.table import ENTRIES, entry
    from probes.datasets.specs.webdataset import TASKS, datasets_of, register_folders
    from probes.datasets.survey import survey

    say = partial(console.print, markup=False)
    if not options.names:
        for each in ENTRIES.values():
            size = sum(archive.size for archive in each.archives) / 1e9
            say(f"{each.name:<10} {size:6.1f} GB  {each.about}")
        say(
            "wds_NAME              a webdataset folder of huggingface.co/clip-benchmark or"
            " huggingface.co/djghosh"
        )
        say("zeroshot38            those of the 38 tasks")
        return 0
    if options.archive and len(options.names) > 1:
        raise UserError("--archive goes with one NAME; run the command for each")
    names = (
        [f"wds_{task.name}" for task in TASKS] if options.names == ["zeroshot38"] else options.names
    )
    missing = []
    for name in names:
        try:
            wanted = entry(name, options.train)
            rows = survey(options.to, {}, only=wanted.datasets)
            if rows and all(row.state == "complete" for row in rows):
                say(f"{name} is in {options.to} already")
            elif options.dry_run:
                size = sum(archive.size for archive in wanted.archives) / 1e9
                say(f"would fetch {name} into {options.to}: about {size:.1f} GB")
                continue
            else:
                with Bar() as bar:
                    say(f"{name} is in {fetched(wanted, options.to, options.archive, bar, say)}")
                register_folders(options.to)
                rows = survey(options.to, {}, only=wanted.datasets or datasets_of(wanted.folder))
            show(rows)
        except UserError as error:
            if len(names) == 1:
                raise
            missing.append(name)
            say(f"error: {error}", style="red")
    if missing:
        raise UserError(
            f"{len(missing)} of {len(names)} could not be got: {', '.join(missing)}; run the"
            " command again"
        )
    if options.dry_run:
        return 0
    say(f"next: python -m benchmark data check --data-root {options.to} --full")
    return 0
