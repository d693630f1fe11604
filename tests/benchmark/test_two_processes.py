"""Processes of this machine, with loading processes of their own, give what this process gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from benchmark.__main__ import main
from tests.probes.datasets.make import make_camvid, make_imagefolder

RUN = [
    "run",
    "--task",
    "camvid/linear",
    "--backbone",
    "random,efficientnet-lite0",
    "--data-root",
    ".",
    "--device",
    "cpu",
    "--partial",
]
CACHED = ["max_iters=3", "batch_size=2", "size=32", "fixed_crops=2", "cache=fp16"]


@pytest.mark.slow
def test_features_are_kept_in_processes_too(tmp_path, monkeypatch):
    make_camvid(tmp_path / "camvid")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "benchmark.execution.local.cores", lambda: 2
    )  # as on a machine of two, whatever this one has
    results = []
    for jobs in ("1", "2"):
        monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / f"home{jobs}"))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/{jobs}.db")
        words = [*RUN, *(word for each in CACHED for word in ("--set", each))]
        assert main([*words, "--jobs", jobs, "--num-workers", "2", "--json", f"{jobs}.json"]) == 0
        results.append(json.loads((tmp_path / f"{jobs}.json").read_text())["backbones"])
    assert results[0] == results[1] and len(results[0]) == 2


@pytest.mark.slow
def test_of_two_identical_runs_at_once_one_waits_and_finds_the_cells(tmp_path):
    make_imagefolder(tmp_path / "imagefolder", n_train=2, n_val=2)
    words = [
        "run",
        "--task",
        "imagefolder/linear",
        "--backbone",
        "random",
        "--data-root",
        ".",
        "--device",
        "cpu",
    ]
    words += ["--set", "epochs=1", "--set", "size=32", "--jobs", "1"]
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    variables = {**os.environ, "CLIPTEX_HOME": str(tmp_path / "home"), "MLFLOW_TRACKING_URI": uri}
    variables["PYTHONPATH"] = str(Path(__file__).parents[2])
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmark", *words, "--json", f"{name}.json"],
            cwd=tmp_path,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in "ab"
    ]
    outputs = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text(), (
        "the same numbers of the same runs"
    )
    results = MlflowClient(uri).search_runs(["1"])
    assert sorted(run.info.run_name for run in results) == [
        "imagefolder/linear",
        "random · own · seed 0",
    ]
