"""What stands in the tables beside the numbers."""

from __future__ import annotations

import pytest

from reports.mlflow.run import Tracker
from reports.render.export import markdown
from reports.render.page import render
from reports.report import Request, build
from tests.reports.synthetic import write_run


def test_bold_only_where_the_interval_allows(report):
    for head, cells in zip(
        report.overview.heads, zip(*(c for _, c in report.overview.rows), strict=True), strict=True
    ):
        names = [
            name for (name, _), cell in zip(report.overview.rows, cells, strict=True) if cell.best
        ]
        if head.column.task in ("imagenet/linear",) or head.column.letter == "B":
            assert names == []
        if head.column.task == "nyu-depth/linear":
            assert names == ["cliptex"]


def test_protocols_that_differ_are_shown_side_by_side(report):
    (differing,) = report.provenance.differences.values()
    assert differing == {"settings.which": {"A": "p", "B": "quick"}}


def test_role_of_experts(report):
    (table,) = [t for t in report.tables if t.id == "experts"]
    assert [name for name, _ in table.rows] == ["clip-ft", "cliptex-seg", "cliptex"]
    assert (
        table.marks["cliptex-seg"] == "experts: seg"
        and table.marks["cliptex"] == "experts: seg + depth + normal"
    )


def test_sections_come_in_the_papers_order(report):
    assert [t.id for t in report.tables] == [
        "segmentation",
        "geometry",
        "classification",
        "zero-shot",
        "experts",
    ]


def test_every_pair_is_judged_and_all_hold_together(report):
    pairs, analysis = report.pairs, report.analysis
    names = analysis.selection.backbones
    assert set(pairs) == {(a, b) for a in names for b in names if a != b}
    one, other = pairs["cliptex", "clip-ft"], pairs["clip-ft", "cliptex"]
    assert (
        one.gain == pytest.approx(analysis.gains["cliptex"].typical.value)
        and one.gain > 0 > other.gain
    )
    gain = analysis.gains["cliptex"].typical
    assert one.low < gain.low and one.high > gain.high, "wider than against one baseline alone"
    assert (one.won, one.lost) == (
        other.lost,
        other.won,
    ) and one.won + one.lost + one.undecided == 4
    assert one.won <= list(analysis.tasks("cliptex").values()).count("win")


def test_classes_are_what_their_mean_is_made_of(report):
    tables = {table.title: table for table in report.classes}
    assert set(tables) == {"voc/linear (A)", "voc/linear (B)"}
    frame = tables["voc/linear (A)"].frame
    assert (
        frame["class"].tolist() == ["sky", "road", "tree", "car"]
        and frame["images"].tolist() == [60] * 4
    )
    for name in ("clip-ft", "cliptex", "clip"):
        (key,) = [
            k
            for k in report.analysis.estimates
            if (k[0], k[1].title, k[2]) == (name, "voc/linear (A)", "mIoU")
        ]
        assert frame[name].mean() == pytest.approx(report.analysis.estimates[key].value)


def test_more_than_six_backbones_stand_as_rows_with_what_is_known_of_them(
    store, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    tracker = Tracker("many", store.uri)
    for place in range(8):
        tags = {"weights.source": f"timm/net{place}.in1k"}
        qualities = {"imagenet/linear": 0.4 + place / 50, "voc/linear": 0.5}
        run = write_run(tracker, f"net{place}", 0, qualities, tags=tags, images=20)
        for name, value in (("parameters", 1e7 * (place + 1)), ("flops_per_image", 17.6e9)):
            if place < 7:
                tracker.client.log_metric(run, f"cost/{name}", value)
    report = build(Request(experiments=["many"], tracking_uri=tracker.uri))
    assert report.provenance.backbones["net3"] == {
        "Architecture": "toy",
        "Parameters": "40.0 M",
        "Resolution": "224 × 224",
        "FLOPs an image": "17.6 G",
        "Pretraining": "timm/net3.in1k",
    }
    assert report.provenance.backbones["net7"]["Parameters"] == ""
    html = render(report)
    head, body = html.partition('id="t-overview"')[2].split("<tbody>")[:2]
    assert ">Backbone</button>" in head and ">voc/linear</button>" in head
    sortable = html.partition('id="t-backbones"')[2].partition("</thead>")[0]
    assert all(f">{title}</button>" in sortable for title in report.provenance.backbones["net3"])
    row = body.partition('data-value="net3"')[2].partition("</tr>")[0]
    assert (
        "toy · 40.0 M · 224 × 224 · 17.6 G · timm/net3.in1k" in row and row.count("data-runs") == 2
    )
    assert markdown(report).partition("## At a glance")[2].strip().splitlines()[0].count(" | ") == 2


def test_published_numbers_stand_beside_ours_with_their_source(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = Tracker("beside", store.uri)
    differs = {
        "imagenet/linear": {
            "preset": "dinov2",
            "differs": "differs from dinov2: epochs=1 instead of 10",
        }
    }
    for name in ("clip", "dinov2-b14", "cliptex"):
        write_run(
            tracker,
            name,
            0,
            {"imagenet/linear": 0.6, "voc/linear": 0.6},
            task_tags=differs,
            images=20,
        )
    report = build(Request(experiments=["beside"], tracking_uri=tracker.uri))
    one, statement = sorted(report.published, key=lambda p: p.task, reverse=True)
    assert (one.backbone, one.task, one.published) == ("dinov2-b14", "imagenet/linear", "84.5")
    (ours,) = [
        n
        for _, row in report.overview.rows
        for n in row
        if (n.backbone, n.task) == ("dinov2-b14", "imagenet/linear")
    ]
    assert float(one.ours.partition(" ")[0]) == pytest.approx(ours.value, abs=0.01)
    assert "epochs=1 instead of 10" in one.differs and "validation images" in one.differs
    assert one.url.startswith("https://github.com/facebookresearch/dinov2/blob/")
    assert (statement.backbone, statement.published) == ("cliptex", "up to 16.3 % better than CLIP")
    assert "% over clip on average" in statement.ours
