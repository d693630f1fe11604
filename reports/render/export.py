"""A report as files: the page, and its numbers as Markdown, CSV and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from cliptex_common.files import write_text
from reports.errors import TrackingError
from reports.mlflow.query import tidy
from reports.parts.study import study_frame
from reports.parts.tables import ACROSS, MetricColumn, ResultTable
from reports.render.frames import (
    heading,
    latex_cell,
    latex_table,
    markdown_cell,
    markdown_table,
    named_rows,
    plain_cell,
    plain_text,
)
from reports.render.page import render_page

if TYPE_CHECKING:
    from reports.report import Report

LEGEND = (
    "Value, 95 % interval, seeds (N: images); then the difference to {} (intervals hold jointly at"
    " 95 %): ▲ better, ▼ worse, = undecided, ? no interval or fewer than 20 images. Bold: better"
    " than all others."
)


def write(report: Report, out: Path, formats: Sequence[str] = ("html",)) -> list[Path]:
    """Write the report into the folder ``out``; returns the files, the page (``index.html``) first.

    Raises:
        TrackingError: ``index.html`` exists and is not a report.
        UserError: the folder cannot be written.
    """
    texts: dict[str, str] = {}
    for name in formats:
        texts |= FORMATS[name](report)
    page = out / "index.html"
    if "index.html" in texts and page.is_file():
        with page.open("rb") as file:
            if b"cliptex-benchmark" not in file.read(20_000):
                raise TrackingError(f"{page} exists and is not a report; give another --out")
    for name, text in texts.items():
        write_text(out / name, text)
    return [out / name for name in texts]


def numbers_frame(report: Report) -> pd.DataFrame:
    """The tidy frame: one row for each number of the detailed tables, columns as in ``Number``."""
    frame = pd.DataFrame([vars(number) for number in report.numbers().values()])
    return frame.assign(runs=frame["runs"].map(" ".join)).drop(columns=["absent", "digits"])


def csv_values(report: Report) -> dict[str, str]:
    """CSV files, name → text.

    ``results.csv``: a row for each number of the tables; ``runs.csv``: for each metric of each
    MLflow run; ``classes.csv`` and ``pairs.csv`` if there are any; ``study-NAME.csv``: the trials
    of a sweep.
    """
    frames = {}
    if report.analysis is not None:
        selection = report.analysis.selection
        frames["results.csv"] = numbers_frame(report)
        frames["runs.csv"] = tidy([cell for cells in selection.cells.values() for cell in cells])
        if report.classes:
            classes = [table.frame.assign(task=table.title) for table in report.classes]
            frames["classes.csv"] = pd.concat(classes)
        if report.pairs:
            frames["pairs.csv"] = pd.DataFrame([vars(pair) for pair in report.pairs.values()])
    for study in report.studies:
        frames[f"study-{re.sub('[^A-Za-z0-9_.-]', '-', study.name)}.csv"] = study_frame(study)
    return {name: frame.to_csv(index=False, lineterminator="\n") for name, frame in frames.items()}


def _with_marks(table: ResultTable) -> pd.DataFrame:
    return table.frame.set_axis(named_rows(table.frame.index.tolist(), table.marks))


def markdown(report: Report) -> str:
    """Verdict, caveats and tables."""
    lines = [
        f"# {plain_text(report.title)}",
        "",
        plain_text(f"{report.subtitle} · {report.date}"),
        "",
        f"**{plain_text(report.summary.headline)}**",
        "",
        *_list(report.summary.lines),
    ]
    if report.notes:
        lines += ["## Caveats", "", *_list(report.notes)]
    if report.overview:
        frame = _with_marks(report.overview)
        is_long = len(frame) > ACROSS
        frame = frame if is_long else frame.rename(columns=_title).T
        lines += ["## At a glance", ""]
        lines += markdown_table(frame, markdown_cell, _title if is_long else str)
        lines += [plain_text(LEGEND.format(report.baseline)), ""]
        lines += ["## Detectable differences", "", *_list([*report.averages, *report.power])]
    for table in report.tables:
        lines += [f"## {plain_text(table.title)}", ""]
        lines += markdown_table(_with_marks(table), markdown_cell, _title)
    for study in report.studies:
        lines += [f"## λ search: {plain_text(study.name)}", "", plain_text(study.headline), ""]
        frame = study_frame(study).set_index("trial")
        lines += markdown_table(frame, lambda value: plain_text(plain_cell(value)))
    return "\n".join(lines)


def _title(column: MetricColumn) -> str:
    return " ".join(heading(column))


def _list(sentences: Sequence[str]) -> list[str]:
    return [*(f"* {plain_text(sentence)}" for sentence in sentences), ""]


def latex(report: Report) -> str:
    """Tables for a paper: value, standard error over seeds, difference to the baseline."""
    parts = [r"% needs \usepackage{booktabs}", ""]
    for table in report.tables:
        counts = sorted({number.seeds for number in table.numbers if not number.missing})
        ends = dict.fromkeys([*counts[:1], *counts[-1:]])
        seeds = f" Seeds: {' to '.join(map(str, ends))}." if counts else ""
        caption = (
            f"{table.title}. Value ± standard error over seeds (difference to {report.baseline}, *"
            " if its interval excludes zero). Bold: better than every other backbone by its 95 %"
            f" interval. N: images.{seeds}"
        )
        columns = pd.MultiIndex.from_tuples(map(heading, table.columns))
        frame = _with_marks(table).set_axis(columns, axis=1)
        bold = frame.map(lambda number: number.best)
        parts.append(latex_table(frame.map(latex_cell), caption, f"tab:{table.id}", bold))
    for study in report.studies:
        frame = study_frame(study).drop(columns=["state", "run"]).map(plain_cell).set_index("trial")
        caption = f"λ search: {study.name}."
        parts.append(latex_table(frame.rename_axis(index=None), caption, f"tab:study-{len(parts)}"))
    return "\n".join(parts)


FORMATS: dict[str, Callable[[Report], dict[str, str]]] = {
    "html": lambda report: {"index.html": render_page(report)},
    "md": lambda report: {"report.md": markdown(report)},
    "csv": csv_values,
    "latex": lambda report: {"tables.tex": latex(report)},
}  # format → text of each of its files
