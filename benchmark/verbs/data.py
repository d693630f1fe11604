"""``data check``: which datasets are there, complete or not, and what is missing."""

from __future__ import annotations

import argparse

from benchmark.verbs.common import add_data, placed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``data``."""
    verbs = parser.add_subparsers(dest="what", required=True)
    check = verbs.add_parser("check", help="what is there, what is missing")
    add_data(check)
    check.add_argument("--full", action="store_true", help="also decode every file")
    check.add_argument("--workers", type=int, default=2)


def main(options: argparse.Namespace) -> int:
    """One line a dataset; exit code 0 even when some are absent, since not everybody needs all."""
    from backbones.errors import UserError
    from benchmark.progress import Bar, console
    from probes import catalog
    from probes.datasets.check import prepare, survey

    catalog.load()
    if options.data_root is None and not options.data:
        raise UserError("say where to look: --data-root DIR and/or --data NAME=DIR")
    marks = {"complete": "[green]complete[/]", "partial": "[yellow]partial [/]", "absent": "[dim]absent  [/]"}
    with Bar() as bar:
        for row in survey(options.data_root, placed(options.data)):
            text = row.detail
            if options.full and row.status != "absent":
                try:
                    data = prepare(row.spec, row.root, partial=True, workers=options.workers, progress=bar)
                    text += f"; all files decoded, {len(data.skipped)} unreadable, fingerprint {data.fingerprint[:12]}"
                except UserError as error:
                    text += f"; NOT USABLE: {error}"
            console.print(f"{row.spec.name:<12} {marks.get(row.status, row.status)}  {text}")
    return 0
