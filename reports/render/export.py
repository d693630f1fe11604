"""A report as files: the page, and the same tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reports.errors import TrackingError
from reports.mlflow.query import tidy
from reports.parts.tables import MARKS, Head, Table, TableCell, interval, number

if TYPE_CHECKING:
    from reports.report import Report

FORMATS = ("html", "md", "csv", "latex")
SUMMED = ("value", "base", "baseline", "confirmed", "noise")


def write_text(path: Path, text: str) -> Path:
    """Write a file beside its place and rename it: a reader sees the old one or the new one, whole."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write(report: Report, out: Path, formats: Sequence[str] = ("html",)) -> list[Path]:
    """Write the report into the folder ``out``; returns the files, the page (``index.html``) first.

    Raises:
        TrackingError: an unknown format, or the folder cannot be written.
    """
    for name in formats:
        if name not in FORMATS:
            raise TrackingError(f"no format {name!r}; there are {', '.join(FORMATS)}")
    written = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in formats:
            if name == "html":
                from reports.render.page import render

                written.append(write_text(out / "index.html", render(report)))
            elif name == "md":
                written.append(write_text(out / "report.md", markdown(report)))
            elif name == "csv":
                written += [write_text(out / file, text) for file, text in csv_values(report).items()]
            else:
                written.append(write_text(out / "tables.tex", latex(report)))
    except OSError as error:
        raise TrackingError(
            f"cannot write the report to {out}: {error.strerror or error}; give another --out"
        ) from error
    return written


def markdown(report: Report) -> str:
    """Verdict, notes and tables."""
    lines = [f"# {report.title}", "", report.subtitle, "", f"**{report.verdict.headline}**", ""]
    lines += [f"* {line}" for line in report.verdict.lines] + [""]
    if report.notes:
        lines += ["## Caveats", "", *(f"* {note}" for note in report.notes), ""]
    if report.overview:
        lines += ["## At a glance", "", *_markdown_overview(report), ""]
        lines += [
            f"Value, 95 % interval; then the difference to {report.baseline}, whose intervals hold together at 95 %: ▲ better, "
            "▼ worse, = undecided, ? no interval or fewer than 20 images. Bold: better than every other backbone.",
            "",
        ]
        lines += ["## What these images and seeds can tell apart", "", *(f"* {line}" for line in report.power), ""]
    for table in report.tables:
        lines += [f"## {table.title}", "", *_markdown_table(table), ""]
    for view in report.studies:
        heads = ["trial", *(view.label(name) for name in view.params), *view.names, "state"]
        lines += [f"## λ search: {view.study.name}", "", view.headline, "", _row(heads), _row(["---"] * len(heads))]
        for row in view.rows:
            trial = row["trial"]
            params = [_plain(view.text(trial.params[name])) if name in trial.params else "–" for name in view.params]
            values = [
                f"**{number(x, 3)}**" if best else number(x, 3)
                for x, best in zip(row["values"], row["best"], strict=True)
            ]
            lines.append(_row([_plain(trial.name), *params, *values, _plain(trial.state)]))
        lines.append("")
        if view.study.summary:
            lines += [
                _row(["what", "best", "value", "base", "clip-ft", "again", "noise", "verdict"]),
                _row(["---"] * 8),
            ]
            for row in view.study.summary:
                numbers = [number(_float(row.get(key)), 3) for key in SUMMED]
                lines.append(
                    _row(
                        [
                            _plain(f"{row.get('what')} {row.get('metric') or ''}".strip()),
                            _plain(str(row.get("best"))),
                            *numbers,
                            row.get("verdict") or "",
                        ]
                    )
                )
            lines.append("")
    return "\n".join(lines)


def _markdown_overview(report: Report) -> list[str]:
    assert report.overview is not None
    names = [name for name, _ in report.overview.rows]
    lines = [_row(["task", "metric", *names]), _row(["---", "---", *["---:"] * len(names)])]
    for place, head in enumerate(report.overview.heads):
        cells = [_markdown_cell(cells[place], head) for _, cells in report.overview.rows]
        lines.append(_row([head.column.title, f"{head.words} {'↑' if head.sign > 0 else '↓'}", *cells]))
    return lines


def _markdown_table(table: Table) -> list[str]:
    heads = [f"{h.column.title} {h.words} {'↑' if h.sign > 0 else '↓'}" for h in table.heads]
    lines = [_row(["backbone", *heads]), _row(["---", *["---:"] * len(heads)])]
    for name, cells in table.rows:
        shown = f"{name} ({table.marks[name]})" if name in table.marks else name
        lines.append(_row([shown, *(_markdown_cell(c, h) for c, h in zip(cells, table.heads, strict=True))]))
    return lines


