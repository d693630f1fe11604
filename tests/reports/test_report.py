"""The whole report from a real store: every number in every format is MLflow's, holes are holes, protocols stay apart."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import pytest

from reports.analysis import analyse, shown_metrics
from reports.attach import attach_report
from reports.errors import TrackingError
from reports.metrics import TAG, Metric, declare, declared
from reports.mlflow.query import Store
from reports.mlflow.run import Tracker
from reports.parts import figures as drawing
from reports.parts.caveats import caveats
from reports.parts.tables import number, overview
from reports.parts.verdict import power_lines, verdict
from reports.render.export import write
from reports.render.page import render
from reports.report import Request, _under_protocols_of, build
from reports.selection import select
from tests.reports.synthetic import TASKS as KINDS
from tests.reports.synthetic import stored_run, write_run

TASKS = ("voc/linear", "nyu-depth/linear", "imagenet/linear", "flickr30k/retrieval")


def same(quality: float) -> dict[str, float]:
    return dict.fromkeys(TASKS, quality)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """clip-ft and cliptex with three seeds, clip with a failed task, cliptex-seg with one seed, two protocols of voc/linear."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tracker = Tracker("paper", f"sqlite:///{folder}/mlflow.db")
        for seed in range(3):
            write_run(tracker, "clip-ft", seed, same(0.5), pictures=seed == 0)
            write_run(
                tracker,
                "cliptex",
                seed,
                {**same(0.62), "imagenet/linear": 0.5},
                pictures=seed == 0,
                tags={"experts": "seg,depth,normal"},
            )
        write_run(tracker, "clip", 0, same(0.45), failing={"nyu-depth/linear": "loss is nan <b>&"})
        write_run(tracker, "cliptex-seg", 0, {"voc/linear": 0.58}, tags={"experts": "seg"})
        write_run(tracker, "clip-ft", 0, {"voc/linear": 0.3}, protocol="quick")
        with tracker.run(
            "sweep lambdas", tags={"study": "lambdas", "stage": "sweep", "directions": "dense:+1,zero-shot:+1"}
        ) as sweep:
            rows = [{"what": "dense gain over clip-ft (%)", "metric": "", "sign": 1, "best": "lambda_seg=0.1", "value": 1.1,
                     "base": 0.2, "baseline": 0.0, "confirmed": 0.8, "noise": 0.1, "trial": 1, "verdict": "clear"},
                    {"what": "voc/linear", "metric": "mIoU", "sign": 1, "best": "lambda_seg=0.1", "value": 41.0, "base": 40.0,
                     "baseline": 38.0, "confirmed": math.nan, "noise": 0.2, "trial": 1, "verdict": "not confirmed"}]  # fmt: skip
            sweep.log_json(rows, "summary.json")
        for number_, (seg, depth) in enumerate([(0.1, 0.1), (0.1, 1), (1, 0.1), (1, 1)]):
            values = {"objective/dense": seg + depth, "objective/zero-shot": -seg}
            with tracker.run(f"trial {number_}", tags={"study": "lambdas", "trial": str(number_)},
                             params={"lambda_clip": 1, "lambda_seg": seg, "lambda_depth": depth}) as run:  # fmt: skip
                if number_ != 3:
                    run.log_metrics(values)
                else:
                    run.fail("NonFiniteLoss: at step 7")
    return tracker


@pytest.fixture(scope="module")
def report(store):
    return build(Request(experiments=["paper"], tracking_uri=store.uri, ui_url="http://127.0.0.1:5000"))


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
def page(report):
    return render(report)


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
            assert float(cell["data-value"]) == pytest.approx(np.mean([run.data.metrics[main] for run in runs]))
            assert cells[0]["text"].startswith(task)
            seen += 1
    assert seen == 13


