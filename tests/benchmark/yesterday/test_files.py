"""What an earlier version wrote is read: a store with its artifacts, shared results, a head,
weights, labels, a study, a feature cache.

``files.zip`` was written by ce3e9535, on ``scenes.write``'s digits and on pairs that are in it: two
seeds of ``random`` and weights of ``train --recipe clip`` on ``imagefolder/linear``, ``random`` on
``camvid/linear``, and a sweep of two trials.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmark import evaluate
from probes.predictor import load_predictor
from tests.benchmark.pinned import scenes
from tests.benchmark.run_command import read_json, run_command

pytestmark = pytest.mark.integration

MEANS = {"random": 64.5, "cliptex": 46.0}  # top-1 of imagefolder/linear


@pytest.fixture
def folder(workdir, monkeypatch) -> Path:
    """The files, in another place than where they were written."""
    with zipfile.ZipFile(Path(__file__).with_name("files.zip")) as files:
        files.extractall(workdir)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workdir}/mlflow.db")
    return workdir


def test_a_store_is_repaired_and_reported(folder, capsys):
    assert run_command("report --experiment own") == 0
    assert "doctor --repair" in (folder / "report/index.html").read_text()
    assert run_command("doctor --repair") == 0
    assert run_command("report --experiment own --format csv,html --out report") == 0
    rows = pd.read_csv(folder / "report/results.csv").query("metric == 'top1'")
    assert dict(zip(rows.backbone, rows.value, strict=True)) == MEANS
    assert rows.low.notna().all(), "scores of images are read"
    capsys.readouterr()
    assert run_command("results list --experiment own") == 0
    assert "random" in capsys.readouterr().out


def test_shared_results_agree_with_their_scores(folder, capsys):
    assert run_command("results check results.zip") == 0
    assert "4 results of 2 backbones agree with the per-image scores" in capsys.readouterr().out


def test_a_head_and_weights_give_the_numbers_that_they_gave(folder):
    scenes.write(folder)
    results = evaluate(
        "cliptex",
        ["imagefolder/linear"],
        suite="own",
        weights="weights.safetensors",
        data={"imagefolder": "digits"},
        settings={"epochs": 2, "size": 32, "precision": "fp32"},
        device="cpu",
        num_workers=0,
        tracking_uri=f"sqlite:///{folder}/new.db",
    )
    (top1,) = results.frame.query("metric == 'top1'").value
    assert top1 == pytest.approx(MEANS["cliptex"], abs=2.0)


def test_a_head_predicts(folder):
    (head,) = (
        path
        for path in folder.glob("mlruns/2/*/artifacts/head/head.safetensors")
        if b"camvid" in path.read_bytes()
    )
    scenes.save(np.full((40, 48, 3), 90, np.uint8), folder / "image.png")
    classes = load_predictor(head)(folder / "image.png")
    assert classes.shape == (40, 48) and 0 <= classes.min() <= classes.max() < 11


def test_labels_are_checked_and_trained_on(folder, capsys):
    assert run_command("labels check labels") == 0
    words = (
        "train --init random --recipe cliptex --labels labels --pairs pairs/00000.tar --device cpu"
    )
    words += " --set model=tiny --set batch_size=4 --set epochs=1 --set experts=depth --out w.st"
    assert run_command(words) == 0


def test_a_study_is_continued(folder, capsys):
    assert run_command("sweep best") == 0
    assert "0.001" in capsys.readouterr().out
    assert read_json("own-grid-best.json")["lr"] == 0.001


def test_a_cache_is_listed_and_emptied(folder, capsys):
    assert run_command("cache ls") == 0
    assert "cliptex on imagefolder (val)" in capsys.readouterr().out
