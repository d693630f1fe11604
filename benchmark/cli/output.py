"""Lines that several commands print."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text

from benchmark.execution.progress import console


def print_table(rows: Iterable[Sequence[str]]) -> None:
    """Print rows in columns that are as wide as their widest cell; the last one as it is."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        console.print("  ".join([*cells, row[-1]]))


def print_state(state: str, style: str, text: str, note: str = "") -> None:
    """Print a coloured state and text, and below the text a note."""
    console.print(Text(state, style=style).append(f" {text}", "default"))
    if note:
        console.print(" " * len(state), note)
