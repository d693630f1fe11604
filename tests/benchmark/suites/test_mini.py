"""The whole method, small: world, CLIP, experts, labels, CLIP-FT and CLIPTeX, from one command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmark.__main__ import main
from reports.mlflow.client import Client

TASKS = ["--task", "mini-class/zero-shot,mini-retrieval/retrieval"]


@pytest.mark.slow
def test_smoke_makes_everything_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv(
        "CLIPTEX_HOME", str(tmp_path / "home")
    )  # where no other test has made anything yet
    command = ["run", "--suite", "smoke", *TASKS, "--device", "cpu", "--json"]
    assert main([*command, "first.json"]) == 0
    first = json.loads(Path("first.json").read_text())
    assert set(first["backbones"]) == {"clip", "clip-ft", "cliptex"}
    client = Client(first["mlflow"]["tracking_uri"])
    runs = client.search_runs([client.get_experiment_by_name("smoke").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    stages = [run.data.tags["stage"] for run in runs if "stage" in run.data.tags]
    assert sorted(stages) == ["experts"] * 3 + ["label"] + ["train"] * 3
    trained = {
        run.data.tags["recipe"]: run for run in runs if run.data.tags.get("stage") == "train"
    }
    for name, run_id in first["mlflow"]["run_ids"].items():
        parent = client.get_run(run_id)
        assert parent.data.tags["train.run"] == trained[name].info.run_id
        assert parent.data.tags["weights.sha256"] == trained[name].data.tags["weights.sha256"]
        assert parent.data.metrics["cost/train_flops"] > 0
    sums = {run.data.tags["weights.sha256"] for run in trained.values()}
    assert len(sums) == 3
    assert {"train/loss_seg", "train/loss_depth", "train/loss_normal"} <= set(
        trained["cliptex"].data.metrics
    )
    assert "train/loss_seg" not in trained["clip-ft"].data.metrics

    assert main([*command, "second.json"]) == 0
    assert json.loads(Path("second.json").read_text()) == first
    assert len(client.search_runs([client.get_experiment_by_name("smoke").experiment_id])) == len(
        runs
    )

    done = "3 backbones × 2 tasks × 1 seeds: 6 done, 0 to do\nnothing is left to do\n"
    capsys.readouterr()
    assert main([*command[:-1], "--dry-run"]) == 0
    assert capsys.readouterr().out == done, "the preview knows every name that the run gave"
    (weights,) = (tmp_path / "home/weights").glob("*-cliptex-s0-*.safetensors")
    weights.rename(tmp_path / "away")
    assert main([*command[:-1], "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert re.search(
        r"to do · train cliptex · seed 0: 1 unit, local, 1 core, about \d+ s\n", shown
    ), shown
    assert "4 done, 2 to do" in shown and "not counted" not in shown
    assert main([*command[:-1], "--dump-config"]) == 2
    assert "the weights of 'cliptex' are not made yet" in capsys.readouterr().err
    assert not weights.exists()
