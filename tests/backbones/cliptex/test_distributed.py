"""Several gloo processes give the losses, gradients and weights of one process."""

from __future__ import annotations

import json
import signal
import socket
from dataclasses import replace
from datetime import timedelta

import pytest
import torch

from backbones.checkpoint import load_checkpoint
from backbones.cliptex.model import TINY_CLIP
from backbones.cliptex.trainer import end_with_launcher, processes
from tests.backbones.cliptex.ranks import RECIPE, check_equals_one, launch, one_rank, one_step
from tests.backbones.cliptex.test_train import run
from tests.forks import Fork, ranks

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("count", "changes", "bias"),
    [
        pytest.param(2, {"accumulate": 2}, None, marks=pytest.mark.slow),
        (2, {"accumulate": 2}, -3.0),
        pytest.param(8, {"val_pairs": 12}, None, marks=pytest.mark.slow),
    ],
    ids=["gradient cache", "siglip", "eight"],
)
def test_processes_equal_one(tmp_path, pairs, count, changes, bias):
    """In the first step, and after the training."""
    folder, output = str(pairs.name).removesuffix("/*.tar"), tmp_path / "output.txt"
    (tmp_path / "model.json").write_text(json.dumps({**TINY_CLIP, "init_logit_bias": bias}))
    recipe = replace(RECIPE, model=str(tmp_path / "model.json"), **changes)
    ranks(one_rank, tmp_path, recipe, folder, output=output, count=count)
    expected = one_step(folder, replace(recipe, accumulate=1))
    assert ("clip.logit_bias" in expected[1]) == (bias is not None)
    single = run(recipe, pairs, tmp_path / "one.safetensors")
    check_equals_one(tmp_path, count, expected, single.path, share=0.01)
    metrics = load_checkpoint(tmp_path / "many.safetensors").extra["metrics"]
    assert {name for name in metrics if name.startswith("val/")} == {
        name for name in single.metrics if name.startswith("val/")
    }
    assert metrics["train/loss"] == pytest.approx(single.metrics["train/loss"], rel=1e-2)


def test_a_process_ends_with_the_launcher_that_was_killed(tmp_path):
    launcher = Fork(
        launch, tmp_path, output=tmp_path / "output.txt", environment={"TORCHELASTIC_RUN_ID": "a"}
    )
    launcher.wait_for(tmp_path, "watching")
    launcher.signal(signal.SIGKILL)
    assert launcher.end(10) == -signal.SIGKILL  # waits for its child, too


def test_a_process_whose_launcher_is_gone_already_ends(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        environment = {
            "TORCHELASTIC_RUN_ID": "a",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(unused.getsockname()[1]),
        }
        process = Fork(end_with_launcher, output=tmp_path / "output.txt", environment=environment)
        assert process.end(10) == 1


@pytest.mark.unit
@pytest.mark.parametrize(("count", "index"), [(1, 0), (4, 3)])
def test_a_process_that_sees_one_accelerator_computes_on_it(count, index, monkeypatch):
    devices = []
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr("backbones.cliptex.trainer.device_count", lambda: count)
    monkeypatch.setattr("backbones.cliptex.trainer.set_device", devices.append)
    with processes("cuda") as process:
        assert devices == [process.device] == [torch.device("cuda", index)]


@pytest.mark.unit
def test_processes_wait_while_the_first_one_exports(monkeypatch):
    join, options = "torch.distributed.init_process_group", {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(join, lambda backend, **given: options.update(given))
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    with processes("cpu"):
        assert options["timeout"] > timedelta(hours=1)
