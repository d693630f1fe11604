"""Run in each process of a group, for ``test_distributed``."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from backbones.cliptex.batches import TrainDataset
from backbones.cliptex.model import CLIPWithHeads, TaskHeads, load_initial_clip
from backbones.cliptex.objective import Passes
from backbones.cliptex.pairs import open_pairs
from backbones.cliptex.recipes import RECIPES, Recipe
from backbones.cliptex.trainer import DistContext, end_with_launcher, processes
from tests.backbones.cliptex import toy
from tests.backbones.cliptex.test_train import run

ALONE = DistContext(0, 1, torch.device("cpu"))
SETTINGS = {
    "model": "tiny",
    "batch_size": 16,
    "epochs": 1.0,
    "lr": 1e-3,
    "head_lr": 1.0,
    "lambda_depth": 0.5,
}
RECIPE = RECIPES["cliptex"].changed(SETTINGS)


def one_step(
    pairs_dir: str, recipe: Recipe, process: DistContext = ALONE, init: str = "random"
) -> tuple[dict, dict, dict]:
    """Losses, gradients and the losses' gradient norms of the first step, on the CPU."""
    torch.manual_seed(0)
    start = load_initial_clip(init, recipe.model)
    labels = toy.ToyLabels(missing=("00000/000000004",))
    options = {"tokenizer": start.tokenizer, "data": start.data, "label_size": 16}
    share = {"rank": process.rank, "world": process.world}
    batches = TrainDataset(open_pairs(pairs_dir), labels, recipe, **options, **share)
    heads = TaskHeads(start.channels, {"seg": 3, "depth": 1, "normal": 3}, 16)
    model = CLIPWithHeads(start.model, start.data.layers, heads).to(process.device)
    step = Passes(model, recipe, 16, process.device)
    losses, norms = step.backward(batches.to_device(batches[0], process.device), norms=True)
    parameters = step.model.named_parameters()
    gradients = {name: p.grad.cpu() for name, p in parameters if p.grad is not None}
    return {name: loss.cpu() for name, loss in losses.items()}, gradients, norms


def one_rank(
    folder: Path, recipe: Recipe, pairs_dir: str, device: str = "cpu", init: str = "random"
) -> None:
    """Save this process's part of a step, and train to the end."""
    with processes(device) as process:
        torch.save(one_step(pairs_dir, recipe, process, init), folder / f"rank{process.rank}.pt")
        recorder, out = toy.Recorder(), folder / "many.safetensors"
        options = {"init": init, "device": device, "log": recorder, "progress": recorder}
        result = run(recipe, open_pairs(pairs_dir), out, **options)
        assert bool(recorder.metrics) == process.first
        (folder / f"sha{process.rank}").write_text(result.sha256)


def check_equals_one(
    folder: Path, count: int, expected: tuple[dict, dict, dict], single: Path, share: float
) -> None:
    """Compare what ``one_rank`` saved with one process's step and weights.

    Args:
        share: of the weights that may differ: Adam divides by the gradient's own size, so rounding
            of near-zero gradients can turn a step around.
    """
    losses, gradients, norms = expected
    parts = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(count)]
    for name, loss in losses.items():
        mean = sum(own_losses[name] for own_losses, _, _ in parts) / count
        torch.testing.assert_close(mean, loss, rtol=1e-4, atol=1e-5)
    for _, own_gradients, own_norms in parts:
        assert own_norms == pytest.approx(norms, rel=1e-3)
        for name, gradient in gradients.items():
            torch.testing.assert_close(own_gradients[name], gradient, rtol=1e-3, atol=2e-5)
    assert len({(folder / f"sha{rank}").read_text() for rank in range(count)}) == 1
    many, alone = load_file(folder / "many.safetensors"), load_file(single)
    differences = torch.cat([(many[name] - alone[name]).abs().flatten() for name in alone])
    assert (differences > 1e-4).double().mean() < share


def launch(folder: Path) -> None:
    """Act as torchrun: start a process that ends with this one, and wait for it."""
    if child := os.fork():
        os.waitpid(child, 0)
    end_with_launcher()
    (folder / "watching").touch()
    time.sleep(600)
