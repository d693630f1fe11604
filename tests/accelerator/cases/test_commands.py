"""What users start: units of work choose the accelerator, and report it."""

from __future__ import annotations

import json

import mlflow
import pytest
import torch

from benchmark import evaluate
from benchmark.executor import choose_device
from benchmark.parser import main
from cliptex_common.device import device_name
from tests.accelerator.cases.devices import is_pretended
from tests.benchmark.test_api import IMAGES
from tests.kit.networks import Patches
from tests.probes.datasets.make import make_imagefolder


def test_doctor_reports_the_accelerator(tmp_path, device, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    main(["doctor", "--json"])
    findings = {each["name"]: each for each in json.loads(capsys.readouterr().out)["findings"]}
    finding = findings[f"{device.type}:0"]
    assert device_name(torch.device(device.type, 0)) in finding["value"]
    assert "GB free" in finding["value"] or not is_pretended(device)


def test_features_are_shown_of_the_device(tmp_path, device):
    images = make_imagefolder(tmp_path / "imagefolder", n_train=2, n_val=2)
    options = ["--images", str(images), "--out", str(tmp_path)]
    assert main(["show", "--backbone", "random/timm/test_vit", *options]) == 0
    assert "data-map=" in (tmp_path / "index.html").read_text()


@pytest.mark.slow
def test_a_run_on_the_device_of_the_machine_which_emulates_bf16(tmp_path, device, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("benchmark.cell.prefers_bf16", lambda device: False)
    make_imagefolder(tmp_path / "imagefolder", n_train=8, n_val=4)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    results = evaluate(
        Patches(),
        ["imagefolder/linear", "imagefolder/knn"],
        suite="own",
        images=IMAGES,
        tracking_uri=store,
        data={"imagefolder": tmp_path / "imagefolder"},
        settings={"epochs": 1, "size": 32, "batch_size": 8, "precision": "bf16"},
        device="auto",
        jobs=1,
        num_workers=0,
    )
    assert set(results.frame.status) == {"done"}
    assert choose_device("auto").type == device.type
    mlflow.set_tracking_uri(store)
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    kinds = {run.data.tags.get("cliptex.device.kind") for run in runs}
    assert device_name(device) in kinds
    notes = [run.data.tags.get("mlflow.note.content", "") for run in runs]
    assert any("emulates bf16" in note for note in notes)
    parents = [run for run in runs if "cost/memory_mb" in run.data.metrics]
    assert parents and parents[0].data.metrics["cost/images_per_second"] > 0