def _markdown_cell(cell: TableCell, head: Head) -> str:
    if cell.estimate is None:
        return _plain(f"– ({cell.hole})")
    text = number(cell.estimate.value, head.digits)
    text = f"**{text}**" if cell.best else text
    text += f" {interval(cell.estimate, head.digits)}" if cell.estimate.known else ""
    if cell.difference is not None:
        text += f"; {MARKS[cell.verdict]} {number(cell.difference.value, head.digits, True)}"
        text += f" {interval(cell.difference, head.digits, True)}" if cell.difference.known else ""
    return text


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def csv_values(report: Report) -> dict[str, str]:
    """``results.csv``: one row for each number of the tables; ``runs.csv``: one for each metric of each MLflow run."""
    files = {}
    if report.analysis is not None:
        buffer = io.StringIO()
        out = csv.writer(buffer, lineterminator="\n")
        out.writerow(
            ["backbone", "task", "protocol", "metric", "direction", "value", "low", "high", "standard_error", "seeds",
             "difference", "difference_low", "difference_high", "detectable", "verdict", "best", "hole", "runs"]
        )  # fmt: skip
        seen = set()
        for table in [t for t in report.tables if t.id != "experts"]:
            for name, cells in table.rows:
                for cell, head in zip(cells, table.heads, strict=True):
                    key = (name, head.column.title, head.metric)
                    if key not in seen:
                        seen.add(key)
                        out.writerow(_values(name, cell, head))
        files["results.csv"] = buffer.getvalue()
        kept = [cell for cells in report.analysis.selection.cells.values() for cell in cells]
        files["runs.csv"] = tidy(kept).to_csv(index=False, lineterminator="\n")
    for view in report.studies:
        buffer = io.StringIO()
        out = csv.writer(buffer, lineterminator="\n")
        out.writerow(["trial", *view.params, *view.names, "state", "run"])
        for row in view.rows:
            trial = row["trial"]
            params = [trial.params.get(name, "") for name in view.params]
            out.writerow([trial.name, *params, *(_exact(x) for x in row["values"]), trial.state, trial.run.id])
        safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in view.study.name)
        files[f"study-{safe}.csv"] = buffer.getvalue()
    return files


def _values(name: str, cell: TableCell, head: Head) -> list[object]:
    found, gap = cell.estimate, cell.difference
    numbers = [found.value, found.low, found.high, found.error] if found else [float("nan")] * 4
    gaps = [gap.value, gap.low, gap.high, gap.detectable()] if gap else [float("nan")] * 4
    return [
        name, head.column.title, head.column.protocol, head.metric, head.sign, *map(_exact, numbers),
        found.seeds if found else 0, *map(_exact, gaps), cell.verdict, "yes" if cell.best else "", cell.hole,
        " ".join(run for _, run in cell.runs),
    ]  # fmt: skip


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _exact(value: float) -> str:
    return repr(float(value)) if value == value else ""


def latex(report: Report) -> str:
    """Tables for a paper (booktabs): value with its standard error over seeds, difference to the baseline in small print."""
    parts = ["% needs \\usepackage{booktabs}", f"% {report.title}; {report.date}", ""]
    for table in report.tables:
        columns = "l" + "r" * len(table.heads)
        tasks = " & ".join(_tex(head.column.title) for head in table.heads)
        arrows = {1: "$\\uparrow$", -1: "$\\downarrow$"}
        metrics = " & ".join(f"{_tex(head.words)} {arrows[head.sign]}" for head in table.heads)
        parts += [
            "\\begin{table}[t]", "\\centering",
            f"\\caption{{{_tex(table.title)}. Bold: better than every other backbone by its 95\\,\\% interval; in small print "
            f"the difference to {_tex(report.baseline)}, with $\\ast$ where its interval leaves out zero.}}",
            f"\\label{{tab:{table.id}}}", f"\\begin{{tabular}}{{{columns}}}", "\\toprule",
            f" & {tasks} \\\\", f"Backbone & {metrics} \\\\", "\\midrule",
        ]  # fmt: skip
        for name, cells in table.rows:
            row = " & ".join(_tex_cell(c, h) for c, h in zip(cells, table.heads, strict=True))
            parts.append(f"{_tex(name)} & {row} \\\\")
        parts += ["\\bottomrule", "\\end{tabular}", "\\end{table}", ""]
    for view in report.studies:
        heads = [view.label(name).replace("λ", "$\\lambda$") for name in view.params]
        parts += [
            "\\begin{table}[t]", "\\centering", f"\\caption{{$\\lambda$ search: {_tex(view.study.name)}.}}",
            f"\\begin{{tabular}}{{{'r' * (len(view.params) + len(view.names))}}}", "\\toprule",
            " & ".join([*heads, *(_tex(name) for name in view.names)]) + " \\\\", "\\midrule",
        ]  # fmt: skip
        for trial_row in view.rows:
            params = [
                _tex(view.text(trial_row["trial"].params[n])) if n in trial_row["trial"].params else "--"
                for n in view.params
            ]
            values = [
                f"\\textbf{{{_tex_number(x, 2)}}}" if best else _tex_number(x, 2)
                for x, best in zip(trial_row["values"], trial_row["best"], strict=True)
            ]
            parts.append(" & ".join([*params, *values]) + " \\\\")
        parts += ["\\bottomrule", "\\end{tabular}", "\\end{table}", ""]
    return "\n".join(parts)


def _tex_cell(cell: TableCell, head: Head) -> str:
    if cell.estimate is None:
        return "--"
    text = _tex_number(cell.estimate.value, head.digits)
    text = f"\\textbf{{{text}}}" if cell.best else text
    if cell.estimate.error == cell.estimate.error:
        text += f"\\,{{\\scriptsize$\\pm${_tex_number(cell.estimate.error, head.digits)}}}"
    if cell.difference is not None:
        star = "$^\\ast$" if cell.verdict in ("win", "loss") else ""
        text += f" {{\\scriptsize({_tex_number(cell.difference.value, head.digits, True)}{star})}}"
    return text


def _tex_number(value: float, digits: int, signed: bool = False) -> str:
    return number(value, digits, signed).replace("−", "$-$").replace("±", "$\\pm$").replace("–", "--")


def _tex(text: str) -> str:
    replaced = {
        "\\": "\\textbackslash{}", "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", "_": "\\_", "{": "\\{", "}": "\\}",
        "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "°": "$^\\circ$", "δ": "$\\delta$", "→": "$\\to$",
        "<": "$<$", ">": "$>$", "λ": "$\\lambda$",
    }  # fmt: skip
    return "".join(replaced.get(letter, letter) for letter in text)