def test_the_verdict_is_what_the_intervals_say(report):
    assert report.baseline == "clip-ft"
    assert report.verdict.tone == "better"
    assert "it is better than clip-ft on 3 of 4 tasks and loses none; mean gain +27." in report.verdict.headline
    analysis = report.analysis
    told = {c.title: analysis.verdict("cliptex", c) for c in analysis.selection.columns}
    assert told == {"voc/linear (A)": "win", "voc/linear (B)": "", "nyu-depth/linear": "win", "imagenet/linear": "tie",
                    "flickr30k/retrieval": "win"}  # fmt: skip
    gain = analysis.gains["cliptex"]
    assert 0 < gain.typical.low < gain.typical.value < gain.mean.value and len(gain.columns) == 4
    assert gain.improvement == pytest.approx(3.5 / 4, abs=0.05), "imagenet is even"
    for key, gap in analysis.differences.items():  # mark, table and forest plot are one interval
        where = key[:2]
        if key[2] == key[1].main and where in analysis.task_gains:
            shown, base = analysis.task_gains[where], analysis.estimates["clip-ft", *key[1:]].value
            assert shown.verdict() == analysis.verdict(*where)
            if gap.seeds == analysis.estimates["clip-ft", *key[1:]].seeds:
                assert shown.reach == pytest.approx(100 * gap.reach / base)
    assert any(note.startswith("One seed") or "Seeds differ" in note for note in report.notes)


def test_bold_only_where_the_interval_allows(report):
    for head, cells in zip(report.overview.heads, zip(*(c for _, c in report.overview.rows), strict=True), strict=True):
        names = [name for (name, _), cell in zip(report.overview.rows, cells, strict=True) if cell.best]
        if head.column.task in ("imagenet/linear",) or head.column.letter == "B":
            assert names == []
        if head.column.task == "nyu-depth/linear":
            assert names == ["cliptex"]


def test_holes_say_why_and_are_escaped(page, rows):
    holes = {
        (cells[0]["text"], cell["text"].strip())
        for table, cells in rows
        if table == "t-overview"
        for cell in cells
        if "hole" in (cell.get("class") or "")
    }
    reasons = {" ".join(text.split()) for _, text in holes}
    assert "– failed: RuntimeError: loss is nan <b>&" in reasons and "loss is nan <b>" not in page
    assert "– other protocol" in reasons and "– not run" in reasons


def test_protocols_that_differ_are_shown_side_by_side(report):
    (differing,) = report.provenance.differences.values()
    assert differing == {"settings.which": {"A": "p", "B": "quick"}}


def test_published_protocols_and_what_was_changed_beside_them_are_said(tmp_path):
    tracker = Tracker("published", f"sqlite:///{tmp_path / 'mlflow.db'}")
    changed = {"preset": "dinov3", "differs": "differs from dinov3: max_iters=100 instead of 38400"}
    tags = {"voc/linear": {"preset": "mmseg"}, "nyu-depth/linear": changed, "imagenet/linear": {"preset": "own"}}
    write_run(tracker, "clip", 0, {**dict.fromkeys(tags, 0.5)}, task_tags=tags)
    notes = build(Request(experiments=["published"], tracking_uri=tracker.uri)).notes
    assert "voc/linear has the settings of mmseg (what else its source does: list protocols)." in notes
    assert f"nyu-depth/linear {changed['differs']} (what else its source does: list protocols)." in notes
    assert not [note for note in notes if note.startswith("imagenet/linear")]


def test_a_run_is_reported_under_its_own_protocols():
    parent = SimpleNamespace(id="parent", tags={"backbone": "clip", "protocol.a.linear": "new"})
    mine = SimpleNamespace(id="mine", tags={"task": "a/linear", "protocol": "new"})
    older = SimpleNamespace(id="older", tags={"task": "a/linear", "protocol": "old"})
    runs = [parent, mine, older]
    kept, told = _under_protocols_of(["parent"], runs)
    assert kept == [parent, mine] and len(told) == 1
    assert _under_protocols_of(["parent"], [parent, mine]) == ([parent, mine], [])
    assert _under_protocols_of([], runs) == (runs, [])


def test_role_of_experts(report):
    (table,) = [t for t in report.tables if t.id == "experts"]
    assert [name for name, _ in table.rows] == ["clip-ft", "cliptex-seg", "cliptex"]
    assert table.marks["cliptex-seg"] == "experts: seg" and table.marks["cliptex"] == "experts: seg + depth + normal"


def test_sections_come_in_the_papers_order(report):
    assert [t.id for t in report.tables] == ["segmentation", "geometry", "classification", "zero-shot", "experts"]


