"""``python -m benchmark.studies``: the studies of the paper on the mini suite, recipes against
``clip-ft`` with three seeds each, as tables in ``docs/guide/cliptex.md``.

All recipes are one run, so what studies share is trained and probed once, and finished cells are
reused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import benchmark.catalog  # noqa: F401 – registers every dataset, probe and suite
from benchmark.suites.mini_sizes import SUBSETS
from cliptex_common.errors import UserError
from cliptex_common.files import write_text
from probes.registry import find_task

if TYPE_CHECKING:
    import pandas as pd

STUDIES = {  # name of the marker in the page → columns of the table
    "default": ("random", "clip", "clip-ft", "cliptex"),
    "experts": ("clip-ft", *SUBSETS),
    "labels": ("clip-ft", "cliptex-manual", "cliptex", "cliptex-both"),
}
PAGE = Path("docs/guide/cliptex.md")


def study_table(frame: pd.DataFrame, names: Sequence[str]) -> str:
    """A Markdown table: backbones down, the main metric of each task across, as mean ± standard
    deviation over seeds; the best mean of each column is bold.

    Args:
        frame: a row for each number, see ``benchmark.api.Results``.
    """
    columns = [["backbone", "---", *(f"`{name}`" for name in names)]]
    for task in frame.task.unique():
        metric, declared = next(iter(find_task(task)[1].metrics.items()))
        values = frame[(frame.task == task) & (frame.metric == metric)].groupby("backbone").value
        means, deviations = values.mean().reindex(names), values.std().reindex(names)
        best = means.max() if declared.direction > 0 else means.min()
        digits = 3 if abs(best) < 1 else 1
        column = [f"{task} {metric} {'↑' if declared.direction > 0 else '↓'}", "---:"]
        for mean, deviation in zip(means, deviations, strict=True):
            text = f"{mean:.{digits}f}".replace("nan", "–")
            text = f"**{text}**" if mean == best else text
            column.append(text + (f" ± {deviation:.{digits}f}" if deviation >= 0 else ""))
        columns.append(column)
    return "\n".join(f"| {' | '.join(row)} |" for row in zip(*columns, strict=True))


def insert_table(page: str, marker: str, table: str) -> str:
    """The page with ``table`` between ``<!-- marker -->`` and ``<!-- end of marker -->``.

    Raises:
        ValueError: the page does not have both, once.
    """
    start, end = f"<!-- {marker} -->", f"<!-- end of {marker} -->"
    parts = re.split(f"{re.escape(start)}.*?{re.escape(end)}", page, flags=re.DOTALL)
    if len(parts) != 2:
        raise ValueError(f"the page has {len(parts) - 1} places for the table {marker!r}, not one")
    return f"\n\n{table}\n\n".join([parts[0] + start, end + parts[1]])


def write_tables(suite: str = "mini", seeds: int = 3, page: Path = PAGE) -> None:
    """Run the studies, or those of them that are not finished, and write the page.

    Raises:
        UserError: a cell failed.
    """
    from benchmark.api import evaluate

    names = list(dict.fromkeys(name for columns in STUDIES.values() for name in columns))
    frame = evaluate(names, suite=suite, seeds=seeds).frame
    for cell in frame[frame.status == "failed"].itertuples():
        raise UserError(f"{cell.backbone} · {cell.task} failed: {cell.reason}; run it again")
    text = page.read_text(encoding="utf-8")
    for study, columns in STUDIES.items():
        text = insert_table(text, f"table of {study}", study_table(frame, columns))
    write_text(page, text)


if __name__ == "__main__":
    write_tables()
