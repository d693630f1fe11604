"""A store with a few backbones and a sweep, its report and its page."""

from __future__ import annotations

from contextlib import chdir

import pytest

from reports.comparison import Analysis, analyse
from reports.pages import render_page
from reports.records import PLOTS
from reports.report import ReportRequest, build_report
from reports.selection import select
from reports.store import Store
from reports.tracking import Tracker
from tests.reports.synthetic import image_scores_of, write_run

TASKS = ("voc/linear", "nyu-depth/linear", "imagenet/linear", "flickr30k/retrieval")


def same(quality: float) -> dict[str, float]:
    return dict.fromkeys(TASKS, quality)


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """clip-ft and cliptex with three seeds, clip with a failed task, cliptex-seg with one seed.

    voc/linear has two protocols.
    """
    folder = tmp_path_factory.mktemp("report")
    with chdir(folder):
        tracker = Tracker("paper", f"sqlite:///{folder}/mlflow.db")
        for seed in range(3):
            pictures = seed == 0
            write_run(tracker, "clip-ft", seed, same(0.5), pictures=pictures)
            qualities = {**same(0.62), "imagenet/linear": 0.5}
            experts = {"experts": "seg,depth,normal"}
            write_run(tracker, "cliptex", seed, qualities, pictures=pictures, tags=experts)
        write_run(tracker, "clip", 0, same(0.45), failing={"nyu-depth/linear": "loss is nan <b>&"})
        write_run(tracker, "cliptex-seg", 0, {"voc/linear": 0.58}, tags={"experts": "seg"})
        write_run(tracker, "clip-ft", 0, {"voc/linear": 0.3}, protocol="quick")
        write_sweep(tracker)
    return tracker


def write_sweep(tracker: Tracker) -> None:
    """Three trials and one that failed; the best and the base with three fresh seeds."""
    with tracker.run("sweep lambdas", tags={"study": "lambdas", "stage": "sweep"}) as sweep:
        data = [{"type": "contour", "x": [0.1, 1], "y": [0.1, 1], "z": [[0.2, 1.1], [1.1, None]]}]
        plot = {"title": "Contour Plot", "spec": {"data": data, "layout": {}}}
        sweep.log_json([plot], PLOTS)
    trials = {"λdepth 0.1": 0.2, "λseg 0.1": 1.1, "base": 0.3, "λseg 10": None}
    for number, (setting, gain) in enumerate(trials.items()):
        tags = {"study": "lambdas", "trial": str(number), "setting": setting}
        with tracker.run(
            f"trial {number}", tags=tags, params={"lambda_seg": 0.1}, parent=sweep
        ) as run:
            if gain is None:
                run.fail("NonFiniteLoss: at step 7")
            else:
                run.log_metrics({"objective": gain, "zero-shot": -gain, "gain/voc/linear": gain})
    for seed in range(1, 4):
        for setting, gain in (("λseg 0.1", 1.0), ("base", 0.2)):
            tags = {"study": "lambdas", "again": setting, "seed": str(seed)}
            with tracker.run(
                f"again {setting}", tags=tags, params={"lambda_seg": 0.1}, parent=sweep
            ) as run:
                run.log_metrics({"objective": gain + 0.01 * seed * gain, "zero-shot": -gain})


@pytest.fixture(scope="session")
def report(store):
    return build_report(
        ReportRequest(experiments=["paper"], tracking_uri=store.uri, ui_url="http://127.0.0.1:5000")
    )


@pytest.fixture(scope="session")
def page(report):
    return render_page(report)


@pytest.fixture
def analysis_of(store, monkeypatch):
    """Runs without artifacts, or with scores of so many images → their analysis."""

    def analyse_runs(runs, images: int = 0) -> Analysis:
        if images:
            read = lambda _, cell: image_scores_of(cell, images)
            monkeypatch.setattr("reports.comparison.load_scores", read)
        return analyse(Store(store.uri), select(runs, ["x"]))

    return analyse_runs


@pytest.fixture
def tracker(store, tmp_path, monkeypatch) -> Tracker:
    """An experiment of the test's own."""
    monkeypatch.chdir(tmp_path)
    return Tracker(tmp_path.name, store.uri)


@pytest.fixture
def report_of(store):
    """The report of an experiment."""
    return lambda tracker: build_report(
        ReportRequest([tracker.experiment], tracking_uri=tracker.uri)
    )