def test_the_page_needs_nothing_else(page):
    assert len(page.encode()) < 8_000_000
    outside = set(
        re.findall(
            r"""(?:src|href)\s*=\s*["'](?!data:|\#)([^"']+)""", re.sub(r"<script.*?</script>", "", page, flags=re.S)
        )
    )
    assert all(url.startswith("http://127.0.0.1:5000/#/") for url in outside), (
        "only links to MLflow's UI leave the page"
    )
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
    assert all(attrs.get("role") for tag, attrs in parser.found if tag in ("span", "div") and "aria-label" in attrs)
    assert all(names[place + 1] == "figcaption" for place, tag in enumerate(names) if tag == "figure")
    assert names.count("table") == names.count("caption"), "each table says what it is"


def test_figures_are_valid_plotly_and_told_in_words(report):
    kinds = {figure.id.split("-")[0] for figure in report.figures()}
    assert {"forest", "bars", "cost", "train", "probe", "heat", "slices", "pareto"} - kinds <= {"train"}
    for figure in report.figures():
        spec = json.loads(
            json.dumps(figure.spec).replace("var:text", "#000").replace("var:muted", "#000").replace("var:line", "#000")
        )
        go.Figure(spec)  # raises on anything that Plotly does not know
        assert figure.alt and figure.title


def test_gallery_has_truth_and_every_backbone(report):
    galleries = {g.column.task: g for g in report.galleries}
    assert set(galleries) == {"voc/linear", "nyu-depth/linear"}
    for gallery in galleries.values():
        reasons = [row.why for row in gallery.rows]
        assert reasons.count("evenly spaced") == 4 and "worst for all" in reasons and "backbones differ most" in reasons
        assert len({row.name for row in gallery.rows}) == len(gallery.rows)
        for row in gallery.rows:
            there = {name for name, tile in row.predictions if tile}
            assert there == {"clip-ft", "cliptex"}
    voc = galleries["voc/linear"]
    scores = report.analysis.scores
    column = voc.column
    worst = next(row for row in voc.rows if row.why == "worst for all")
    mean = np.mean([scores[b, column].each[:12] for b in ("clip-ft", "cliptex")], axis=0)
    shown = {int(row.name[:4]) for row in voc.rows if row.why == "evenly spaced"}
    assert int(worst.name[:4]) == min((n for n in range(12) if n not in shown), key=lambda n: mean[n])


def test_the_study_in_the_experiment_and_alone(store, report):
    (view,) = report.studies
    assert view.study.varied == ["lambda_seg", "lambda_depth"]
    assert list(view.study.directions) == ["dense", "zero-shot"]
    best = view.study.best("dense")
    assert best is not None and best.params["lambda_seg"] + best.params["lambda_depth"] == pytest.approx(1.1)
    assert [t.state for t in view.study.trials if not t.objectives] == ["failed: NonFiniteLoss: at step 7"]
    front = {t.name for t in view.study.front()}
    assert "0" not in front, "trial 1 has the same zero-shot gain and a higher dense one"
    alone = build(Request(study="lambdas", tracking_uri=store.uri))
    html = render(alone)
    assert html.count(">clear<") == html.count(">not confirmed<") == 1
    assert "run again on fresh seeds it is better (+0.80 to the base setting)" in alone.verdict.headline
    assert "λ search: lambdas" in html and 'data-figure="heat-lambda_seg-lambda_depth"' in html
    with pytest.raises(TrackingError, match=r"no study 'lambda'.*did you mean 'lambdas'"):
        build(Request(study="lambda", tracking_uri=store.uri))


def test_a_sweep_keeps_its_report(store):
    (sweep,) = store.search("tags.stage = 'sweep'")
    page = attach_report(Request(study="lambdas", tracking_uri=store.uri), [sweep.info.run_id])
    assert "λ search: lambdas" in page.read_text()
    assert [f.path for f in store.client.list_artifacts(sweep.info.run_id, "report")] == ["report/index.html"]


def test_every_format_has_the_same_numbers(report, tmp_path):
    files = {path.name: path.read_text() for path in write(report, tmp_path, ("html", "md", "csv", "latex"))}
    assert set(files) == {"index.html", "report.md", "results.csv", "runs.csv", "study-lambdas.csv", "tables.tex"}
    table = {(r["backbone"], r["task"], r["metric"]): r for r in csv.DictReader(io.StringIO(files["results.csv"]))}
    for (backbone, column, metric), found in report.analysis.estimates.items():
        assert float(table[backbone, column.title, metric]["value"]) == found.value
        assert float(table[backbone, column.title, metric]["low"] or "nan") == pytest.approx(found.low, nan_ok=True)
    for table_ in report.tables:
        for name, cells in table_.rows:
            md = next(
                line
                for line in files["report.md"].splitlines()
                if line.startswith(f"| {name}")
                and all(
                    c.estimate is None or number(c.estimate.value, h.digits) in line
                    for c, h in zip(cells, table_.heads, strict=True)
                )
            )
            assert md
    assert files["tables.tex"].count("\\begin{tabular}") == files["tables.tex"].count("\\bottomrule") == 6
    for line in files["tables.tex"].splitlines():
        assert (
            "%" not in line.lstrip("%").replace("\\%", "")
            and "−" not in line
            and "_" not in line.replace("\\_", "").replace("tab:", "")
        ), line
    with pytest.raises(TrackingError, match="no format 'pdf'"):
        write(report, tmp_path, ("pdf",))


