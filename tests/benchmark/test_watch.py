"""``watch``: each checkpoint of a folder is scored once, in order, with the numbers of ``run``;
curves are by training step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import backbones
from backbones import UserError
from benchmark import watch
from benchmark.__main__ import main
from benchmark.watch import checkpoints
from reports.mlflow.client import connect
from tests.probes.datasets.make import make_imagefolder

TASK = ["--suite", "own", "--task", "imagefolder/linear", "--set", "epochs=2", "--set", "size=32"]
RUN = [
    *TASK,
    "--backbone",
    "timm/test_vit",
    "--data-root",
    ".",
    "--device",
    "cpu",
    "--num-workers",
    "0",
    "--jobs",
    "1",
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    make_imagefolder(tmp_path / "imagefolder", n_train=8, n_val=4)
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))
    return tmp_path


def checkpoint(step: int, seed: int | None = None) -> Path:
    backbone = backbones.create("random/timm/test_vit", seed=step if seed is None else seed)
    path = Path("run") / f"net-8_step{step}.safetensors"
    save_file({name: tensor.clone() for name, tensor in backbone.model_state().items()}, path)
    return path


def curve(here: Path) -> tuple[dict[int, float], int]:
    """Step → top1 as the watch wrote it, and how many parents there are."""
    client = connect(f"sqlite:///{here}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("own").experiment_id])
    (own,) = [run for run in runs if run.data.tags.get("stage") == "watch"]
    assert own.info.status == "FINISHED"
    history = client.get_metric_history(own.info.run_id, "imagefolder/linear/top1")
    return {each.step: each.value for each in history}, sum(
        "run.key" in run.data.tags for run in runs
    )


def test_checkpoints_are_scored_once_and_in_order(here, monkeypatch):
    checkpoint(20), checkpoint(3)
    Path("run/notes.txt").write_text("not weights, 7")
    assert main(["watch", *RUN, "--dir", "run", "--once"]) == 0
    first, parents = curve(here)
    assert list(first) == [3, 20] and parents == 2

    # a training goes on: one look sees half a file, the next a whole one that may still grow, the
    # third scores it
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 1:
            content = checkpoint(100).read_bytes()
            Path("run/net-8_step100.safetensors").write_bytes(content[:1000])
        elif len(looks) == 3:
            checkpoint(100)
        assert len(looks) < 8

    monkeypatch.setattr(watch, "time", SimpleNamespace(sleep=sleep))
    assert main(["watch", *RUN, "--dir", "run", "--until", "100", "--every", "5"]) == 0
    after, parents = curve(here)
    assert looks == [5.0] * 4 and parents == 3
    assert {**first, 100: after[100]} == after  # what was scored was not scored again

    assert (
        main(
            [
                "run",
                *RUN,
                "--only",
                "--weights",
                "run/net-8_step100.safetensors",
                "--json",
                "out.json",
            ]
        )
        == 0
    )
    metrics = json.loads(Path("out.json").read_text())["backbones"]["timm/test_vit"][
        "imagefolder/linear"
    ]
    assert after[100] == metrics["top1"] and curve(here)[1] == 3  # the very cell


def test_what_cannot_be_watched_is_said(here, capsys):
    assert main(["watch", *RUN, "--dir", "nowhere", "--once"]) == 2
    assert "no folder nowhere" in capsys.readouterr().err
    assert main(["watch", *RUN, "--backbone", "clip,cliptex", "--dir", "run", "--once"]) == 2
    assert "applies to one backbone" in capsys.readouterr().err
    path = checkpoint(4)
    torch.save({"weight": torch.ones(1)}, Path("run/other-4.pt"))
    with pytest.raises(UserError, match="are both of step 4; move one away"):
        checkpoints(Path("run"))
    shutil.move(path, "run/other-4.pt")
    Path("run/other-4.pt").write_bytes(b"cut")
    assert main(["watch", *RUN, "--dir", "run", "--once"]) == 2
    assert "run/other-4.pt would have to be unpickled" in capsys.readouterr().err
