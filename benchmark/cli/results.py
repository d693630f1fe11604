"""``results``: share results with what their intervals need, and check or show shared ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import benchmark.suites.catalog  # noqa: F401 – registers the metrics of every kind of task
from benchmark.planning.options import BackboneNames, PluginOptions, TaskNames, TrackingOptions
from cliptex_common.errors import UserError
from cliptex_common.files import atomic_write
from cliptex_common.settings import Folder, Names, options_dataclass

Files = Annotated[Names, {"nargs": "+"}]


@options_dataclass
class ExportResults(TrackingOptions, PluginOptions):
    """Write the results of an experiment into one file that others can compare with, or its
    numbers for other tools.

    examples:
      python -m benchmark results export --experiment paper --out my-net.zip
      python -m benchmark report --experiment paper --with others/
      python -m benchmark results export --experiment paper --format hf-eval
        --hub voc=ORG/NAME --out hub/
    """

    experiment: Names = ()
    """MLflow experiments (default: the latest with results)"""
    backbones: BackboneNames = ()
    """only these (default: all)"""
    tasks: TaskNames = ()
    """only these tasks"""
    source: str = ""
    """who shares them, in a few words; reports show it"""
    format: Literal["zip", "csv", "parquet", "hf-eval", "model-index"] = "zip"
    """zip: with what intervals need; csv, parquet: a row for each number; hf-eval, model-index:
    files for the Hugging Face Hub, a folder for each backbone; nothing is uploaded"""
    hub: Mapping[str, str] = field(default_factory=dict)
    """for the Hub: the repository of a dataset, as voc=ORG/NAME (repeatable)"""
    out: Path | None = None
    """the file or folder to write (default: results.zip, .csv … or the folder results)"""

    def main(self) -> int:
        """Print what was written and what was left out."""
        return self._write_shared() if self.format == "zip" else self._write_numbers()

    def _write_numbers(self) -> int:
        from benchmark.execution.progress import Bar, console
        from cliptex_common.files import write_text
        from reports.render.export import csv_text, numbers_frame
        from reports.report import ReportRequest, build_report
        from reports.shared.hub import community_evaluations, model_cards

        request = ReportRequest(
            self.experiment,
            backbones=self.backbones,
            tasks=self.tasks,
            tracking_uri=self.tracking_uri,
        )
        with Bar() as bar:
            report = build_report(request, bar.start, bar.advance)
        if self.format in ("csv", "parquet"):
            frame = numbers_frame(report)
            path = self.out or Path(f"results.{self.format}")
            if self.format == "csv":
                write_text(path, csv_text(frame))
            else:
                with atomic_write(path) as part:
                    frame.to_parquet(part)
            console.print(f"{len(frame)} numbers: {path}")
            return 0
        datasets = {column.task.rpartition("/")[0] for column in report.columns}
        if absent := self.hub.keys() - datasets:
            raise UserError(
                f"--hub {', '.join(absent)}: no number is of it; datasets with numbers:"
                f" {', '.join(sorted(datasets))}"
            )
        write = community_evaluations if self.format == "hf-eval" else model_cards
        folder, files = self.out or Path("results"), write(report, self.hub)
        if not files:
            raise UserError(
                "an entry of hf-eval names the dataset's repository: give --hub DATASET=ORG/NAME"
            )
        for name, text in files.items():
            write_text(folder / name, text)
        console.print(f"{len(files)} files: {folder}")
        return 0

    def _write_shared(self) -> int:
        from benchmark.execution.progress import console
        from reports.mlflow.query import Store
        from reports.selection import default_experiments
        from reports.shared.export import export_results

        store = Store(self.tracking_uri)
        experiments = self.experiment or default_experiments(store)
        path = self.out or Path("results.zip")
        written = export_results(store, experiments, path, self.backbones, self.tasks, self.source)
        for note in written.notes:
            console.print(f"  note · {note}", style="dim")
        names = ", ".join(written.backbones)
        size = path.stat().st_size / 1e6
        console.print(f"{written.cells} results of {names}: {path} ({size:.1f} MB)")
        return 0


@options_dataclass
class CheckResults(PluginOptions):
    """Verify files of shared results: checksums, identities, and every metric, computed again.

    examples:
      python -m benchmark results check my-net.zip others/
    """

    files: Files
    """files or folders of `results export`, URLs"""

    def main(self) -> int:
        """Exit code 2 with the reason if a file is refused."""
        from benchmark.execution.progress import console
        from benchmark.execution.unit import threads
        from reports.selection import weights_labels
        from reports.shared.check import check_results
        from reports.shared.merge import find_files, read_files

        for results in read_files(find_files(self.files)):
            with threads(1):  # several spend twice the time on products as small as these
                scores = check_results(results)
            names = {*weights_labels([*results.cells, *results.parents.values()]).values()}
            console.print(
                f"{results.title}: {len(scores)} results of {len(names)} backbones agree with their"
                " per-image scores"
            )
            for note in results.notes:
                console.print(f"  note · {note}", style="dim")
        return 0


@options_dataclass
class LeaderboardPage(PluginOptions):
    """Write a leaderboard of shared results: one page that needs no server and no network.

    examples:
      python -m benchmark results page results/ --out site/
    """

    files: Files
    """files or folders of `results export`, URLs"""
    out: Folder = Path("site")
    """output folder"""
    title: str = "Leaderboard of frozen vision backbones"
    """heading of the page"""

    def main(self) -> int:
        """Exit code 2 with the reason if a file is refused; nothing is written then."""
        from benchmark.execution.progress import Bar, console
        from benchmark.execution.unit import threads
        from cliptex_common.files import write_text
        from reports.shared.merge import find_files, read_files
        from reports.shared.page import render_leaderboard
        from reports.shared.standings import Leaderboard

        files = find_files(self.files)
        results = Leaderboard()
        with Bar() as bar, threads(1):
            bar.start("shared results", len(files))
            for file in read_files(files):
                results.add(file)
                bar.advance()
        tasks = {column.cell.task for column in results.columns.values()}
        about = f"{len(results.backbones)} backbones, {len(tasks)} tasks, {len(files)} files"
        path = self.out / "index.html"
        write_text(path, render_leaderboard(results, self.title, about))
        console.print(f"{about}: {path} ({path.stat().st_size / 1e6:.1f} MB)")
        return 0


COMMAND = {"export": ExportResults, "check": CheckResults, "page": LeaderboardPage}