def test_failed_and_foreign_runs_change_no_number(store, report, tmp_path, monkeypatch):
    """A trial of a sweep with tasks of its own, and another experiment, leave every number as it was."""
    monkeypatch.chdir(tmp_path)  # where the other experiment keeps its artifacts
    before = {key: found.value for key, found in report.analysis.estimates.items()}
    with store.run("trial 9", tags={"study": "lambdas", "trial": "9"}, params={"lambda_seg": 3}) as trial:
        pass
    write_run(store, "cliptex", 0, same(0.9), tags={"mlflow.parentRunId": trial.id})
    write_run(Tracker("other", store.uri), "cliptex", 0, same(0.9))
    again = build(Request(experiments=["paper"], tracking_uri=store.uri))
    assert {key: found.value for key, found in again.analysis.estimates.items()} == before


def test_the_headline_compares_gains_over_the_tasks_that_all_have(store):
    """A backbone that ran on its best task alone has a higher mean gain of its own; that is no lead."""
    values = {
        ("clip-ft", "voc/linear"): 50, ("clip-ft", "ade20k/linear"): 50, ("wide", "voc/linear"): 55,
        ("wide", "ade20k/linear"): 50, ("narrow", "voc/linear"): 54,
    }  # fmt: skip
    runs = [
        stored_run(10 * place + seed, *who, seed, value + 0.1 * ((place * seed) % 3))
        for place, (who, value) in enumerate(values.items())
        for seed in range(3)
    ]
    analysis = analyse(Store(store.uri), select(runs, ["x"]))
    assert analysis.gains["narrow"].typical.value > analysis.gains["wide"].typical.value
    headline = verdict(analysis).headline
    assert headline.startswith(
        "Of 2 backbones, wide has the highest mean gain on 1 task that all have: it is better than clip-ft on 1 of 2 tasks"
    )
    assert "one seed" not in headline
    alone = verdict(analyse(Store(store.uri), select([run for run in runs if run.tags["seed"] == "0"], ["x"])))
    assert alone.tone == "open", "one seed without scores of images decides nothing"


def test_the_scores_of_every_kind_give_back_its_metrics_and_an_interval(tmp_path):
    tracker = Tracker("kinds", f"sqlite:///{tmp_path / 'mlflow.db'}")
    for seed in range(2):
        for name, quality in (("clip", 0.5), ("cliptex", 0.8)):
            write_run(tracker, name, seed, dict.fromkeys(KINDS, quality))
    report = build(Request(experiments=["kinds"], tracking_uri=tracker.uri))
    analysis = report.analysis
    assert analysis.doubted == [] and not any("No per-image scores" in note for note in report.notes)
    assert {c.kind for c in analysis.selection.columns} == set(KINDS.values()) and len(report.tables) == 5
    shown = {(c.kind, name) for c in analysis.selection.columns for name in shown_metrics(c)}
    assert {(column.kind, metric) for _, column, metric in analysis.estimates} == shown
    for (_, column, metric), found in analysis.estimates.items():
        assert found.images == 60 and (found.low < found.high or found.value == 100), (column, metric)
    for gap in analysis.differences.values():
        assert gap.images == 60 and gap.seeds == 2


def with_metric(run, metric: Metric, name: str = "mIoU"):
    return replace(run, tags={**run.tags, TAG: declare({name: metric})})


