"""``data check``: which datasets are there, complete or not, and what is missing."""

from __future__ import annotations

import argparse

from benchmark.cli.options import add_data, placed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``data``."""
    commands = parser.add_subparsers(dest="what", required=True)
    check = commands.add_parser("check", help="what is there, what is missing")
    add_data(check)
    check.add_argument("--full", action="store_true", help="also decode every file")
    check.add_argument("--num-workers", type=int, default=2, metavar="N", help="decoding threads (default: 2)")


def main(options: argparse.Namespace) -> int:
    """One line a dataset; exit code 0 even when some are absent, since not everybody needs all."""
    import benchmark.catalog  # noqa: F401 – registers every dataset, probe and suite
    from backbones.utils.errors import UserError
    from benchmark.execution.progress import Bar, console
    from benchmark.suites.registry import SUITES
    from probes.datasets.survey import survey
    from probes.datasets.webdataset import register_folders

    if options.data_root is None and not options.data:
        raise UserError("say where to look: --data-root DIR and/or --data NAME=DIR")
    if options.data_root is not None and not options.data_root.is_dir():
        raise UserError(f"--data-root {options.data_root}: no such folder")
    register_folders(options.data_root)
    styles = {"complete": "green", "available": "green", "partial": "yellow", "broken": "red", "absent": "dim"}
    with Bar() as bar:
        rows = survey(
            options.data_root, placed(options.data), full=options.full, workers=options.num_workers, progress=bar
        )
    for row in rows:
        counts = ", ".join(
            f"{split} {found}" + (f" of {row.expected[split]}" if split in row.expected else "")
            for split, found in row.found.items()
        )
        if row.state != "absent":
            console.print(f"[{styles[row.state]}]{row.name:<12} {row.state:<9}[/] {counts}")
            if row.message:
                console.print(f"{'':<13}{row.message}", markup=False)
    if any(row.state == "partial" for row in rows):
        console.print("partial datasets run with --partial; their numbers cannot be compared with published ones")
    absent = {row.name for row in rows if row.state == "absent"}
    told: set[str] = set()
    for suite in SUITES.values():
        if suite.what_is_there and options.data_root:
            names = list(dict.fromkeys(task.partition("/")[0] for task in suite.tasks))
            missing = [name for name in names if name in absent]
            listed = f"; missing: {', '.join(missing)}" if missing else ""
            console.print(
                f"{suite.name}: data of {len(names) - len(missing)} of {len(names)} tasks{listed}", markup=False
            )
            told |= set(names)
    for row in rows:
        if row.state == "absent" and options.data_root and row.name not in told:
            console.print(f"{row.name:<12} absent    {row.message}", style="dim", markup=False, highlight=False)
    return 0
