"""A report as files: the page, and its numbers as Markdown, CSV and LaTeX, all from one tidy
frame."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from common.files import write_text
from reports.errors import TrackingError
from reports.mlflow.query import tidy
from reports.parts.study import study_frame, summary_frame
from reports.parts.tables import ACROSS, Number, Table, number

if TYPE_CHECKING:
    from reports.report import Report

FORMATS = ("html", "md", "csv", "latex")
TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "°": r"$^\circ$",
        "δ": r"$\delta$",
        "λ": r"$\lambda$",
        "→": r"$\to$",
        "<": "$<$",
        ">": "$>$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "×": r"$\times$",
        "−": "$-$",
        "–": "--",
        "±": r"$\pm$",
        "≥": r"$\ge$",
        "≤": r"$\le$",
        "·": r"$\cdot$",
        "…": r"\dots{}",
    }
)


def write(report: Report, out: Path, formats: Sequence[str] = ("html",)) -> list[Path]:
    """Write the report into the folder ``out``; returns the files, the page (``index.html``) first.

    Raises:
        TrackingError: an unknown format, or the folder cannot be written.
    """
    for name in formats:
        if name not in FORMATS:
            raise TrackingError(f"no format {name!r}; there are {', '.join(FORMATS)}")
    made: dict[str, str] = {}
    for name in formats:
        if name == "html":
            from reports.render.page import render

            made["index.html"] = render(report)
        elif name == "csv":
            made |= csv_values(report)
        else:
            made |= (
                {"report.md": markdown(report)} if name == "md" else {"tables.tex": latex(report)}
            )
    page = out / "index.html"
    if (
        page.name in made
        and page.is_file()
        and b"cliptex-benchmark" not in page.open("rb").read(20_000)
    ):
        raise TrackingError(f"{page} is a page of somebody else's; give another --out")
    for name, text in made.items():
        write_text(out / name, text)
    return [out / name for name in made]


def numbers(report: Report) -> pd.DataFrame:
    """The tidy frame: one row for each number of the detailed tables, columns as in ``Number``."""
    found = {
        (n.backbone, n.task, n.metric): n
        for table in report.tables
        for _, row in table.rows
        for n in row
    }
    frame = pd.DataFrame([vars(n) for n in found.values()])
    return frame.assign(runs=frame["runs"].map(" ".join)).drop(columns=["absent", "digits"])


def csv_values(report: Report) -> dict[str, str]:
    """``results.csv``: one row for each number of the tables; ``runs.csv``: one for each metric of
    each MLflow run; ``classes.csv`` and ``pairs.csv`` where there are such; ``study-NAME.csv``: the
    trials of a sweep."""
    frames = {}
    if report.analysis is not None:
        frames["results.csv"] = numbers(report)
        kept = [cell for cells in report.analysis.selection.cells.values() for cell in cells]
        frames["runs.csv"] = tidy(kept)
        if report.classes:
            frames["classes.csv"] = pd.concat(
                one.frame.assign(task=one.title) for one in report.classes
            )
        if report.pairs:
            frames["pairs.csv"] = pd.DataFrame([vars(pair) for pair in report.pairs.values()])
    for study in report.studies:
        frames[f"study-{re.sub('[^A-Za-z0-9_.-]', '-', study.name)}.csv"] = study_frame(study)
    return {
        name: frame.map(_no_formula).to_csv(index=False, lineterminator="\n")
        for name, frame in frames.items()
    }


def _grid(
    table: Table, shown: Callable[[Number], str], escape: Callable[[str], str] = str
) -> pd.DataFrame:
    """A table's cells as text; columns are (task, metric), rows backbones."""
    heads = [
        (
            escape(h.column.title),
            escape(f"{h.words} {h.arrow}" + f" (N = {h.images})" * bool(h.images)),
        )
        for h in table.heads
    ]
    names = [
        escape(f"{name} ({table.marks[name]})" if name in table.marks else name)
        for name, _ in table.rows
    ]
    cells = [[shown(cell) for cell in cells] for _, cells in table.rows]
    return pd.DataFrame(cells, names, pd.MultiIndex.from_tuples(heads))


