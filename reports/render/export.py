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
from reports.parts.study import study_frame, summary_frame
from reports.parts.tables import ACROSS, Number, Table, number
from reports.render.page import render

if TYPE_CHECKING:
    from reports.report import Report

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


def numbers(report: Report) -> pd.DataFrame:
    """The tidy frame: one row for each number of the detailed tables, columns as in ``Number``."""
    cells = {
        (cell.backbone, cell.task, cell.metric): cell
        for table in report.tables
        for _, row in table.rows
        for cell in row
    }
    frame = pd.DataFrame([vars(cell) for cell in cells.values()])
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
        frames["results.csv"] = numbers(report)
        frames["runs.csv"] = tidy([cell for cells in selection.cells.values() for cell in cells])
        if report.classes:
            classes = [table.frame.assign(task=table.title) for table in report.classes]
            frames["classes.csv"] = pd.concat(classes)
        if report.pairs:
            frames["pairs.csv"] = pd.DataFrame([vars(pair) for pair in report.pairs.values()])
    for study in report.studies:
        frames[f"study-{re.sub('[^A-Za-z0-9_.-]', '-', study.name)}.csv"] = study_frame(study)
    return {name: frame.to_csv(index=False, lineterminator="\n") for name, frame in frames.items()}


def _grid(table: Table, text: Callable[[Number], str]) -> pd.DataFrame:
    """A table's cells as text; columns are (task, metric), rows backbones."""
    heads = []
    for head in table.heads:
        images = f" (N = {head.images})" if head.images else ""
        heads.append((head.column.title, f"{head.label} {head.arrow}{images}"))
    names = [
        f"{name} ({table.marks[name]})" if name in table.marks else name for name, _ in table.rows
    ]
    cells = [[text(cell) for cell in row] for _, row in table.rows]
    return pd.DataFrame(cells, names, pd.MultiIndex.from_tuples(heads))


def markdown(report: Report) -> str:
    """Verdict, caveats and tables."""
    lines = [
        f"# {_plain(report.title)}",
        "",
        _plain(report.subtitle),
        "",
        f"**{_plain(report.verdict.headline)}**",
        "",
        *_list(report.verdict.lines),
    ]
    if report.notes:
        lines += ["## Caveats", "", *_list(report.notes)]
    if report.overview:
        overview = _grid(report.overview, _markdown_cell)
        frame = overview.T if len(overview) <= ACROSS else overview
        lines += ["## At a glance", "", *_markdown(frame)]
        lines += [_plain(LEGEND.format(report.baseline)), ""]
        lines += ["## Detectable differences", "", *_list([*report.averages, *report.power])]
    for table in report.tables:
        lines += [f"## {_plain(table.title)}", "", *_markdown(_grid(table, _markdown_cell))]
    for study in report.studies:
        lines += [f"## λ search: {_plain(study.name)}", "", _plain(study.headline), ""]
        for frame in [study_frame(study), *([summary_frame(study)] if study.summary else [])]:
            cells = frame.map(lambda value: _plain(_value(value)))
            lines += _markdown(cells.set_index(cells.columns[0]))
    return "\n".join(lines)


def _list(sentences: Sequence[str]) -> list[str]:
    return [*(f"* {_plain(sentence)}" for sentence in sentences), ""]


def _markdown(frame: pd.DataFrame) -> list[str]:
    """A frame of Markdown text as a table."""
    index, columns = (
        [_plain(" ".join(label) if isinstance(label, tuple) else label) for label in axis]
        for axis in frame.axes
    )
    rows = [["", *columns], ["---", *["---:"] * len(columns)]]
    rows += [[label, *cells] for label, cells in zip(index, frame.to_numpy().tolist(), strict=True)]
    return [*(f"| {' | '.join(row)} |" for row in rows), ""]


def _plain(text: str) -> str:
    """Text with Markdown's special characters escaped."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(text.split()))


def _value(value: object) -> str:
    """A value of a sweep's frame for people."""
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−") if value == value else "–"
    return "–" if value is None else str(value)


def _markdown_cell(cell: Number) -> str:
    if cell.missing:
        return _plain(f"– ({cell.missing})")
    value = f"**{cell.text}**" if cell.best else cell.text
    parts = [value, cell.interval, f"({cell.seeds} seeds)"]
    return " ".join(filter(None, parts)) + (f"; {cell.change}" if cell.change else "")


def latex(report: Report) -> str:
    """Tables for a paper: value, standard error over seeds, difference to the baseline."""
    parts = [r"% needs \usepackage{booktabs}", ""]
    for table in report.tables:
        counts = sorted({cell.seeds for _, row in table.rows for cell in row if not cell.missing})
        ends = dict.fromkeys([*counts[:1], *counts[-1:]])
        seeds = f" Seeds: {' to '.join(map(str, ends))}." if counts else ""
        caption = (
            f"{table.title}. Value ± standard error over seeds (difference to {report.baseline}, *"
            " if its interval excludes zero). Bold: better than every other backbone by its 95 %"
            f" interval. N: images.{seeds}"
        )
        bold = _grid(table, lambda cell: "textbf:--rwrap;" if cell.best else "")
        grid = _grid(table, _latex_cell)
        parts.append(_tabular(grid, caption, f"tab:{table.id}", bold))
    for study in report.studies:
        frame = study_frame(study).drop(columns=["state", "run"]).map(_value).set_index("trial")
        caption = f"λ search: {study.name}."
        parts.append(_tabular(frame.rename_axis(index=None), caption, f"tab:study-{len(parts)}"))
    return "\n".join(parts)


def _tabular(
    frame: pd.DataFrame, caption: str, label: str, style: pd.DataFrame | None = None
) -> str:
    styler = frame.style.format(escape="latex")
    for axis in (0, 1):
        styler = styler.format_index(escape="latex", axis=axis)
    if style is not None:
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


def _latex_cell(cell: Number) -> str:
    if cell.missing:
        return "–"
    text = f"{cell.text} ± {cell.error}" if cell.error else cell.text
    if not cell.verdict:
        return text
    star = "*" if cell.verdict in ("win", "loss") else ""
    return f"{text} ({number(cell.difference, cell.digits, True)}{star})"


FORMATS: dict[str, Callable[[Report], dict[str, str]]] = {
    "html": lambda report: {"index.html": render(report)},
    "md": lambda report: {"report.md": markdown(report)},
    "csv": csv_values,
    "latex": lambda report: {"tables.tex": latex(report)},
}  # format → text of each of its files
