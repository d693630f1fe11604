"""The report from the command line, and at the end of a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmark.__main__ import main
from reports.mlflow.client import Client
from reports.mlflow.run import Tracker
from tests.probes.datasets.make import make_imagefolder
from tests.reports.synthetic import write_run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two finished runs in its MLflow store."""
    folder = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tracker = Tracker("paper", f"sqlite:///{folder}/mlflow.db")
        for name, quality in (("clip-ft", 0.5), ("cliptex", 0.62)):
            write_run(tracker, name, 0, {"voc/linear": quality, "imagenet/linear": quality})
    return folder


@pytest.fixture
def here(place, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_report_writes_a_page_alone_sufficient_and_the_tables(here, capsys):
    assert (
        main(
            [
                "report",
                "--out",
                str(here / "out"),
                "--format",
                "html,md,csv,latex",
                "--baseline",
                "clip-ft",
            ]
        )
        == 0
    )
    assert {p.name for p in (here / "out").iterdir()} == {
        "index.html",
        "report.md",
        "results.csv",
        "runs.csv",
        "classes.csv",
        "tables.tex",
    }
    shown = capsys.readouterr().out
    assert (
        "experiment paper" in shown
        and "cliptex is better than clip-ft on 2 of 2 tasks" in " ".join(shown.split())
    )
    assert "index.html" in shown
    assert (
        main(
            [
                "report",
                "--out",
                str(here / "one"),
                "--backbone",
                "cliptex",
                "--baseline",
                "cliptex",
                "--task",
                "voc/linear",
            ]
        )
        == 0
    )
    assert "nothing to compare" in capsys.readouterr().out
    assert (here / "out" / "index.html").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--experiment", "papre"],
            "no experiment 'papre' in the MLflow store; did you mean 'paper'?",
        ),
        (
            ["--baseline", "mae"],
            "baseline 'mae' has no finished task there; these have: clip-ft, cliptex",
        ),
        (["--backbone", "clip,mae"], "backbone 'clip' has no finished task there"),
        (
            ["--task", "coco/ssd"],
            "no run of task 'coco/ssd' in experiment paper; there are: imagenet/linear, voc/linear",
        ),
        (["--study", "x"], "no study 'x' in the MLflow store; there are: none"),
        (["--format", "pdf"], "--format pdf: there are html, md, csv, latex"),
        (["--format", ","], "',' names nothing"),
        (
            ["--study", "x", "--baseline", "clip"],
            "--backbone, --task and --baseline do not go with it",
        ),
        (["--tracking-uri", "sqlite:///nothing.db"], "there is no MLflow store at sqlite:///"),
        (["--ui-url", "localhost:5000"], "--ui-url 'localhost:5000' is no address"),
        (["--out", "mlflow.db"], "--out: mlflow.db is a file; name a folder"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(here, capsys, words, message):
    assert (
        main(
            ["report", *words]
            if "--out" in words
            else ["report", "--out", str(here / "out"), *words]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (here / "out").exists(), "nothing half-written"


@pytest.mark.skipif(os.getuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(here, capsys):
    (here / "shut").mkdir(mode=0o500)
    assert main(["report", "--out", str(here / "shut" / "out")]) == 2
    assert "cannot write the report" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_ends_with_its_report(tmp_path, monkeypatch, capsys):
    """The page is an artifact of the parent run and its path is printed; a report that fails does
    not fail the run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    make_imagefolder(tmp_path / "imagefolder", n_train=8, n_val=4)
    command = [
        "run",
        "--suite",
        "own",
        "--task",
        "imagefolder/linear",
        "--backbone",
        "random",
        "--data-root",
        ".",
        "--device",
        "cpu",
    ]
    command += ["--set", "encode_batch_size=4", "--set", "epochs=2", "--num-workers", "0"]
    assert main(command) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("report: ")]
    page = Path(line.removeprefix("report: "))
    assert page.name == "index.html" and "imagefolder/linear" in page.read_text()
    client = Client(f"sqlite:///{tmp_path}/mlflow.db")
    (parent,) = [
        run
        for run in client.search_runs([client.get_experiment_by_name("own").experiment_id])
        if "run.key" in run.data.tags
    ]
    assert [f.path for f in client.list_artifacts(parent.info.run_id, "report")] == [
        "report/index.html"
    ]
    assert str(page).startswith(parent.info.artifact_uri)
    (child,) = [
        run
        for run in client.search_runs([parent.info.experiment_id])
        if run.data.tags.get("task") == "imagefolder/linear"
    ]
    assert (
        '"uri": "' + str(tmp_path / "imagefolder") in child.inputs.dataset_inputs[0].dataset.source
    )

    (Path(child.info.artifact_uri) / "per_image.npz").write_bytes(b"not a zip")
    assert main(command) == 0, "the numbers are safe"
    assert "no report was made: the artifact per_image.npz of run" in capsys.readouterr().out
