"""Processes of this machine, with loading processes of their own, give what this process gives."""

from __future__ import annotations

import pytest

from tests.benchmark.commands import read_json, run_command, runs_of
from tests.forks import Fork, command
from tests.probes.datasets.make import make_camvid, make_imagefolder

RUN = "run --data-root . --device cpu"


@pytest.mark.slow
def test_features_are_cached_in_processes_too(workdir, monkeypatch):
    make_camvid(workdir / "camvid")
    monkeypatch.setattr("benchmark.execution.local.cores", lambda: 2)
    words = f"{RUN} --task camvid/linear --backbone random,efficientnet-lite0 --partial"
    words += " --set max_iters=3 --set batch_size=2 --set size=32 --set fixed_crops=2"
    words += " --set cache=fp16 --num-workers 2"
    results = []
    for jobs in ("1", "2"):
        monkeypatch.setenv("CLIPTEX_HOME", str(workdir / f"home{jobs}"))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workdir}/{jobs}.db")
        assert run_command(f"{words} --jobs {jobs} --json {jobs}.json") == 0
        results.append(read_json(f"{jobs}.json")["backbones"])
    assert results[0] == results[1] and len(results[0]) == 2


@pytest.mark.slow
def test_two_identical_runs_at_once_run_each_cell_once(workdir):
    make_imagefolder(workdir / "imagefolder", n_train=2, n_val=2)
    words = f"{RUN} --task imagefolder/linear --backbone random --set epochs=1 --jobs 1 --json"
    forks = [Fork(command, *words.split(), f"{name}.json", output=workdir / name) for name in "ab"]
    assert [fork.end(300) for fork in forks] == [0, 0], [fork.text() for fork in forks]
    assert read_json("a.json")["backbones"] == read_json("b.json")["backbones"]
    assert len([run for run in runs_of("own") if "task" in run.data.tags]) == 1
