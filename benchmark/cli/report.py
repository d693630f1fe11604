"""``report``: compare the results in MLflow, as a page and as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

import benchmark.suites.catalog  # noqa: F401 – registers the metrics of every kind of task
from benchmark.cli.parser import ConfigOptions
from benchmark.planning.options import BackboneNames, PluginOptions, TaskNames, TrackingOptions
from cliptex_common.settings import Folder, Names, options_dataclass


@options_dataclass
class WriteReport(ConfigOptions, TrackingOptions, PluginOptions):
    """Compare the results in MLflow: a page, and tables for a paper.

    examples:
      python -m benchmark report --experiment paper --baseline clip-ft --out report/
      python -m benchmark report --backbone clip,clip-ft,cliptex --format html,latex
        --ui-url http://127.0.0.1:5000
    """

    experiment: Names = ()
    """MLflow experiments (default: the latest with results)"""
    backbones: BackboneNames = ()
    """only these, in this order (default: all); NAME@SHA selects weights by their sha256"""
    baseline: str | None = None
    """what the others are compared with (default: clip-ft, clip, random, or the first)"""
    tasks: TaskNames = ()
    """only these tasks; see `list tasks`"""
    shared: Annotated[Names, Field(alias="with")] = ()
    """results of others: files or folders of `results export`, URLs"""
    study: str | None = None
    """report on this λ sweep instead"""
    format: Names = ("html",)
    """html, md, csv, latex (default: html)"""
    out: Folder = Path("report")
    """output folder"""
    ui_url: Annotated[str, Field(pattern="^(https?://|$)")] = ""
    """address of an MLflow UI: numbers then link to their runs"""

    def main(self) -> int:
        """Build and write the report; print its headline."""
        from benchmark.execution.progress import Bar, console
        from reports.errors import TrackingError
        from reports.render.export import FORMATS, write
        from reports.report import ReportRequest, build_report

        if unknown := set(self.format) - set(FORMATS):
            raise TrackingError(f"--format {min(unknown)}: choose from {', '.join(FORMATS)}")
        if self.study and (self.backbones or self.tasks or self.baseline):
            raise TrackingError("--study excludes --backbone, --task and --baseline")
        request = ReportRequest(
            experiments=self.experiment,
            baseline=self.baseline,
            backbones=self.backbones,
            tasks=self.tasks,
            study=self.study,
            shared=self.shared,
            tracking_uri=self.tracking_uri,
            ui_url=self.ui_url,
        )
        with Bar() as bar:
            report = build_report(request, bar.start, bar.advance)
            files = write(report, self.out, self.format)
        if not request.experiments and report.analysis is not None:
            experiments = ", ".join(report.analysis.selection.experiments)
            console.print(f"experiment {experiments}", style="dim")
        console.print(report.summary.headline, style="bold")
        for line in report.axes:
            console.print(line)
        for note in report.notes:
            console.print(f"  note · {note}", style="dim")
        console.print(f"report: {', '.join(map(str, files))}")
        return 0


COMMAND = WriteReport
