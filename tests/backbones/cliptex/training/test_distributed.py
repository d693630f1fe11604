"""Gloo processes, really started, do what one process does with the joint batch."""

from __future__ import annotations

import json
import signal
import socket
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from backbones.checkpoint import load_checkpoint
from backbones.cliptex.data.pairs import open_pairs
from backbones.cliptex.training.distributed import end_with_launcher
from backbones.cliptex.training.models import TINY_CLIP
from backbones.cliptex.training.train import TrainContext, train
from tests.backbones.cliptex import toy
from tests.backbones.cliptex.training.ranks import RECIPE, launch, one_rank, one_step
from tests.forks import Fork, ranks


@pytest.fixture(scope="module")
def pairs_dir(tmp_path_factory):
    return toy.write_pairs(tmp_path_factory.mktemp("pairs"), 48, 2)


@pytest.mark.parametrize(
    ("count", "changes", "bias"),
    [(2, {"accumulate": 2}, None), (2, {"accumulate": 2}, -3.0), (8, {"val_pairs": 12}, None)],
    ids=["gradient cache", "siglip", "eight"],
)
def test_processes_equal_one(tmp_path, pairs_dir, count, changes, bias):
    """Losses and gradients of the first step, and weights and validation after a whole training."""
    (tmp_path / "model.json").write_text(json.dumps({**TINY_CLIP, "init_logit_bias": bias}))
    recipe = replace(RECIPE, model=str(tmp_path / "model.json"), **changes)
    ranks(one_rank, tmp_path, recipe, str(pairs_dir), output=tmp_path / "said", count=count)
    whole_losses, whole_gradients = one_step(str(pairs_dir), replace(recipe, accumulate=1))
    assert ("clip.logit_bias" in whole_gradients) == (bias is not None)
    shares = [torch.load(tmp_path / f"rank{i}.pt", weights_only=True) for i in range(count)]
    for name, loss in whole_losses.items():
        assert torch.allclose(sum(losses[name] for losses, _ in shares) / count, loss, rtol=1e-4), (
            name
        )
    for name, gradient in whole_gradients.items():
        for _, gradients in shares:
            assert torch.allclose(gradients[name], gradient, rtol=1e-3, atol=2e-5), name

    assert len({(tmp_path / f"sha{i}").read_text() for i in range(count)}) == 1
    single = train(
        recipe,
        init="random",
        pairs=open_pairs(pairs_dir),
        labels=toy.ToyLabels(),
        out=tmp_path / "one.safetensors",
        context=TrainContext(workers=0),
    )
    many, alone = load_file(tmp_path / "many.safetensors"), load_file(single.path)
    # Adam divides by the gradient's own size, so rounding of near-zero gradients can turn a step
    # around
    far = sum(((many[name] - alone[name]).abs() > 1e-4).sum().item() for name in alone)
    assert far / sum(value.numel() for value in alone.values()) < 1e-2
    metrics = load_checkpoint(tmp_path / "many.safetensors").extra["metrics"]
    assert {name for name in metrics if name.startswith("val/")} == {
        name for name in single.metrics if name.startswith("val/")
    }
    assert metrics["train/loss"] == pytest.approx(single.metrics["train/loss"], rel=1e-2)


def test_accumulation_is_one_large_step(pairs_dir):
    losses, gradients = one_step(str(pairs_dir), RECIPE)
    pieces_losses, pieces_gradients = one_step(str(pairs_dir), replace(RECIPE, accumulate=4))
    for name, loss in losses.items():
        assert torch.allclose(pieces_losses[name], loss, rtol=1e-5), name
    assert set(gradients) == set(pieces_gradients) and "clip.logit_scale" in gradients
    for name, gradient in gradients.items():
        assert torch.allclose(pieces_gradients[name], gradient, rtol=1e-3, atol=1e-5), name


def test_a_process_ends_with_the_launcher_that_was_killed(tmp_path):
    launcher = Fork(
        launch, tmp_path, output=tmp_path / "said", environment={"TORCHELASTIC_RUN_ID": "a"}
    )
    launcher.wait_for(tmp_path, "watching")
    launcher.signal(signal.SIGKILL)
    assert launcher.end(10) == -signal.SIGKILL  # waits for all of its session


def test_a_process_whose_launcher_is_gone_already_ends(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(unused.getsockname()[1]),
        }  # nobody listens there
        environment = {
            "TORCHELASTIC_RUN_ID": "a",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            **address,
        }
        assert (
            Fork(end_with_launcher, output=tmp_path / "said", environment=environment).end(10) == 1
        )
