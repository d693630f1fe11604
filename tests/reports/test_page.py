"""The page: numbers are MLflow's, missing ones have a reason, and it is one accessible file."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

from reports.store import read_run


class Elements(HTMLParser):
    """All elements with their attributes, and the rows of tables.

    Attributes:
        elements: (tag, attributes) in order.
        rows: (id of the table, cells with text and attributes).
    """

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.table = ""
        self.rows: list[tuple[str, list[dict]]] = []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag == "table":
            self.table = attributes.get("id", "")
        if tag == "tr":
            self.rows.append((self.table, []))
        if tag in ("td", "th") and self.rows:
            self.rows[-1][1].append({"text": "", **attributes})
        if tag == "data":
            self.rows[-1][1][-1] |= attributes

    def handle_data(self, data):
        if self.rows and self.rows[-1][1]:
            self.rows[-1][1][-1]["text"] += data


@pytest.fixture(scope="module")
def parsed(page):
    parser = Elements()
    parser.feed(page)
    return parser


@pytest.fixture(scope="module")
def overview(parsed):
    return [cells for table, cells in parsed.rows if table == "t-overview"]


def test_numbers_are_means_of_mlflows(store, overview):
    checked = 0
    for heading, *cells in overview:
        for cell in cells:
            if not cell.get("data-runs"):
                continue
            records = [read_run(store.client.get_run(run)) for run in cell["data-runs"].split()]
            assert len({record.protocol for record in records}) == 1
            mean = np.mean([record.metrics[record.main] for record in records])
            assert float(cell["value"]) == pytest.approx(mean)
            assert heading["text"].startswith(records[0].task)
            checked += 1
    assert checked == 13


def test_missing_numbers_have_an_escaped_reason(page, overview):
    reasons = {
        " ".join(cell["text"].split())
        for cells in overview
        for cell in cells
        if cell["text"].startswith("–")
    }
    assert "– failed: RuntimeError: loss is nan <b>&" in reasons and "loss is nan <b>" not in page
    assert not re.search(r"&lt;(a|span|data|button|small)\b", page), "markup of our own is escaped"
    assert "– other protocol" in reasons and "– not run" in reasons


def test_the_page_is_one_offline_file(page, report):
    assert len(page.encode()) < 8_000_000
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    links = set(re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|\#)([^"']+)""", markup))
    sources = {row.number.url for row in report.published}
    assert sources and all(
        link.startswith("http://127.0.0.1:5000/#/") or link in sources for link in links
    )
    assert "@import" not in page and "url(http" not in page and "default-src 'none'" in page


def test_the_page_is_accessible(parsed):
    tags = [tag for tag, _ in parsed.elements]
    ids = [attributes["id"] for _, attributes in parsed.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    for tag, attributes in parsed.elements:
        assert tag != "img" or "alt" in attributes
        if tag in ("span", "div") and "aria-label" in attributes:
            assert attributes.get("role")
    assert all(after == "figcaption" for tag, after in pairwise(tags) if tag == "figure")
    assert tags.count("table") == tags.count("caption")
