"""``run``: probe backbones on a suite's tasks."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.cli.options import add_data, add_tracking, at_least, placed

if TYPE_CHECKING:
    from benchmark.evaluation.runner import Outcome


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``run``."""
    parser.add_argument(
        "--backbone",
        action="append",
        default=[],
        metavar="NAME[,NAME]",
        help="backbones (repeatable); see `list backbones`",
    )
    parser.add_argument("--suite", default="mini", help="named list of tasks (default: mini); see `list suites`")
    parser.add_argument(
        "--task", action="append", default=[], metavar="TASK[,TASK]", help="only these of the suite's tasks"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="checkpoint for the backbone (safetensors, or torch loaded weights-only)",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="run N seeds, starting at --seed")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="changes",
        help="change a setting of the tasks (repeatable)",
    )
    add_data(parser)
    parser.add_argument(
        "--partial", action="store_true", help="run on datasets that are not whole; then part of the protocol"
    )
    parser.add_argument(
        "--alone", action="store_true", help="without the baselines that a suite puts beside a single backbone"
    )
    parser.add_argument("--force", action="store_true", help="run finished tasks again")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 … (default: auto)")
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        metavar="N",
        help="data loading processes; never changes a result (default: 2)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=0,
        metavar="N",
        help="trainings, backbones and seeds side by side on a CPU (default: as many as it has cores); on a GPU one at a time",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="encode with torch.compile (rounds differently; pays for many images on a GPU; needs a C++ compiler)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all metrics there")
    parser.add_argument(
        "--dump-config", action="store_true", help="print each task's resolved config (MMEngine) instead of running"
    )
    parser.add_argument("--experiment", help="MLflow experiment (default: the suite's name)")
    add_tracking(parser)


def main(options: argparse.Namespace) -> int:
    """Run, show the table, say where to look."""
    from benchmark import run as running
    from benchmark.execution.progress import console
    from benchmark.evaluation.table import show
    from reports.store import hide_password, tracking_uri

    if options.compile:
        os.environ["CLIPTEX_COMPILE"] = "1"  # for processes side by side too
    at_least(1, seeds=options.seeds)
    at_least(0, seed=options.seed, workers=options.workers, jobs=options.jobs)
    request = running.Options(
        backbones=options.backbone,
        suite=options.suite,
        tasks=options.task,
        weights=options.weights,
        seed=options.seed,
        seeds=options.seeds,
        changes=options.changes,
        data_root=options.data_root,
        data=placed(options.data),
        partial=options.partial,
        force=options.force,
        alone=options.alone,
        device=options.device,
        workers=options.workers,
        jobs=options.jobs,
        json=options.json,
        tracking_uri=options.tracking_uri,
        experiment=options.experiment,
    )
    if options.dump_config:
        with contextlib.redirect_stdout(sys.stderr):  # progress; what is printed must be the config alone
            texts = running.configs(request)
        sys.stdout.write("\n".join(texts) + "\n")
        return 0
    outcome = running.run(request)
    show(outcome.tasks, outcome.cells)
    uri = outcome.tracker.uri
    flag = "" if uri == tracking_uri() else f" --tracking-uri {hide_password(uri)}"
    console.print(
        f"every number is in MLflow, experiment {outcome.tracker.experiment}: python -m benchmark ui{flag}",
        markup=False,
    )
    if options.json:
        console.print(f"metrics: {options.json}", markup=False)
    _report(outcome)
    return 1 if outcome.failed else 0


def _report(outcome: Outcome) -> None:
    """Compare this run's backbones and tasks, keep the page in MLflow, say where it is. The numbers are safe already: a
    report that cannot be made is a line, never a failed run."""
    from benchmark.execution.progress import console

    names = list(dict.fromkeys(cell.backbone for cell in outcome.cells if cell.metrics))
    if not names:
        return
    try:
        from reports.attach import attach_report
        from reports.report import Request

        request = Request(
            experiments=[outcome.tracker.experiment],
            backbones=names,
            tasks=list(dict.fromkeys(cell.task for cell in outcome.cells if cell.status != "not applicable")),
            tracking_uri=outcome.tracker.uri,
            like=list(outcome.run_ids.values()),  # older settings in the same experiment are another report's business
        )
        first = {name: run_id for (name, _), run_id in reversed(outcome.run_ids.items())}  # each backbone's first seed
        page = attach_report(request, list(first.values()))
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        console.print(f"no report was made: {lines[0]}; try python -m benchmark report", style="yellow", markup=False)
        return
    console.print(f"report: {page}", markup=False)
