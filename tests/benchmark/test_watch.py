"""``watch``: each checkpoint of a folder is scored once, in order, with the numbers of ``run``;
curves are by training step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import backbones
from backbones.weights import checkpoints
from benchmark import in_loop
from cliptex_common.errors import UserError
from tests.benchmark.run_command import read_json, run_command, runs_of, store
from tests.probes.datasets.make import make_imagefolder

pytestmark = pytest.mark.integration

RUN = "--task imagefolder/linear --set epochs=2 --set size=32"
RUN += " --backbone timm/test_vit --data-root . --device cpu --num-workers 0 --jobs 1"


@pytest.fixture(autouse=True)
def imagefolder(workdir):
    make_imagefolder(workdir / "imagefolder", n_train=8, n_val=4)
    (workdir / "run").mkdir()


def checkpoint(step: int) -> Path:
    backbone = backbones.create("random/timm/test_vit", seed=step)
    path = Path("run") / f"net-8_step{step}.safetensors"
    save_file({name: tensor.clone() for name, tensor in backbone.model_state().items()}, path)
    return path


def curve() -> tuple[dict[int, float], int]:
    """Step → top1 as the watch wrote it, and the number of parents."""
    runs = runs_of("own")
    (own,) = [run for run in runs if run.data.tags.get("stage") == "watch"]
    assert own.info.status == "FINISHED"
    history = store().get_metric_history(own.info.run_id, "imagefolder/linear/top1")
    parents = [run.data.tags for run in runs if "run.key" in run.data.tags]
    assert {tags["step"] for tags in parents} == {str(each.step) for each in history}
    assert {tags["set"] for tags in parents} == {"epochs=2 size=32"}
    return {each.step: each.value for each in history}, len(parents)


def test_checkpoints_are_scored_once_and_in_order(monkeypatch, capsys):
    checkpoint(20)
    checkpoint(3)
    Path("run/notes.txt").write_text("not weights, 7")
    assert run_command(f"watch {RUN} --dir run --once") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert any(f"MLflow run {run.info.run_id}, watch" in last for run in runs_of("own"))
    first, parents = curve()
    assert list(first) == [3, 20] and parents == 2

    # two looks see half a file, the third scores it
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 1:
            content = checkpoint(100).read_bytes()
            Path("run/net-8_step100.safetensors").write_bytes(content[:1000])
        elif len(looks) == 2:
            checkpoint(100)
        assert len(looks) < 8

    monkeypatch.setattr(in_loop, "time", SimpleNamespace(sleep=sleep))
    assert run_command(f"watch {RUN} --dir run --until 100 --every 5") == 0
    after, parents = curve()
    assert looks == [5.0] * 2 and parents == 3
    assert {**first, 100: after[100]} == after, "nothing is scored again"

    weights, label = "run/net-8_step100.safetensors", "timm/test_vit step 100"
    words = ("--weights", weights, "--name", label, "--json", "out.json")
    assert run_command(f"run {RUN} --only", *words) == 0
    results = read_json("out.json")["backbones"][label]
    assert after[100] == results["imagefolder/linear"]["top1"]
    assert curve()[1] == 3, "the same cell"


def test_wrong_folders_and_checkpoints(refused):
    refused(f"watch {RUN} --dir nowhere --once", "no folder nowhere")
    refused(f"watch {RUN} --backbone clip,cliptex --dir run --once", "watch takes one backbone")
    refused(f"watch {RUN} --dir run --once", "--dir run has no checkpoint: a file (.safetensors,")
    path = checkpoint(4)
    torch.save({"weight": torch.ones(1)}, Path("run/other-4.pt"))
    with pytest.raises(UserError, match="are both of step 4; move one away"):
        checkpoints(Path("run"))
    late = Path("run/other-4.pt").rename(f"run/{10**22}.pt")
    with pytest.raises(UserError, match="MLflow has no step"):
        checkpoints(Path("run"))
    late.unlink()
    path.rename("run/other-4.pt")
    Path("run/other-4.pt").write_bytes(b"cut")
    refused(f"watch {RUN} --dir run --once", "run/other-4.pt would have to be unpickled")
