"""One step of training by itself: micro-batches, gradient norms, the optimizer's groups, and the
recall that it is watched by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from backbones.adapters.open_clip import build_model
from backbones.cliptex.data.dataset import TrainDataset
from backbones.cliptex.training import models
from backbones.cliptex.training.models import load_pretrained_clip
from backbones.cliptex.training.optimizer import build_optimizer, learning_rate
from backbones.cliptex.training.recipes import RECIPES
from backbones.cliptex.training.retrieval import recall
from backbones.cliptex.training.step import TrainStep
from tests.backbones.cliptex import toy
from tests.backbones.cliptex.training.test_train import CLIPTEX, CPU, TINY, VISION


def test_pieces_have_the_random_numbers_that_they_had(pairs, monkeypatch):
    """Gradient caching with drop path: both passes of a micro-batch drop the same."""
    start = load_pretrained_clip("random", "tiny")
    for block in start.model.visual.transformer.resblocks:
        block.mlp.add_module("drop", torch.nn.Dropout(0.5))
    towers = models.CLIPWithHeads(start.model, start.data.layers, None)
    recipe = replace(RECIPES["clip-ft"], **TINY, accumulate=4)
    batches = TrainDataset(
        pairs, None, recipe, tokenizer=start.tokenizer, data=start.data, label_size=0
    )
    seen, forward = [], models.CLIPWithHeads.forward
    monkeypatch.setattr(
        models.CLIPWithHeads,
        "forward",
        lambda self, *a: (seen.append(forward(self, *a)), seen[-1])[1],
    )
    TrainStep(towers, recipe, 0, CPU).backward(batches.on(batches[0], CPU))
    assert len(seen) == 8
    for first, second in zip(seen[:4], seen[4:], strict=True):
        assert torch.equal(first["image"], second["image"]) and second["image"].requires_grad
    assert not torch.equal(seen[0]["image"], seen[1]["image"])


def test_norms_of_pieces_are_those_of_the_whole(pairs):
    def norms(accumulate: int) -> dict[str, float]:
        start = load_pretrained_clip("random", "tiny")
        torch.manual_seed(0)
        towers = models.CLIPWithHeads(
            start.model,
            start.data.layers,
            models.TaskHeads((32, 32), {"seg": 3, "depth": 1, "normal": 3}, 16),
        )
        recipe = replace(CLIPTEX, accumulate=accumulate)
        batches = TrainDataset(
            pairs,
            toy.ToyLabels(),
            recipe,
            tokenizer=start.tokenizer,
            data=start.data,
            label_size=16,
        )
        return TrainStep(towers, recipe, 16, CPU).backward(batches.on(batches[0], CPU), norms=True)[
            1
        ]

    assert norms(4) == pytest.approx(norms(1), rel=1e-4)


def test_optimizer_groups_and_schedule():
    start = load_pretrained_clip("random", "tiny")
    towers = models.CLIPWithHeads(
        start.model, start.data.layers, models.TaskHeads((32, 32), {"seg": 3}, 16)
    )
    groups = build_optimizer(towers, CLIPTEX).param_groups
    names = {id(parameter): name for name, parameter in towers.named_parameters()}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(names)
    undecayed = ("bias", "ln_", "norm", "logit", "positional_embedding", "class_embedding")
    assert not [name for name in decayed if any(part in name for part in undecayed)]
    assert {"clip.visual.conv1.weight", "heads.shared.0.weight"} <= decayed
    assert {group["multiple"] for group in groups} == {1.0, 10.0}
    config = {**models.TINY_CLIP, "vision_cfg": VISION["timm-vit"]}
    timm = models.CLIPWithHeads(build_model(config), (), None)
    names = {id(parameter): name for name, parameter in timm.named_parameters()}
    groups = build_optimizer(timm, CLIPTEX).param_groups
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert not [name for name in decayed if "pos_embed" in name or "cls_token" in name]
    assert "clip.visual.trunk.pos_embed" in names.values()
    rates = [learning_rate(replace(CLIPTEX, lr=2.0, warmup=0.1), step, 100) for step in range(100)]
    assert (
        rates[0] == pytest.approx(0.2)
        and rates[9] == pytest.approx(2.0)
        and max(rates) == pytest.approx(2.0)
    )
    assert (
        rates[55] == pytest.approx(1.0)
        and rates[99] < 1e-3
        and sorted(rates[10:], reverse=True) == rates[10:]
    )


def test_recall_against_counting():
    image = torch.nn.functional.normalize(torch.randn(30, 8), dim=1)
    text = torch.nn.functional.normalize(image + 0.5 * torch.randn(30, 8), dim=1)
    order = (image @ text.T).argsort(1, descending=True)
    expected = np.mean([i in order[i, :5].tolist() for i in range(30)]) * 100
    metrics = recall(image, text)
    assert metrics["i2t_R@5"] == pytest.approx(expected) and set(metrics) == {
        f"{way}_R@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)
    }
    for value in (1.0, float("nan")):
        assert recall(torch.full((30, 4), value), torch.full((30, 4), value))["i2t_R@10"] == 0
