"""``report``: compare the results in MLflow, as a page and as tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmark.cli.options import NAMES, add, add_tracking, folder
from benchmark.cli.parser import with_examples


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``report``."""
    with_examples(
        parser,
        "--experiment paper --baseline clip-ft --out report/",
        "--backbone clip,clip-ft,cliptex --format html,latex --ui-url http://127.0.0.1:5000",
    )
    add(parser, "--config")
    parser.add_argument(
        "--experiment",
        **NAMES,
        metavar="NAME[,NAME]",
        help="MLflow experiments (default: the latest with results)",
    )
    add(
        parser,
        "--backbone",
        help="only these, in this order (default: all); NAME@SHA selects weights by their sha256",
    )
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        help="what the others are compared with (default: clip-ft, clip, random, or the first)",
    )
    add(parser, "--task")
    parser.add_argument("--study", metavar="NAME", help="report on this λ sweep instead")
    parser.add_argument(
        "--format", **NAMES, metavar="NAME[,NAME]", help="html, md, csv, latex (default: html)"
    )
    add(
        parser,
        "--out",
        type=folder,
        default=Path("report"),
        metavar="DIR",
        help="output folder (default: report)",
    )
    parser.add_argument(
        "--ui-url",
        default="",
        metavar="URL",
        help="address of an MLflow UI: numbers then link to their runs",
    )
    add_tracking(parser, "")


def main(options: argparse.Namespace) -> int:
    """Build and write the report; print its headline."""
    from benchmark.execution.progress import Bar, console
    from reports.errors import TrackingError
    from reports.render.export import FORMATS, write
    from reports.report import Request, build

    formats = list(dict.fromkeys(options.format)) or ["html"]
    if unknown := set(formats) - set(FORMATS):
        raise TrackingError(f"--format {min(unknown)}: choose from {', '.join(FORMATS)}")
    if options.study and (options.backbones or options.tasks or options.baseline):
        raise TrackingError("--study excludes --backbone, --task and --baseline")
    request = Request(
        experiments=options.experiment,
        baseline=options.baseline,
        backbones=list(dict.fromkeys(options.backbones)),
        tasks=list(dict.fromkeys(options.tasks)),
        study=options.study,
        tracking_uri=options.tracking_uri,
        ui_url=options.ui_url,
    )
    with Bar() as bar:
        report = build(request, bar.start, bar.advance)
        files = write(report, options.out, formats)
    if not request.experiments and report.analysis is not None:
        experiments = ", ".join(report.analysis.selection.experiments)
        console.print(f"experiment {experiments}", style="dim")
    console.print(report.verdict.headline, style="bold")
    for note in report.notes:
        console.print(f"  note · {note}", style="dim")
    console.print(f"report: {', '.join(map(str, files))}")
    return 0
