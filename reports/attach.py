"""A report at the end of a run or a sweep, kept beside its numbers in MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reports.errors import TrackingError
from reports.mlflow.client import connect, scratch, tracking_uri
from reports.mlflow.models import register
from reports.mlflow.query import local_folder
from reports.mlflow.views import save_view
from reports.render.export import write
from reports.report import Report, Request, build

FOLDER = "report"


def attach_report(
    request: Request,
    run_ids: Sequence[str],
    fallback: Path = Path("report"),
    report: Report | None = None,
) -> Path:
    """Build a report (or take it), store its page as ``report/index.html`` in each of the runs, and
    say where it can be opened. What it compared goes to the model registry, and the experiment's
    saved view gets its tasks.

    Args:
        fallback: folder for a copy where the store's artifacts are on another machine.

    Raises:
        TrackingError: there is nothing to report on, or the store cannot be read or written.
    """
    report = report or build(request)
    client = connect(tracking_uri(request.tracking_uri))
    if report.analysis is not None:
        found = report.analysis.selection
        gains = {name: gain.typical.value for name, gain in report.analysis.gains.items()}
        register(client, found.parents, found.baseline, gains)
        for experiment in {run.experiment_id for run in found.parents.values()}:
            save_view(client, experiment)
    with scratch() as folder:
        (page,) = write(report, Path(folder))
        for run_id in run_ids:
            try:
                client.log_artifact(run_id, str(page), FOLDER)
            except OSError as error:
                raise TrackingError(
                    f"cannot store the report in MLflow's artifacts: {error.strerror or error};"
                    " free some space"
                ) from error
    local = local_folder(client.get_run(run_ids[0]).info.artifact_uri) if run_ids else None
    if local is not None and (local / FOLDER / "index.html").is_file():
        return local / FOLDER / "index.html"
    return write(report, fallback)[0]


def say_report(request: Request, run_ids: Sequence[str]) -> tuple[str, Report | None]:
    """``attach_report`` as a line for people, and the report. The numbers are safe already: one
    that cannot be made is a line, too."""
    report = None
    try:
        report = build(request)
        return f"report: {attach_report(request, run_ids, report=report)}", report
    except Exception as error:
        told = next(iter(str(error).splitlines()), type(error).__name__)
        study = f" --study {request.study}" if request.study else ""
        return f"no report was made: {told}; try python -m benchmark report{study}", report
