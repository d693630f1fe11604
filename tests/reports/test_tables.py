"""The content of the tables."""

from __future__ import annotations

import pytest

from reports.pages import markdown, render_page
from tests.reports.synthetic import write_run, write_runs


def test_bold_only_where_the_interval_allows(report):
    best = {cell.task: cell.backbone for cell in report.overview.numbers if cell.best}
    assert best["nyu-depth/linear"] == "cliptex"
    assert "imagenet/linear" not in best and "voc/linear (B)" not in best


def test_protocols_are_shown_with_their_differences(report):
    (differences,) = report.provenance.differences.values()
    assert differences == {"settings.which": {"A": "p", "B": "quick"}}


def test_a_table_for_each_kind_of_task_and_one_of_experts(report):
    titles = ["Segmentation", "Depth", "Classification", "Image-text", "Role of experts"]
    assert [table.title for table in report.tables] == titles
    table = report.tables[-1]
    assert list(table.frame.index) == ["clip-ft", "cliptex-seg", "cliptex"]
    assert table.marks["cliptex-seg"] == "experts: seg"
    assert table.marks["cliptex"] == "experts: seg + depth + normal"


def test_all_pairs_hold_jointly(report):
    pairs, analysis = report.pairs, report.analysis
    names = analysis.selection.backbones
    assert set(pairs) == {(a, b) for a in names for b in names if a != b}
    pair, inverse = pairs["cliptex", "clip-ft"], pairs["clip-ft", "cliptex"]
    gain = analysis.gains["cliptex"].mean
    assert pair.gain == pytest.approx(gain.value) and pair.gain > 0 > inverse.gain
    assert (pair.low, pair.high) == (gain.low, gain.high)
    assert (pair.wins, pair.losses) == (inverse.losses, inverse.wins)
    assert pair.wins + pair.losses + pair.undecided == 4
    assert pair.wins <= list(analysis.tasks("cliptex").values()).count("win")


def test_the_mean_over_classes_is_the_metric(report):
    tables = {table.title: table.frame for table in report.classes}
    assert set(tables) == {"voc/linear (A)", "voc/linear (B)"}
    frame = tables["voc/linear (A)"]
    assert frame["class"].tolist() == ["sky", "road", "tree", "car"]
    assert frame["images"].tolist() == [60] * 4
    (column,) = [c for c in report.columns if c.title == "voc/linear (A)"]
    for name in ("clip-ft", "cliptex", "clip"):
        estimate = report.analysis.estimates[name, column, "mIoU"]
        assert frame[name].mean() == pytest.approx(estimate.value)


def test_many_backbones_are_rows_with_their_properties(tracker, report_of):
    qualities = {"imagenet/linear": 0.5, "voc/linear": 0.5}
    for number in range(8):
        tags = {"weights.source": f"timm/net{number}.in1k"}
        run = write_run(tracker, f"net{number}", 0, qualities, tags=tags, images=20)
        if number == 3:
            tracker.client.log_metric(run, "cost/parameters", 4e7)
            tracker.client.log_metric(run, "cost/flops_per_image", 17.6e9)
    report = report_of(tracker)
    assert report.provenance.backbones["net3"] == {
        "Architecture": "toy",
        "Parameters": "40.0 M",
        "Resolution": "224 × 224",
        "FLOPs an image": "17.6 G",
        "Pretraining": "timm/net3.in1k",
    }
    assert report.provenance.backbones["net7"]["Parameters"] == ""
    head, body = render_page(report).partition('id="t-overview"')[2].split("<tbody>")[:2]
    assert ">Backbone</button>" in head and ">voc/linear</button>" in head
    row = body.partition('value="net3"')[2].partition("</tr>")[0]
    assert "toy · 40.0 M · 224 × 224 · 17.6 G · timm/net3.in1k" in row
    assert row.count("data-runs") == 2
    assert markdown(report).partition("## At a glance")[2].strip().splitlines()[0].count(" | ") == 2


def test_floor_and_ceiling_stand_beside_the_scores(tracker, report_of):
    bounds = {"clip": {"floor": 10.0, "ceiling": 80.0}, "mine": {"ceiling": 90.0}}
    write_runs(tracker, dict.fromkeys(bounds, 0.5))
    for cell in tracker.search(task="voc/linear"):
        for bound, value in bounds[cell.backbone].items():
            tracker.client.log_metric(cell.run_id, f"bound/{bound}_mIoU", value)
    report = report_of(tracker)
    assert "floor 10.0, ceiling 80.0 to 90.0" in render_page(report)
    (figure,) = report.figures["bars"]
    _, *lines = figure.spec["data"]
    assert {line["name"]: (line["x"], line["y"]) for line in lines} == {
        "floor": (["clip"], [10.0]),
        "ceiling": (["clip", "mine"], [80.0, 90.0]),
    }