def markdown(report: Report) -> str:
    """Verdict, notes and tables."""
    lines = [
        f"# {_plain(report.title)}",
        "",
        _plain(report.subtitle),
        "",
        f"**{_plain(report.verdict.headline)}**",
        "",
    ]
    lines += [f"* {_plain(line)}" for line in report.verdict.lines] + [""]
    if report.notes:
        lines += ["## Caveats", "", *(f"* {_plain(note)}" for note in report.notes), ""]
    if report.overview:
        overview = _grid(report.overview, _markdown_cell, _plain)
        if len(overview) <= ACROSS:
            overview = overview.T
        lines += ["## At a glance", "", *_markdown(_flat(overview)), ""]
        lines += [
            (
                "Value, 95 % interval, seeds (N: images); then the difference to"
                f" {_plain(report.baseline)} (intervals hold together at 95 %): ▲ better, ▼ worse,"
                " = undecided, ? no interval or fewer than 20 images. Bold: better than all"
                " others."
            ),
            "",
        ]
        lines += [
            "## What these images and seeds can tell apart",
            "",
            *(f"* {_plain(line)}" for line in [*report.averages, *report.power]),
            "",
        ]
    for table in report.tables:
        lines += [
            f"## {_plain(table.title)}",
            "",
            *_markdown(_flat(_grid(table, _markdown_cell, _plain))),
            "",
        ]
    for study in report.studies:
        lines += [f"## λ search: {_plain(study.name)}", "", _plain(study.headline), ""]
        for frame in (study_frame(study), summary_frame(study) if study.summary else None):
            if frame is not None:
                lines += [
                    *_markdown(frame.map(lambda one: _plain(_text(one))).rename(columns=_plain)),
                    "",
                ]
    return "\n".join(lines)


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    """Index and headings of two levels as plain ones."""
    rows, heads = (
        [" ".join(one) if isinstance(one, tuple) else one for one in axis] for axis in frame.axes
    )
    return frame.set_axis(heads, axis=1).assign(**{"": rows})[["", *heads]]


def _markdown(frame: pd.DataFrame) -> list[str]:
    rows = [
        list(frame.columns),
        ["---", *["---:"] * (frame.shape[1] - 1)],
        *frame.to_numpy(object).tolist(),
    ]
    return [f"| {' | '.join(row)} |" for row in rows]


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(text.split()))


def _no_formula(cell: object) -> object:
    """A cell that no spreadsheet takes for a formula."""
    return (
        f"'{cell}"
        if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r"))
        else cell
    )


def _text(value: object) -> str:
    """A cell of a frame as people read it."""
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−") if value == value else "–"
    return "–" if value is None else str(value)


def _markdown_cell(cell: Number) -> str:
    if cell.missing:
        return _plain(f"– ({cell.missing})")
    value = f"**{cell.text}**" if cell.best else cell.text
    told = f"{value} {cell.interval} ({cell.seeds} seeds)".replace("  ", " ")
    return f"{told}; {cell.change}" if cell.change else told


def latex(report: Report) -> str:
    """Tables for a paper (booktabs): value with its standard error over seeds, difference to the
    baseline in small print."""
    parts = [
        "% needs \\usepackage{booktabs}",
        f"% {_tex(report.title)}; {report.date}".replace("\\%", "percent"),
        "",
    ]
    for table in report.tables:
        caption = (
            f"{_tex(table.title)}. Bold: better than every other backbone by its 95\\,\\% interval;"
            " in small print the standard error over seeds and the difference to"
            f" {_tex(report.baseline)}, with $\\ast$ where its interval leaves out zero. N: images."
            f" {_tex(_seeds(table))}"
        )
        parts.append(_tabular(_grid(table, _tex_cell, _tex), caption, f"tab:{table.id}"))
    for study in report.studies:
        found = (
            study_frame(study)
            .drop(columns=["state", "run"])
            .map(lambda one: _tex(_text(one)))
            .set_index("trial")
        )
        found = found.rename(columns=_tex).rename_axis(index=None)
        parts.append(
            _tabular(found, f"{_tex(f'λ search: {study.name}')}.", f"tab:study-{len(parts)}")
        )
    return "\n".join(parts)


def _seeds(table: Table) -> str:
    counts = sorted({cell.seeds for _, cells in table.rows for cell in cells if not cell.missing})
    return (
        f"Seeds: {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))}." if counts else ""
    )


def _tabular(frame: pd.DataFrame, caption: str, label: str) -> str:
    return frame.style.to_latex(
        column_format="l" + "r" * frame.shape[1],
        position="t",
        position_float="centering",
        hrules=True,
        caption=caption,
        label=label,
        multicol_align="c",
        environment="table*" if frame.shape[1] > 4 else "table",
    )


def _tex_cell(cell: Number) -> str:
    if cell.missing:
        return "--"
    text = f"\\textbf{{{_tex(cell.text)}}}" if cell.best else _tex(cell.text)
    if cell.error:
        text += f"\\,{{\\scriptsize$\\pm${_tex(cell.error)}}}"
    if cell.verdict:
        star = "$^\\ast$" if cell.verdict in ("win", "loss") else ""
        text += f" {{\\scriptsize({_tex(number(cell.difference, cell.digits, True))}{star})}}"
    return text


def _tex(text: str) -> str:
    return text.translate(TEX)