def test_a_metric_of_a_third_party_is_what_it_declares(store):
    error = Metric(-1, "px", 0.0, None, "end-point error")
    runs = [
        with_metric(stored_run(10 * place + seed, name, "flow/linear", seed, value + 30.0 * seed), error)
        for place, (name, value) in enumerate((("clip", 400.0), ("mine", 200.0)))
        for seed in range(3)
    ]
    analysis = analyse(Store(store.uri), select(runs, ["x"]))
    (column,) = analysis.selection.columns
    (head,) = overview(analysis).heads
    assert (head.words, head.unit, head.sign) == ("end-point error", "px", -1)
    assert analysis.estimates["clip", column, "mIoU"].high > 430, "it is no percentage that ends at 100"
    assert analysis.verdict("mine", column) == "win"


def test_runs_of_older_stores_say_directions_only():
    found = declared({"directions": "abs_rel:-1,rmse:-1,delta1:+1,log10:-1,elo:+1"})
    assert [(one.direction, one.unit, one.high) for one in found.values()] == [
        (-1, "", None), (-1, "m", None), (1, "%", 100.0), (-1, "", None), (1, "", None)
    ]  # fmt: skip
    assert [one.shown for one in found.values()] == [True, True, True, False, False]
    assert declared({TAG: declare(found)}) == found


def test_scores_that_do_not_give_back_a_small_number_are_not_used(tmp_path):
    """An AbsRel of 0.05 that is off by 2 %."""
    tracker = Tracker("off", f"sqlite:///{tmp_path / 'mlflow.db'}")
    write_run(tracker, "clip", 0, {"nyu-depth/linear": 0.9})
    (child,) = tracker.search("tags.task = 'nyu-depth/linear'")
    tracker.client.log_metric(child.info.run_id, "abs_rel", child.data.metrics["abs_rel"] + 0.001)
    report = build(Request(experiments=["off"], tracking_uri=tracker.uri))
    (column,) = report.analysis.selection.columns
    assert child.data.metrics["abs_rel"] < 0.25
    assert not report.analysis.estimates["clip", column, "abs_rel"].known
    assert report.analysis.estimates["clip", column, "rmse"].known
    assert any("do not give back the stored number" in note for note in report.notes)


def test_costs_are_of_the_tasks_that_all_have_and_of_one_protocol_each(store):
    values = [("clip", "voc/linear", "p"), ("clip", "voc/linear", "q"), ("clip", "ade20k/linear", "p"),
              ("mine", "voc/linear", "p"), ("mine", "voc/linear", "q")]  # fmt: skip
    runs = [
        stored_run(place, name, task, 0, 50.0 + place, protocol=protocol)
        for place, (name, task, protocol) in enumerate(values)
    ]
    analysis = analyse(Store(store.uri), select(runs, ["x"]))
    assert drawing.costs(analysis) == {"clip": {"probing": 1.0}, "mine": {"probing": 1.0}}, "each run took one second"


def test_an_unknown_interval_is_drawn_open_and_without_bars(store):
    runs = [stored_run(place, name, "voc/linear", 0, 50.0 + place) for place, name in enumerate(("clip", "mine"))]
    figure = drawing.forest(analyse(Store(store.uri), select(runs, ["x"])))
    (data,) = figure.spec["data"]
    assert data["error_x"]["array"] == [None, None]
    assert all(symbol.endswith("-open") for symbol in data["marker"]["symbol"])


def test_many_differences_are_not_decided_one_by_one_and_the_tone_follows_the_mean_gain(store):
    """One task of eight would be won at 95 %; together with the others it is not."""
    rng = np.random.default_rng(0)
    runs = []
    for task in range(8):
        for place, name in enumerate(("clip", "mine")):
            for seed in range(3):
                value = 50 + (0.3 * rng.normal() if task else place * (0.8 + 0.2 * seed))
                runs.append(stored_run(100 * task + 10 * place + seed, name, f"set-{task}/linear", seed, value))
    analysis = analyse(Store(store.uri), select(runs, ["x"]))
    first = analysis.selection.columns[0]
    gap = analysis.differences["mine", first, "mIoU"]
    assert gap.at(0.05).verdict() == "win" and gap.verdict() == "tie"
    told = verdict(analysis)
    assert told.tone == "open" and "cannot be told from clip" in told.headline
    assert any("8 differences and 1 mean gain are judged together" in note for note in caveats(analysis))
    (line,) = [
        line
        for line in power_lines(analysis)
        if line.startswith("set-0/linear: unknown noise of images and 3 seeds tell")
    ]
    assert re.search(r"undecided, and decided if differences stay as they are: mine with \d+ seeds", line)
