"""Processes of this machine, with loading processes of their own, give what this process gives."""

from __future__ import annotations

import pytest

from tests.benchmark.run_command import read_json, run_command
from tests.probes.datasets.make import make_camvid

pytestmark = pytest.mark.integration


@pytest.mark.slow
def test_features_are_cached_in_processes_too(workdir, monkeypatch):
    make_camvid(workdir / "camvid")
    monkeypatch.setattr("benchmark.local.cores", lambda: 2)
    words = "run --data-root . --device cpu --task camvid/linear --partial"
    words += " --backbone random,efficientnet-lite0"
    words += " --set max_iters=3 --set batch_size=2 --set size=32 --set fixed_crops=2"
    words += " --set cache=fp16 --num-workers 2"
    results = []
    for jobs in ("1", "2"):
        monkeypatch.setenv("CLIPTEX_HOME", str(workdir / f"home{jobs}"))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workdir}/{jobs}.db")
        assert run_command(f"{words} --jobs {jobs} --json {jobs}.json") == 0
        results.append(read_json(f"{jobs}.json")["backbones"])
    assert results[0] == results[1] and len(results[0]) == 2
