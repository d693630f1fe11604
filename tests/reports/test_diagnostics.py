"""Diagnostics in a report: of one number of features, beside the metrics, never among them."""

from __future__ import annotations

import pytest

from reports.relations import FEWEST, collect_diagnostics, diagnostics_figures
from tests.reports.synthetic import stored_run


def runs(count: int, odd: bool = False):
    for number in range(count):
        features = 64.0 if odd and number == 0 else 128.0
        logged = {"features": features, "rankme": 10.0 + number, "rankme_spread": 0.5}
        yield stored_run(f"b{number}", value=50.0 + number, dataset="voc", label_free=logged)


def test_all_are_of_the_same_number_of_features(analysis_of):
    (table,) = collect_diagnostics(analysis_of([*runs(3, odd=True)]))
    assert table.title == "voc, patches of train, N = 128"
    assert table.frame["RankMe"].tolist() == ["11.00 ± 0.50", "12.00 ± 0.50"]
    assert set(table.frame["TwoNN"]) == {"–"}


def test_a_correlation_needs_enough_backbones(analysis_of):
    analysis = analysis_of([*runs(FEWEST - 1)])
    assert diagnostics_figures(analysis, collect_diagnostics(analysis)) == []
    analysis = analysis_of([*runs(FEWEST)])
    (figure,) = diagnostics_figures(analysis, collect_diagnostics(analysis))
    assert figure.menus["diagnostic"] == ["RankMe"]
    assert figure.spec["layout"]["annotations"][0]["text"].startswith("ρ = 1.00")


def test_nothing_ranks_by_them(analysis_of):
    analysis = analysis_of([*runs(3)])
    assert {key[2] for key in analysis.estimates} == {"mIoU"}
    assert analysis.gains["b2"].mean.value == pytest.approx(4)
