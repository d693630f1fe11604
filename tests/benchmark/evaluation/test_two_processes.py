"""Processes of this machine, with loading processes of their own, give what this process gives."""

from __future__ import annotations

import json

import pytest

from benchmark.__main__ import main
from tests.probes.datasets.make import make_camvid

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
KEPT = ["max_iters=3", "batch_size=2", "size=32", "fixed_crops=2", "cache=fp16"]


@pytest.mark.slow
def test_features_are_kept_in_processes_too(tmp_path, monkeypatch):
    make_camvid(tmp_path / "camvid")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("benchmark.execution.local.cores", lambda: 2)  # as on a machine of two, whatever this one has
    found = []
    for jobs in ("1", "2"):
        monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / f"home{jobs}"))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/{jobs}.db")
        words = [*RUN, *(word for each in KEPT for word in ("--set", each))]
        assert main([*words, "--jobs", jobs, "--num-workers", "2", "--json", f"{jobs}.json"]) == 0
        found.append(json.loads((tmp_path / f"{jobs}.json").read_text())["backbones"])
    assert found[0] == found[1] and len(found[0]) == 2
