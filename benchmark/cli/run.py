"""``run``: probe backbones on a suite's tasks."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from backbones.utils.errors import UserError
from benchmark.cli.options import (
    COUNT,
    REPEATED,
    SEED,
    add_data,
    add_execution,
    add_tracking,
    executor_spec,
    name,
    number,
    placed,
)

if TYPE_CHECKING:
    from benchmark.evaluation.results import RunResult
    from reports.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``run``."""
    add = parser.add_argument
    add(
        "--backbone",
        **REPEATED,
        dest="backbones",
        metavar="NAME[,NAME]",
        help="backbones (repeatable); see `list backbones`",
    )
    add("--suite", help="named list of tasks (default: mini, or the first that has the tasks named); see `list suites`")
    add("--task", **REPEATED, dest="tasks", metavar="TASK[,TASK]", help="only these of the suite's tasks")
    add(
        "--weights",
        type=Path,
        metavar="FILE",
        help="checkpoint for the backbone (safetensors, or torch loaded weights-only)",
    )
    add("--seed", type=number(0, SEED), default=0, help="random seed (default: 0)")
    add("--seeds", type=number(1, COUNT), default=1, metavar="N", help="run N seeds, starting at --seed")
    add("--set", **REPEATED, metavar="KEY=VALUE", dest="overrides", help="change a setting of the tasks (repeatable)")
    add_data(parser)
    add("--partial", action="store_true", help="run on datasets that are not whole; then part of the protocol")
    add("--alone", action="store_true", help="without the baselines that a suite puts beside a single backbone")
    add("--force", action="store_true", help="run finished tasks again")
    add_execution(parser)
    add(
        "--compile",
        action="store_true",
        help="encode with torch.compile (rounds differently; pays for many images on a GPU; needs a C++ compiler)",
    )
    add("--json", type=Path, metavar="FILE", help="write all metrics there")
    add("--dump-config", action="store_true", help="print each task's resolved config (MMEngine) instead of running")
    add(
        "--dry-run",
        action="store_true",
        help="print what is done and to do, its units and where they would run; makes nothing",
    )
    add("--experiment", type=name, help="MLflow experiment (default: the suite's name)")
    add_tracking(parser)


def main(options: argparse.Namespace) -> int:
    """Run, show the table, say where to look."""
    from benchmark.evaluation import runner
    from benchmark.evaluation.table import show
    from benchmark.execution.progress import console
    from reports.mlflow.client import using
    from reports.secrets import hide_secrets

    if options.compile:
        os.environ["CLIPTEX_COMPILE"] = "1"  # for workers too
    told = {
        field.name: getattr(options, field.name) for field in fields(runner.RunOptions) if hasattr(options, field.name)
    }
    request = runner.RunOptions(**{**told, "data": placed(options.data), "executor": executor_spec(options)})
    if options.dump_config or options.dry_run:
        from benchmark.evaluation import preview

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
            raise UserError("none of these tasks applies to these backbones; choose others with --task or --backbone")
        console.print(
            f"every number is in MLflow, experiment {result.tracker.experiment}: python -m benchmark ui{flag}",
            markup=False,
        )
        if options.json:
            console.print(f"metrics: {options.json}", markup=False)
        if line:
            console.print(line, markup=False)
    return 1 if result.failed else 0


def _report(result: RunResult) -> tuple[str, Report | None]:
    """Compare this run's backbones and tasks, and keep the page in MLflow; a line that says where it is, and the report."""
    from reports.attach import say_report
    from reports.report import Request

    request = Request(
        experiments=[result.tracker.experiment],
        backbones=list(dict.fromkeys(cell.backbone for cell in result.cells if cell.metrics)),
        tasks=list(dict.fromkeys(cell.task for cell in result.cells if cell.status != "not applicable")),
        tracking_uri=result.tracker.uri,
        like=list(result.run_ids.values()),  # older settings in the same experiment are another report's business
    )
    first = {name: run_id for (name, _), run_id in reversed(list(result.run_ids.items()))}  # each backbone's first seed
    return say_report(request, list(first.values()))
