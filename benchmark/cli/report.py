"""``report``: compare what is in MLflow, as one page and as tables."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmark.cli.options import FLAG, NAMES, add, add_tracking, folder
from benchmark.cli.parser import with_examples


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``report``."""
    with_examples(
        parser,
        "--experiment paper --baseline clip-ft --out report/",
        "--backbone clip,clip-ft,cliptex --format html,latex --ui-url http://127.0.0.1:5000",
    )
    add(parser, "--config")
    about = "MLflow experiments (default: mini where it has results, else the latest one that has)"
    parser.add_argument("--experiment", **NAMES, metavar="NAME[,NAME]", help=about)
    about = "only these, in this order (default: all); NAME@SHA picks weights by their sha256"
    add(parser, "--backbone", help=about)
    about = "what the others are compared with (default: clip-ft, clip, random, or the first)"
    parser.add_argument("--baseline", metavar="NAME", help=about)
    add(parser, "--task")
    parser.add_argument("--study", metavar="NAME", help="report on this λ sweep instead")
    about = "html, md, csv, latex (default: html)"
    parser.add_argument("--format", **NAMES, metavar="NAME[,NAME]", help=about)
    add(
        parser,
        "--out",
        type=folder,
        default=Path("report"),
        metavar="DIR",
        help="folder to write (default: report)",
    )
    about = "address of an MLflow UI: numbers then link to their runs"
    parser.add_argument("--ui-url", default="", metavar="URL", help=about)
    parser.add_argument(
        "--verify",
        **FLAG,
        help=(
            "instead, check every finished result of --experiment (default: of all) against its"
            " artifacts: metrics, protocol, per-image scores computed again; exit code 1 when one"
            " is wrong"
        ),
    )
    add_tracking(parser, "")


def main(options: argparse.Namespace) -> int:
    """Build the report, write it, say what it says."""
    from benchmark.execution.progress import Bar, console
    from reports.errors import TrackingError
    from reports.render.export import FORMATS, write
    from reports.report import Request, build

    if options.verify:
        return _verify(options.experiment, options.tracking_uri)
    formats = list(dict.fromkeys(options.format)) or ["html"]
    for name in formats:
        if name not in FORMATS:
            raise TrackingError(f"--format {name}: there are {', '.join(FORMATS)}")
    if options.study and (options.backbones or options.tasks or options.baseline):
        raise TrackingError(
            "--study reports on a sweep's trials; --backbone, --task and --baseline do not go"
            " with it"
        )
    if options.ui_url and not options.ui_url.startswith(("http://", "https://")):
        raise TrackingError(
            f"--ui-url {options.ui_url!r} is no address; give one like http://127.0.0.1:5000"
        )
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
        console.print(
            f"experiment {', '.join(report.analysis.selection.experiments)}",
            style="dim",
            markup=False,
        )
    console.print(report.verdict.headline, style="bold", markup=False)
    for note in report.notes:
        console.print(f"  note · {note}", style="dim", markup=False)
    console.print(f"report: {', '.join(map(str, files))}", markup=False)
    return 0


def _verify(experiments: Sequence[str], tracking_uri: str | None) -> int:
    """Say what is wrong in the store, a line each."""
    from benchmark.execution.progress import Bar, console
    from benchmark.results.verify import verify
    from reports.mlflow.query import Store

    with Bar() as bar:
        count, wrong = verify(Store(tracking_uri), experiments, bar.start, bar.advance)
    for line in wrong:
        console.print(line, style="red", markup=False)
    console.print(f"{count} finished results, {len(wrong)} things wrong")
    return 1 if wrong else 0
