"""The page: every number is MLflow's, what is missing says why, nothing outside is needed, and it
can be heard."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

from reports.metrics import declared


class _Rows(HTMLParser):
    """(table id, row heading) → cells with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = ""
        self.rows: list[tuple[str, list[dict]]] = []
        self.tags: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        if found.get("id"):
            self.ids.append(found["id"])
        if tag == "table":
            self.table = found.get("id", "")
        if tag == "tr":
            self.rows.append((self.table, []))
        if tag in ("td", "th") and self.rows:
            self.rows[-1][1].append({"tag": tag, "text": "", **found})

    def handle_data(self, data):
        if self.rows and self.rows[-1][1]:
            self.rows[-1][1][-1]["text"] += data


@pytest.fixture(scope="module")
def rows(page):
    parser = _Rows()
    parser.feed(page)
    assert len(parser.ids) == len(set(parser.ids)), "ids are unique"
    return parser.rows


def test_numbers_in_the_page_are_means_of_mlflows(store, report, rows):
    seen = 0
    for table, cells in rows:
        for cell in cells:
            if not cell.get("data-runs") or table != "t-overview":
                continue
            runs = [store.client.get_run(run) for run in cell["data-runs"].split()]
            task = runs[0].data.tags["task"]
            main = next(iter(declared(runs[0].data.tags))).replace("@", "_at_")
            assert {run.data.tags["protocol"] for run in runs} == {runs[0].data.tags["protocol"]}, (
                "one protocol a number"
            )
            assert float(cell["data-value"]) == pytest.approx(
                np.mean([run.data.metrics[main] for run in runs])
            )
            assert cells[0]["text"].startswith(task)
            seen += 1
    assert seen == 13


def test_what_is_missing_says_why_and_are_escaped(page, rows):
    missing = {
        (cells[0]["text"], cell["text"].strip())
        for table, cells in rows
        if table == "t-overview"
        for cell in cells
        if "missing" in (cell.get("class") or "")
    }
    reasons = {" ".join(text.split()) for _, text in missing}
    assert "– failed: RuntimeError: loss is nan <b>&" in reasons and "loss is nan <b>" not in page
    assert "– other protocol" in reasons and "– not run" in reasons


def test_the_page_needs_nothing_else(page, report):
    assert len(page.encode()) < 8_000_000
    outside = set(
        re.findall(
            r"""(?:src|href)\s*=\s*["'](?!data:|\#)([^"']+)""",
            re.sub(r"<script.*?</script>", "", page, flags=re.S),
        )
    )
    sources = {one.url for one in report.published}
    assert sources and all(
        url.startswith("http://127.0.0.1:5000/#/") or url in sources for url in outside
    ), "only links to MLflow's UI and to sources of published numbers leave the page"
    assert "@import" not in page and "url(http" not in page
    assert "default-src 'none'" in page


class _Elements(HTMLParser):
    """All elements with their attributes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_the_page_can_be_heard(page):
    parser = _Elements()
    parser.feed(page)
    names = [tag for tag, _ in parser.found]
    levels = [int(tag[1]) for tag in names if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels)), "no level is left out"
    assert all("alt" in attrs for tag, attrs in parser.found if tag == "img")
    assert all(
        attrs.get("role")
        for tag, attrs in parser.found
        if tag in ("span", "div") and "aria-label" in attrs
    )
    assert all(
        names[place + 1] == "figcaption" for place, tag in enumerate(names) if tag == "figure"
    )
    assert names.count("table") == names.count("caption"), "each table says what it is"
