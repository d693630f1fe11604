"""Two gloo processes, really started, do what one process does with the joint batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from backbones.cliptex.data.pairs import open_pairs
from backbones.cliptex.training.train import train
from tests.backbones.cliptex import toy
from tests.backbones.cliptex.training.ranks import RECIPE, one_rank, one_step
from tests.forks import ranks


@pytest.fixture(scope="module")
def pairs_dir(tmp_path_factory):
    return toy.write_pairs(tmp_path_factory.mktemp("pairs"), 48, 2)


@pytest.mark.parametrize("accumulate", [2])
def test_two_processes_equal_one(tmp_path, pairs_dir, accumulate):
    """Losses and gradients of the first step, with gradient caching on top, and weights after a whole training."""
    ranks(one_rank, tmp_path, accumulate, str(pairs_dir), output=tmp_path / "said")
    whole_losses, whole_gradients = one_step(str(pairs_dir), RECIPE)
    halves = [torch.load(tmp_path / f"rank{i}.pt", weights_only=True) for i in range(2)]
    for name, loss in whole_losses.items():
        assert torch.allclose(sum(losses[name] for losses, _ in halves) / 2, loss, rtol=1e-4), name
    for name, gradient in whole_gradients.items():
        for _, gradients in halves:
            assert torch.allclose(gradients[name], gradient, rtol=1e-3, atol=2e-5), name

    assert (tmp_path / "sha0").read_text() == (tmp_path / "sha1").read_text()
    one = train(
        replace(RECIPE, accumulate=accumulate), init="random", pairs=open_pairs(pairs_dir), labels=toy.ToyLabels(),
        out=tmp_path / "one.safetensors", workers=0,
    )  # fmt: skip
    two, alone = load_file(tmp_path / "two.safetensors"), load_file(one.path)
    # Adam divides by the gradient's own size, so rounding of near-zero gradients can turn a step around
    far = sum(((two[name] - alone[name]).abs() > 1e-4).sum().item() for name in alone)
    assert far / sum(value.numel() for value in alone.values()) < 1e-2


def test_accumulation_is_one_large_step(pairs_dir):
    losses, gradients = one_step(str(pairs_dir), RECIPE)
    pieces_losses, pieces_gradients = one_step(str(pairs_dir), replace(RECIPE, accumulate=4))
    for name, loss in losses.items():
        assert torch.allclose(pieces_losses[name], loss, rtol=1e-5), name
    assert set(gradients) == set(pieces_gradients) and "clip.logit_scale" in gradients
    for name, gradient in gradients.items():
        assert torch.allclose(pieces_gradients[name], gradient, rtol=1e-3, atol=1e-5), name
