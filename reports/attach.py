"""A report at the end of a run or a sweep: its page in MLflow, beside its numbers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePath

from cliptex_common.errors import first_line
from reports.artifacts import REPORT
from reports.mlflow.client import connect, tracking_uri
from reports.mlflow.query import local_folder
from reports.render.export import write
from reports.report import Report, ReportRequest, build_report


def attach_report(
    report: Report, store: str | None, run_ids: Sequence[str], fallback: Path = Path("report")
) -> Path:
    """Store a report's page as ``report/index.html`` in each of the runs; returns its path.

    Args:
        store: tracking URI.
        fallback: folder for a copy where the store's artifacts are on another machine.

    Raises:
        TrackingError: the store cannot be read or written.
    """
    client = connect(tracking_uri(store))
    with tempfile.TemporaryDirectory() as folder:
        (page,) = write(report, Path(folder))
        for run_id in run_ids:
            client.log_artifact(run_id, str(page), str(PurePath(REPORT).parent))
    local = local_folder(client.get_run(run_ids[0]).info.artifact_uri) if run_ids else None
    if local is not None and (local / REPORT).is_file():
        return local / REPORT
    return write(report, fallback)[0]


def report_line(request: ReportRequest, run_ids: Sequence[str]) -> tuple[str, Report | None]:
    """Build a report and attach it; returns a line for the terminal, and the report.

    A report that fails is a line, too: the numbers are already stored.
    """
    report = None
    try:
        report = build_report(request)
        return f"report: {attach_report(report, request.tracking_uri, run_ids)}", report
    except Exception as error:
        study = f" --study {request.study}" if request.study else ""
        message = f"no report was made: {first_line(error)}; try python -m benchmark report{study}"
        return message, report
