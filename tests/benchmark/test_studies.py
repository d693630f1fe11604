"""The tables of the studies in the docs."""

from __future__ import annotations

import pytest

from benchmark.studies import PAGE, STUDIES, insert_table, write_tables


@pytest.mark.unit
def test_a_table_replaces_the_one_before():
    page = "before\n<!-- table of a -->\nold\n<!-- end of table of a -->\nafter\n"
    once = insert_table(page, "a", "new")
    expected = "before\n<!-- table of a -->\n\nnew\n\n<!-- end of table of a -->\nafter\n"
    assert insert_table(once, "a", "new") == once == expected
    with pytest.raises(ValueError, match="unpack"):
        insert_table(page, "b", "new")


@pytest.mark.slow
@pytest.mark.integration
def test_the_page_has_the_reports_table_of_every_study(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    write_tables(page, "smoke", 1, ["mini-class/linear"])  # which random has, too
    text = page.read_text()
    for study in STUDIES:
        table = text.partition(f"<!-- table of {study} -->")[2].partition("<!-- end")[0]
        assert "mini-class/linear" in table and "cliptex" in table
        assert "against clip-ft" in table or "difference to clip-ft" in table
