"""The report on a run."""

from __future__ import annotations

from benchmark.results.run_result import RunResult
from reports.attach import attach_report
from reports.report import Report, ReportRequest


def write_report(result: RunResult) -> tuple[str, Report | None]:
    """Write the report on a run and log it to the runs of each backbone's first seed.

    Returns:
        a line with the page's path, or with the reason why there is none; the report, if any.
    """
    cells = [cell for cell in result.cells if cell.status != "not applicable"]
    request = ReportRequest(
        experiments=[result.tracker.experiment],
        backbones=list(dict.fromkeys(cell.backbone for cell in cells if cell.metrics)),
        tasks=list(dict.fromkeys(cell.task for cell in cells)),
        tracking_uri=result.tracker.uri,
        # only these numbers, beside nothing with other settings
        like_runs=[*result.run_ids.values(), *(cell.run_id for cell in cells)],
    )
    first_seeds: dict[str, str] = {}
    for (name, _), run_id in result.run_ids.items():
        first_seeds.setdefault(name, run_id)
    return attach_report(request, list(first_seeds.values()))
