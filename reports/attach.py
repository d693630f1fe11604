"""A report at the end of a run or a sweep: its page in MLflow, beside its numbers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePath

from cliptex_common.errors import user_error_message
from reports.artifacts import REPORT
from reports.mlflow.client import connect, tracking_uri
from reports.mlflow.query import local_folder
from reports.render.export import write
from reports.report import Report, ReportRequest, build_report


def attach_report(request: ReportRequest, run_ids: Sequence[str]) -> tuple[str, Report | None]:
    """Build a report and store its page as ``report/index.html`` in each of the runs.

    Returns:
        a line for the terminal with the page's path (in ``report/`` where the store's artifacts are
        on another machine), or with the reason why there is none that the user can mend, because
        the numbers are already stored; the report, if any.
    """
    report = None
    try:
        report = build_report(request)
        client = connect(tracking_uri(request.tracking_uri))
        with tempfile.TemporaryDirectory() as folder:
            (page,) = write(report, Path(folder))
            for run_id in run_ids:
                client.log_artifact(run_id, str(page), str(PurePath(REPORT).parent))
        local = local_folder(client.get_run(run_ids[0]).info.artifact_uri) if run_ids else None
        if local is not None and (local / REPORT).is_file():
            return f"report: {local / REPORT}", report
        return f"report: {write(report, Path('report'))[0]}", report
    except Exception as error:
        reason = user_error_message(error)
        if reason is None:
            raise
        study = f" --study {request.study}" if request.study else ""
        message = f"no report was made: {reason}; try python -m benchmark report{study}"
        return message, report
