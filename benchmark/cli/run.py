"""``run``: probe backbones on a suite's tasks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.cli.options import (
    COUNT,
    FLAG,
    add,
    add_data,
    add_execution,
    add_tracking,
    run_options,
)
from benchmark.cli.parser import with_examples
from common.errors import UserError

if TYPE_CHECKING:
    from benchmark.results.outcome import RunResult
    from reports.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``run``."""
    with_examples(
        parser,
        "--backbone cliptex --seeds 3",
        "--backbone clip,dinov2-b14 --suite paper --task voc/linear,coco/mask-rcnn --data-root DIR"
        " --json out.json",
    )
    add(parser, "--config", "--dry-run", "--backbone")
    add(
        parser,
        "--suite",
        help="named list of tasks; see `list suites` (default: mini, or the first with the tasks)",
    )
    add(parser, "--task")
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="checkpoint of the backbone (safetensors, or a torch file loaded weights-only)",
    )
    add(parser, "--set", "--seed")
    parser.add_argument(
        "--seeds", **COUNT, default=1, help="number of seeds, starting at --seed (default: 1)"
    )
    parser.add_argument(
        "--only", **FLAG, help="without the baselines that a suite adds to a single backbone"
    )
    parser.add_argument("--force", **FLAG, help="run finished tasks again")
    parser.add_argument(
        "--dump-config",
        **FLAG,
        help="print each task's resolved config (MMEngine) instead of running",
    )
    add(parser, "--json", nargs=None, const=None, type=Path, help="write all metrics to FILE")
    add_data(parser, scored=True)
    add_execution(parser)
    add_tracking(parser, default="the suite's name")


def main(options: argparse.Namespace) -> int:
    """Run, print the table and where the results are."""
    from benchmark import dry_run
    from benchmark.execution.progress import console
    from benchmark.results.table import show
    from benchmark.run import run
    from common.secrets import hide_secrets
    from reports.mlflow.client import using

    request = run_options(options)
    with using(options.tracking_uri) as uri:
        if options.dump_config or options.dry_run:
            (dry_run.dump_config if options.dump_config else dry_run.dry_run)(request)
            return 0
        result = run(request)
        line, report = _report(result) if any(cell.metrics for cell in result.cells) else ("", None)
        show(result, report)
    if all(cell.status == "not applicable" for cell in result.cells):
        raise UserError(
            "none of these tasks applies to these backbones; choose others with --task or"
            " --backbone"
        )
    flag = f" --tracking-uri {hide_secrets(uri)}" if options.tracking_uri else ""
    experiment = result.tracker.experiment
    console.print(f"all results: MLflow experiment {experiment}, python -m benchmark ui{flag}")
    if options.json:
        console.print(f"metrics: {options.json}")
    if line:
        console.print(line)
    return 1 if result.failed else 0


def _report(result: RunResult) -> tuple[str, Report | None]:
    """Write the report on this run and log it to the runs of each backbone's first seed.

    Returns:
        a line with the page's path, or with the reason why there is none; the report, if any.
    """
    from reports.attach import report_line
    from reports.report import Request

    cells = [cell for cell in result.cells if cell.status != "not applicable"]
    request = Request(
        experiments=[result.tracker.experiment],
        backbones=list(dict.fromkeys(cell.backbone for cell in cells if cell.metrics)),
        tasks=list(dict.fromkeys(cell.task for cell in cells)),
        tracking_uri=result.tracker.uri,
        same_as=list(result.run_ids.values()),  # only runs with the same settings
    )
    first_seeds: dict[str, str] = {}
    for (name, _), run_id in result.run_ids.items():
        first_seeds.setdefault(name, run_id)
    return report_line(request, list(first_seeds.values()))
