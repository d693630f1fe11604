"""``python -m benchmark.studies``: the studies of the paper on the mini suite, recipes
against ``clip-ft`` with three seeds each, as tables of the report in ``docs/guide/cliptex.md``.

All recipes are one run, so what studies share is trained and probed once, and finished cells are
reused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import benchmark.catalog  # noqa: F401 – registers every dataset, probe and suite
from benchmark.mini.suite import BACKBONE_SETS
from cliptex_common.errors import UserError
from cliptex_common.files import write_text

STUDIES = ("cliptex", "ablation", "labels")  # sets of backbones, each a table of the page
PAGE = Path("docs/guide/cliptex.md")


def insert_table(page: str, study: str, table: str) -> str:
    """The page with ``table`` between the two comments of the study.

    Raises:
        ValueError: the page does not have both, once.
    """
    start, end = f"<!-- table of {study} -->", f"<!-- end of table of {study} -->"
    before, rest = page.split(start)
    _, after = rest.split(end)
    return f"{before}{start}\n\n{table}\n\n{end}{after}"


def write_tables(
    page: Path = PAGE, suite: str = "mini", seeds: int = 3, tasks: Sequence[str] = ()
) -> None:
    """Run the studies, or those of them that are not finished, and write the page.

    Raises:
        UserError: a cell failed.
    """
    from benchmark.api import evaluate
    from reports.pages import overview_lines

    names = list(dict.fromkeys(chain(*map(BACKBONE_SETS.__getitem__, STUDIES))))
    results = evaluate(names, tasks, suite=suite, seeds=seeds)
    frame = results.frame
    for cell in frame[frame.status == "failed"].itertuples():  # the first, if there is any
        raise UserError(f"{cell.backbone} · {cell.task} failed: {cell.reason}; run it again")
    text = page.read_text(encoding="utf-8")
    for study in STUDIES:
        part = frame[frame.backbone.isin(BACKBONE_SETS[study])]
        report = replace(results, frame=part, baseline="clip-ft").build_report()
        lines = [f"{report.summary.headline}\n", *overview_lines(report)]
        text = insert_table(text, study, "\n".join(lines).strip())
    write_text(page, text)


if __name__ == "__main__":
    write_tables()
