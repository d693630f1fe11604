"""Tables as LaTeX, Markdown and text; the page's are in ``tables.html.j2``.

A table is one frame, of ``reports.parts.tables.Number`` or of plain values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from reports.parts.tables import MARKS, MetricColumn, Number, decimal

Text = Callable[[Any], str]
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


def plain_cell(value: object) -> str:
    """A value that is no ``Number``."""
    if value is None or value != value:
        return "–"
    return f"{value:.4g}".replace("-", "−") if isinstance(value, float) else str(value)


def terminal_cell(number: Number) -> str:
    """Value, interval or else standard error, and mark."""
    if number.missing:
        return number.missing.partition(":")[0]
    spread = number.interval or (f"± {number.error}" if number.error else "")
    return " ".join(filter(None, [number.text, spread, MARKS[number.verdict]]))


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


def markdown_table(frame: pd.DataFrame, cell: Text, head: Text = str) -> list[str]:
    """The lines of a table of Markdown."""
    index, columns = [map(plain_text, frame.index), [plain_text(head(c)) for c in frame.columns]]
    rows = [["", *columns], ["---", *["---:"] * len(columns)]]
    cells = frame.map(cell).to_numpy().tolist()
    rows += [[label, *texts] for label, texts in zip(index, cells, strict=True)]
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


def named_rows(names: Sequence[str], marks: Mapping[str, str]) -> list[str]:
    """Backbones with their marks, for tables without small print."""
    return [f"{name} ({marks[name]})" if name in marks else name for name in names]
