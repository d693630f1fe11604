"""``python -m benchmark.studies``: the studies of the paper on the mini suite.

Three seeds each, as tables in ``docs/guide/cliptex.md``.

All backbones are one run, so what studies share is trained and probed once, and finished cells are
reused.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import benchmark.catalog  # noqa: F401 – registers every dataset, probe and suite
from benchmark.suites.mini_sizes import SUBSETS
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
    tasks = {task: next(iter(find_task(task)[1].metrics.items())) for task in frame.task.unique()}
    cells: dict[str, list[str]] = {name: [] for name in names}
    heading = ["backbone"]
    for task, (metric, about) in tasks.items():
        heading.append(f"{task} {metric} {'↑' if about.direction > 0 else '↓'}")
        rows = frame[(frame.task == task) & (frame.metric == metric)]
        values = {name: rows[rows.backbone == name].value.to_numpy() for name in names}
        means = {name: numbers.mean() for name, numbers in values.items() if len(numbers)}
        best = (max if about.direction > 0 else min)(means.values(), default=np.nan)
        for name, numbers in values.items():
            text = "–"
            if len(numbers):
                digits = 3 if abs(best) < 1 else 1
                text = f"{means[name]:.{digits}f}"
                text = f"**{text}**" if means[name] == best else text
            if len(numbers) > 1:
                text += f" ± {numbers.std(ddof=1):.{digits}f}"
            cells[name].append(text)
    lines = [heading, ["---"] + ["---:"] * len(tasks)]
    lines += [[f"`{name}`", *texts] for name, texts in cells.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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


def main() -> None:
    """Run the studies, or those of them that are not finished, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="mini")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    from benchmark.api import evaluate

    names = list(dict.fromkeys(name for columns in STUDIES.values() for name in columns))
    frame = evaluate(names, suite=options.suite, seeds=options.seeds).frame
    failed = frame[frame.status == "failed"]
    if len(failed):
        first = failed.iloc[0]
        raise SystemExit(
            f"error: {len(failed)} cells failed, the first is {first.backbone} · {first.task}:"
            f" {first.reason}; mend that and run the command again"
        )
    page = options.page.read_text(encoding="utf-8")
    for study, columns in STUDIES.items():
        page = insert_table(page, f"table of {study}", study_table(frame, columns))
    write_text(options.page, page)


if __name__ == "__main__":
    main()
