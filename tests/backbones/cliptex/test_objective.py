"""Parts of a training: random numbers of micro-batches, optimizer groups, learning rate, recall."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from backbones.adapters.open_clip import build_model
from backbones.cliptex import model as models
from backbones.cliptex.model import load_initial_clip
from backbones.cliptex.objective import Passes
from backbones.cliptex.recipes import RECIPES
from backbones.cliptex.train import CLIPTrainer, recall
from backbones.cliptex.trainer import build_optimizer
from tests.backbones.cliptex.test_train import CLIPTEX, CPU, TINY, TOWERS, dataset


def check_both_passes_drop_the_same(pairs, device: torch.device) -> None:
    """A step of four micro-batches, each of which is embedded twice, by a model with dropout."""
    start = load_initial_clip("random", "tiny")
    for block in start.model.visual.transformer.resblocks:
        block.mlp.add_module("drop", torch.nn.Dropout(0.5))
    towers = models.CLIPWithHeads(start.model, start.data.layers, None).to(device)
    recipe = replace(RECIPES["clip-ft"], **TINY, accumulate=4)
    batches = dataset(pairs, None, recipe, 0)
    seen: list[dict[str, torch.Tensor]] = []
    towers.register_forward_hook(lambda module, inputs, output: seen.append(output))
    Passes(towers, recipe, 0, device).backward(batches.to_device(batches[0], device))
    assert len(seen) == 8
    for first, second in zip(seen[:4], seen[4:], strict=True):
        assert torch.equal(first["image"], second["image"]) and second["image"].requires_grad
    assert not torch.equal(seen[0]["image"], seen[1]["image"])


def test_both_passes_of_a_micro_batch_drop_the_same(pairs):
    check_both_passes_drop_the_same(pairs, CPU)


def decayed_names(model: torch.nn.Module) -> set[str]:
    """Names of the parameters with weight decay; every parameter is in a group."""
    groups = build_optimizer(model, 1.0, 0.1, head_multiple=10.0).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert sum(len(group["params"]) for group in groups) == len(names)
    heads = [group for group in groups if group["multiple"] == 10.0]
    assert all(names[id(p)].startswith("heads.") for group in heads for p in group["params"])
    return {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}


def test_norms_biases_and_embeddings_are_not_decayed():
    start = load_initial_clip("random", "tiny")
    heads = models.TaskHeads((32, 32), {"seg": 3}, 16)
    decayed = decayed_names(models.CLIPWithHeads(start.model, start.data.layers, heads))
    undecayed = ("bias", "ln_", "norm", "logit", "positional_embedding", "class_embedding")
    assert not [name for name in decayed if any(part in name for part in undecayed)]
    assert {"clip.visual.conv1.weight", "heads.shared.0.weight"} <= decayed
    config = {**models.TINY_CLIP, "vision_cfg": TOWERS["timm-vit"][0]}
    decayed = decayed_names(models.CLIPWithHeads(build_model(config), (), None))
    assert not [name for name in decayed if "pos_embed" in name or "cls_token" in name]


def test_learning_rate_warms_up_and_falls_by_a_cosine():
    trainer = SimpleNamespace(recipe=replace(CLIPTEX, lr=2.0, warmup=0.1), steps=100)
    rates = [CLIPTrainer.rate(trainer, step) for step in range(100)]
    assert (rates[0], rates[9], max(rates)) == pytest.approx((0.2, 2.0, 2.0))
    assert rates[55] == pytest.approx(1.0) and rates[99] < 1e-3
    assert sorted(rates[10:], reverse=True) == rates[10:]


def test_recall_against_counting():
    image = torch.nn.functional.normalize(torch.randn(30, 8), dim=1)
    text = torch.nn.functional.normalize(image + 0.5 * torch.randn(30, 8), dim=1)
    order = (image @ text.T).argsort(1, descending=True)
    expected = np.mean([i in order[i, :5].tolist() for i in range(30)]) * 100
    assert recall(image, text)["i2t_R@5"] == pytest.approx(expected)
    for value in (1.0, float("nan")):
        assert recall(torch.full((30, 4), value), torch.full((30, 4), value))["i2t_R@10"] == 0
