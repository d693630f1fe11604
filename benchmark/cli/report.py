"""``report``: compare what is in MLflow, as one page and as tables."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmark.cli.options import REPEATED, add_tracking, folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``report``."""
    add = parser.add_argument
    add(
        "--experiment",
        **REPEATED,
        metavar="NAME[,NAME]",
        help="MLflow experiments (default: mini where it has results, else the latest one that has)",
    )
    add(
        "--backbone",
        **REPEATED,
        metavar="NAME[,NAME]",
        help="only these, in this order (default: all); NAME@SHA picks weights by their sha256",
    )
    add(
        "--baseline",
        metavar="NAME",
        help="what the others are compared with (default: clip-ft, clip, random, or the first)",
    )
    add("--task", **REPEATED, metavar="TASK[,TASK]", help="only these tasks")
    add("--study", metavar="NAME", help="report on this λ sweep instead")
    add("--format", default="html", metavar="NAME[,NAME]", help="html, md, csv, latex (default: html)")
    add("--out", type=folder, default=Path("report"), metavar="DIR", help="folder to write (default: report)")
    add("--ui-url", default="", metavar="URL", help="address of an MLflow UI: numbers then link to their runs")
    add(
        "--verify",
        action="store_true",
        help="instead, check every finished result of --experiment (default: of all) against its artifacts: metrics, "
        "protocol, per-image scores computed again; exit code 1 when one is wrong",
    )
    add_tracking(parser)


def main(options: argparse.Namespace) -> int:
    """Build the report, write it, say what it says."""
    from benchmark.evaluation.plan import split_names
    from benchmark.execution.progress import Bar, console
    from reports.errors import TrackingError
    from reports.render.export import FORMATS, write
    from reports.report import Request, build

    if options.verify:
        return _verify(split_names(options.experiment), options.tracking_uri)
    formats = split_names([options.format])
    for name in formats:
        if name not in FORMATS:
            raise TrackingError(f"--format {name}: there are {', '.join(FORMATS)}")
    if options.study and (options.backbone or options.task or options.baseline):
        raise TrackingError("--study reports on a sweep's trials; --backbone, --task and --baseline do not go with it")
    if options.ui_url and not options.ui_url.startswith(("http://", "https://")):
        raise TrackingError(f"--ui-url {options.ui_url!r} is no address; give one like http://127.0.0.1:5000")
    request = Request(
        experiments=split_names(options.experiment),
        baseline=options.baseline,
        backbones=split_names(options.backbone),
        tasks=split_names(options.task),
        study=options.study,
        tracking_uri=options.tracking_uri,
        ui_url=options.ui_url,
    )
    with Bar() as bar:
        report = build(request, bar.start, bar.advance)
        files = write(report, options.out, formats)
    if not request.experiments and report.analysis is not None:
        console.print(f"experiment {', '.join(report.analysis.selection.experiments)}", style="dim", markup=False)
    console.print(report.verdict.headline, style="bold", markup=False)
    for note in report.notes:
        console.print(f"  note · {note}", style="dim", markup=False)
    console.print(f"report: {', '.join(map(str, files))}", markup=False)
    return 0


def _verify(experiments: Sequence[str], tracking_uri: str | None) -> int:
    """Say what is wrong in the store, a line each."""
    from benchmark.evaluation.verify import verify
    from benchmark.execution.progress import Bar, console
    from reports.mlflow.query import Store

    with Bar() as bar:
        count, wrong = verify(Store(tracking_uri), experiments, bar.start, bar.advance)
    for line in wrong:
        console.print(line, style="red", markup=False)
    console.print(f"{count} finished results, {len(wrong)} things wrong")
    return 1 if wrong else 0
