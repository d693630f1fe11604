"""``run``: probe backbones on a suite's tasks."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.cli.options import (
    COUNT,
    FLAG,
    add,
    add_data,
    add_execution,
    add_tracking,
    executor_spec,
    number,
    placed,
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
    about = (
        "a named list of tasks; see `list suites` (default: mini, or the first that has the tasks"
        " named)"
    )
    add(parser, "--suite", help=about)
    add(parser, "--task")
    about = "checkpoint of the backbone (safetensors, or torch loaded weights-only)"
    parser.add_argument("--weights", type=Path, metavar="FILE", help=about)
    add(parser, "--set", "--seed")
    parser.add_argument(
        "--seeds",
        type=number(1, COUNT),
        default=1,
        metavar="N",
        help="run N seeds, starting at --seed",
    )
    about = "without the baselines that a suite puts beside a single backbone"
    parser.add_argument("--only", **FLAG, help=about)
    parser.add_argument("--force", **FLAG, help="run finished tasks again")
    about = "print each task's resolved config (MMEngine) instead of running"
    parser.add_argument("--dump-config", **FLAG, help=about)
    add(
        parser,
        "--json",
        nargs=None,
        const=None,
        type=Path,
        help="the same as JSON: all metrics, into FILE",
    )
    add_data(parser, scored=True)
    add_execution(parser)
    add_tracking(parser, shown="the suite's name")


def main(options: argparse.Namespace) -> int:
    """Run, show the table, say where to look."""
    from benchmark import run as runner
    from benchmark.execution.progress import console
    from benchmark.results.table import show
    from common.secrets import hide_secrets
    from reports.mlflow.client import using

    told = {
        field.name: getattr(options, field.name)
        for field in fields(runner.RunOptions)
        if hasattr(options, field.name)
    }
    request = runner.RunOptions(
        **{**told, "data": placed(options.data), "executor": executor_spec(options)}
    )
    if options.dump_config or options.dry_run:
        from benchmark import dry_run as preview

        show_preview = preview.dump_config if options.dump_config else preview.dry_run
        with using(options.tracking_uri):
            show_preview(request)
        return 0
    with using(options.tracking_uri) as uri:
        flag = f" --tracking-uri {hide_secrets(uri)}" if options.tracking_uri else ""
        result = runner.run(request)
        line, report = _report(result) if any(cell.metrics for cell in result.cells) else ("", None)
        show(result.tasks, result.cells, result.average, report)
        if all(cell.status == "not applicable" for cell in result.cells):
            raise UserError(
                "none of these tasks applies to these backbones; choose others with --task or"
                " --backbone"
            )
        console.print(
            f"every number is in MLflow, experiment {result.tracker.experiment}: python -m"
            f" benchmark ui{flag}",
            markup=False,
        )
        if options.json:
            console.print(f"metrics: {options.json}", markup=False)
        if line:
            console.print(line, markup=False)
    return 1 if result.failed else 0


def _report(result: RunResult) -> tuple[str, Report | None]:
    """Compare this run's backbones and tasks, and keep the page in MLflow; a line that says where
    it is, and the report."""
    from reports.attach import say_report
    from reports.report import Request

    request = Request(
        experiments=[result.tracker.experiment],
        backbones=list(dict.fromkeys(cell.backbone for cell in result.cells if cell.metrics)),
        tasks=list(
            dict.fromkeys(cell.task for cell in result.cells if cell.status != "not applicable")
        ),
        tracking_uri=result.tracker.uri,
        like=list(
            result.run_ids.values()
        ),  # older settings in the same experiment are another report's business
    )
    first = {
        name: run_id for (name, _), run_id in reversed(list(result.run_ids.items()))
    }  # each backbone's first seed
    return say_report(request, list(first.values()))
