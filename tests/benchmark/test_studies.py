"""The tables of the studies in the docs."""

from __future__ import annotations

import pandas as pd
import pytest

from benchmark.studies import PAGE, STUDIES, insert_table, study_table

pytestmark = pytest.mark.unit

VALUES = {
    ("mini-seg/linear", "mIoU"): {"clip": [20.0, 22.0], "cliptex": [30.0, 31.0]},
    ("mini-seg/linear", "mAcc"): {"clip": [1.0, 1.0], "cliptex": [2.0, 2.0]},
    ("mini-depth/linear", "abs_rel"): {"clip": [0.5, 0.5], "cliptex": [0.4, 0.41]},
    ("mini-class/zero-shot", "top1"): {"cliptex": [75.0]},
}


def test_means_and_deviations_of_the_main_metrics():
    rows = [
        {"task": task, "metric": metric, "backbone": name, "value": value}
        for (task, metric), values in VALUES.items()
        for name, numbers in values.items()
        for value in numbers
    ]
    assert study_table(pd.DataFrame(rows), ("clip", "cliptex")).splitlines() == [
        "| backbone | mini-seg/linear mIoU ↑ | mini-depth/linear abs_rel ↓"
        " | mini-class/zero-shot top1 ↑ |",
        "| --- | ---: | ---: | ---: |",
        "| `clip` | 21.0 ± 1.4 | 0.500 ± 0.000 | – |",
        "| `cliptex` | **30.5** ± 0.7 | **0.405** ± 0.007 | **75.0** |",
    ]


def test_a_table_replaces_the_one_before():
    page = "before\n<!-- a -->\nold\n<!-- end of a -->\nafter\n"
    once = insert_table(page, "a", "new")
    assert once == "before\n<!-- a -->\n\nnew\n\n<!-- end of a -->\nafter\n"
    assert insert_table(once, "a", "new") == once
    with pytest.raises(ValueError, match="0 places"):
        insert_table(page, "b", "new")


def test_the_page_has_a_place_for_every_study():
    page = PAGE.read_text(encoding="utf-8")
    for study in STUDIES:
        insert_table(page, f"table of {study}", "")
