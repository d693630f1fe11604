"""Runs in each process of a group: its share of a joint batch; writes losses and gradients for the
test."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from backbones.cliptex.data.dataset import TrainDataset
from backbones.cliptex.data.pairs import open_pairs
from backbones.cliptex.training.distributed import end_with_launcher, processes
from backbones.cliptex.training.heads import TaskHeads
from backbones.cliptex.training.models import CLIPWithHeads, load_pretrained_clip
from backbones.cliptex.training.recipes import RECIPES, Recipe
from backbones.cliptex.training.step import TrainStep
from backbones.cliptex.training.train import TrainContext, train
from tests.backbones.cliptex import toy

SETTINGS = {
    "model": "tiny",
    "batch_size": 16,
    "epochs": 1.0,
    "lr": 1e-3,
    "head_lr": 1.0,
    "lambda_depth": 0.5,
}
RECIPE = RECIPES["cliptex"].changed(SETTINGS)


def one_step(pairs_dir: str, recipe: Recipe, rank: int = 0, world: int = 1) -> tuple[dict, dict]:
    """Losses and gradients of the first step."""
    torch.manual_seed(0)
    pairs, start, labels = (
        open_pairs(pairs_dir),
        load_pretrained_clip("random", recipe.model),
        toy.ToyLabels(missing=("00000/000000004",)),
    )
    batches = TrainDataset(
        pairs,
        labels,
        recipe,
        tokenizer=start.tokenizer,
        data=start.data,
        label_size=16,
        rank=rank,
        world=world,
    )
    heads = TaskHeads((32, 32), {"seg": 3, "depth": 1, "normal": 3}, 16)
    towers = CLIPWithHeads(start.model, start.data.layers, heads)
    losses, norms = TrainStep(towers, recipe, 16, torch.device("cpu")).backward(
        batches.to_device(batches[0], torch.device("cpu")), norms=True
    )
    assert set(norms) == {"clip", "seg", "depth", "normal"} and all(
        value > 0 for value in norms.values()
    )
    return losses, {name: p.grad for name, p in towers.named_parameters() if p.grad is not None}


def one_rank(folder: Path, recipe: Recipe, pairs_dir: str) -> None:
    """What each of the processes does."""
    with processes("cpu") as process:
        torch.save(
            one_step(pairs_dir, recipe, process.rank, process.world),
            folder / f"rank{process.rank}.pt",
        )
        recorder = toy.Recorder()
        result = train(
            recipe,
            init="random",
            pairs=open_pairs(pairs_dir),
            labels=toy.ToyLabels(),
            out=folder / "many.safetensors",
            context=TrainContext(log=recorder, progress=recorder, workers=0),
        )
        assert bool(recorder.metrics) == process.first
        (folder / f"sha{process.rank}").write_text(result.sha256)


def launch(folder: Path) -> None:
    """As torchrun: start a process that is to end with this one, and wait for it."""
    if child := os.fork():
        os.waitpid(child, 0)
    end_with_launcher()
    (folder / "watching").touch()
    time.sleep(600)
