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
from reports.parts.tables import ACROSS, MetricColumn, Number, ResultTable, decimal, plain_cell
from reports.render.page import render_page

if TYPE_CHECKING:
    from reports.report import Report

LEGEND = (
    "Value, 95 % interval, seeds (N: images, or what of them is resampled); then the difference to"
    " {}, with its own: ▲ better, ▼ worse, = undecided (all of a report at 95 %), △ ▽ of these"
    " weights (one seed), ? no verdict (no interval, fewer than 20 images, two seeds). Bold:"
    " better than all others."
)
SYMBOLS = str.maketrans(
    {
        "−": "$-$",
        "–": "--",
        "±": r"$\pm$",
        "×": r"$\times$",
        "°": r"$^\circ$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "<": "$<$",
        "δ": r"$\delta$",
        "λ": r"$\lambda$",
    }
)  # that pandas does not escape for LaTeX


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
    MLflow run; ``costs.csv``: for each backbone; ``classes.csv`` and ``pairs.csv`` if there are
    any; ``study-NAME.csv``: the trials of a sweep.
    """
    frames = {}
    if report.analysis is not None:
        selection = report.analysis.selection
        frames["results.csv"] = numbers_frame(report)
        frames["runs.csv"] = tidy([cell for cells in selection.cells.values() for cell in cells])
        frames["costs.csv"] = report.costs.reset_index()
        if report.classes:
            classes = [table.frame.assign(task=table.title) for table in report.classes]
            frames["classes.csv"] = pd.concat(classes)
        if report.pairs:
            frames["pairs.csv"] = pd.DataFrame([vars(pair) for pair in report.pairs.values()])
    for study in report.studies:
        frames[f"study-{re.sub('[^A-Za-z0-9_.-]', '-', study.name)}.csv"] = study_frame(study)
    return {name: csv_text(frame) for name, frame in frames.items()}


def csv_text(frame: pd.DataFrame) -> str:
    """A frame as CSV without its index. Spreadsheets run nothing in it as a formula: names and
    headings may come from others' files."""
    return frame.map(_inert).rename(columns=_inert).to_csv(index=False, lineterminator="\n")


def _inert(value: object) -> object:
    if not isinstance(value, str):
        return value
    # spreadsheets split at tabs and semicolons, too
    return re.sub(r"((?:^|[\t\r\n;])\s*)([=+@-])", r"\1'\2", value)


def _with_marks(table: ResultTable) -> pd.DataFrame:
    """The table with the marks of backbones in their names."""
    names = [
        f"{name} ({table.marks[name]})" if name in table.marks else name
        for name in table.frame.index
    ]
    return table.frame.set_axis(names)


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
        lines += ["## At a glance", "", *overview_lines(report)]
        lines += ["## Detectable differences", "", *_list([*report.averages, *report.power])]
    for table in report.tables:
        lines += [f"## {plain_text(table.title)}", ""]
        lines += markdown_table(_with_marks(table).map(markdown_cell).rename(columns=_title))
    for study in report.studies:
        lines += [f"## λ search: {plain_text(study.name)}", "", plain_text(study.headline), ""]
        frame = study_frame(study).set_index("trial")
        lines += markdown_table(frame.map(plain_cell).map(plain_text))
    return "\n".join(lines)


def overview_lines(report: Report) -> list[str]:
    """The table at a glance in Markdown, with its legend."""
    assert report.overview is not None
    frame = _with_marks(report.overview).map(markdown_cell).rename(columns=_title)
    table = markdown_table(frame if len(frame) > ACROSS else frame.T)
    return [*table, plain_text(LEGEND.format(report.baseline)), ""]


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
            " if decided; all hold together at 95 %). Bold: better than every other backbone."
            f" N: images, or what of them is resampled.{seeds}"
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


def markdown_cell(number: Number) -> str:
    """Value, interval and seeds; the difference to the baseline."""
    if number.missing:
        return plain_text(f"– ({number.missing})")
    value = f"**{number.text}**" if number.best else number.text
    parts = [value, number.interval, f"({number.seeds} seeds)"]
    return " ".join(filter(None, parts)) + (f"; {number.change}" if number.change else "")


def latex_cell(number: Number) -> str:
    """Value ± standard error (difference to the baseline, starred if decided)."""
    if number.missing:
        return "–"
    text = f"{number.text} ± {number.error}" if number.error else number.text
    if not number.verdict:
        return text
    star = "*" if number.verdict in ("win", "loss") else ""
    return f"{text} ({decimal(number.difference, number.digits, True)}{star})"


def heading(column: MetricColumn) -> tuple[str, str]:
    """Task; metric, arrow and number of images."""
    images = f" (N = {column.images})" if column.images else ""
    return column.column.title, f"{column.label} {column.arrow}{images}"


def markdown_table(frame: pd.DataFrame) -> list[str]:
    """The lines of a table of Markdown from a frame of text."""
    rows = [["", *map(plain_text, frame.columns)], ["---", *["---:"] * len(frame.columns)]]
    rows += [[plain_text(name), *cells] for name, *cells in frame.itertuples(name=None)]
    return [*(f"| {' | '.join(row)} |" for row in rows), ""]


def plain_text(text: str) -> str:
    """Text with Markdown's special characters escaped."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(text.split()))


def latex_table(
    frame: pd.DataFrame, caption: str, label: str, bold: pd.DataFrame | None = None
) -> str:
    """A table of LaTeX's booktabs from a frame of text.

    Args:
        bold: which cells are.
    """
    styler = frame.style.format(escape="latex")
    for axis in (0, 1):
        styler = styler.format_index(escape="latex", axis=axis)
    if bold is not None:
        style = bold.map(lambda is_bold: "textbf:--rwrap;" if is_bold else "")
        styler = styler.apply(lambda _: style, axis=None)
    text = styler.to_latex(
        column_format="l" + "r" * frame.shape[1],
        position="t",
        position_float="centering",
        hrules=True,
        caption=re.sub(r"([%_&#])", r"\\\1", caption),
        label=label,
        multicol_align="c",
        environment="table*" if frame.shape[1] > 4 else "table",
    )
    return text.translate(SYMBOLS)


FORMATS: dict[str, Callable[[Report], dict[str, str]]] = {
    "html": lambda report: {"index.html": render_page(report)},
    "md": lambda report: {"report.md": markdown(report)},
    "csv": csv_values,
    "latex": lambda report: {"tables.tex": latex(report)},
}  # format → text of each of its files
