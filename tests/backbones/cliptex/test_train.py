"""Trainings on toy pairs: what is learned, exported, reused and refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import backbones
from backbones.adapters.open_clip import build_model
from backbones.cliptex import model as models
from backbones.cliptex.batches import TrainDataset
from backbones.cliptex.model import load_initial_clip
from backbones.cliptex.recipes import RECIPES
from backbones.cliptex.train import CLIPTrainer, find_trained, recall, train
from backbones.cliptex.trainer import TrainContext
from backbones.registry import efficientnet_lite_state
from cliptex_common.errors import UserError
from tests.backbones.cliptex import toy

pytestmark = pytest.mark.integration

CPU = torch.device("cpu")
TINY = {"model": "tiny", "batch_size": 16, "epochs": 2.0, "lr": 1e-3}
CLIPTEX = replace(RECIPES["cliptex"], **TINY)


def run(recipe, pairs, out, *, init="random", labels=..., **context):
    labels = toy.ToyLabels() if labels is ... else labels
    context = TrainContext(**{"workers": 0, **context})
    return train(recipe, init=init, pairs=pairs, out=out, labels=labels, context=context)


def dataset(pairs, labels, recipe, label_size=16, **ranks) -> TrainDataset:
    """The batches of a training from random weights."""
    start = load_initial_clip("random", "tiny")
    options = {"tokenizer": start.tokenizer, "data": start.data, "label_size": label_size}
    return TrainDataset(pairs, labels, recipe, **options, **ranks)


@pytest.mark.parametrize(
    "function", [models.CLIPWithHeads.to, CLIPTrainer.validate], ids=["model", "validation"]
)
def test_memory_that_ends_is_one_line_with_what_helps(pairs, tmp_path, monkeypatch, function):
    def exhaust(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(f"{function.__module__}.{function.__qualname__}", exhaust)
    with pytest.raises(UserError, match=r"Tried to allocate 2.00 GiB.*raise accumulate"):
        run(CLIPTEX, pairs, tmp_path / "out.safetensors")


def test_export_gives_the_features_that_were_trained(pairs, tmp_path, monkeypatch):
    trained = []
    original = models.CLIPWithHeads.__init__

    def record(self, *args):
        trained.append(self)
        original(self, *args)

    monkeypatch.setattr(models.CLIPWithHeads, "__init__", record)
    recorder = toy.Recorder()
    recipe = replace(CLIPTEX, val_pairs=10)
    result = run(recipe, pairs, tmp_path / "w.safetensors", log=recorder, progress=recorder)
    backbone = backbones.create("cliptex", weights=result.path, any_architecture=True)
    images = torch.randn(3, 3, 32, 32)
    model = trained[0].eval()
    with torch.no_grad():
        expected = model.clip.visual.forward_intermediates(
            images, indices=model.layers, normalize_intermediates=True
        )
        assert torch.allclose(backbone.encode_image(images), expected["image_features"], atol=1e-5)
        maps = expected["image_intermediates"]
        for actual, trained_map in zip(backbone(images), maps, strict=True):
            assert torch.allclose(actual, trained_map, atol=1e-5)
        text = model.clip.encode_text(backbone.tokenizer(["a red disc"]))
        assert torch.allclose(backbone.encode_text(["a red disc"]), text, atol=1e-5)
    assert backbone.weights.sha256 == result.sha256
    assert not [name for name in load_file(result.path) if "head" in name]

    # 38 of 48 pairs, 16 a step, 2 epochs: 5 steps
    assert result.cost["steps"] == 5 and result.cost["flops_per_step"] > 1e6
    assert recorder.started[-1] == ("train cliptex", 5) and recorder.advanced == 5
    assert set(recorder.metrics[1][1]) >= {"train/lr", "train/loss_seg", "train/grad_norm_seg"}
    assert {"val/i2t_R@1", "val/t2i_R@10"} <= set(recorder.metrics[-1][1])
    extra = backbones.load_checkpoint(result.path).extra
    assert extra["recipe"]["lambda_seg"] == 0.1 and extra["pairs"]["count"] == 48
    assert extra["key"] == result.key

    inputs = {"init": "random", "pairs": pairs, "out": result.path, "labels": toy.ToyLabels()}
    assert find_trained(recipe, **inputs) == replace(result, trained=False)
    assert find_trained(replace(recipe, seed=1), **inputs) is None
    labels = toy.ToyLabels()
    again = run(replace(recipe, name="other"), pairs, result.path, labels=labels)
    assert again == replace(result, trained=False) and labels.reads == 0
    result.path.write_bytes(result.path.read_bytes()[:-1000])
    assert run(recipe, pairs, result.path).sha256 == result.sha256
    changed = run(recipe.changed({"lambda_seg": 1.0}), pairs, result.path)
    assert changed.trained and changed.sha256 != result.sha256


def test_it_learns(pairs, tmp_path):
    recorder = toy.Recorder()
    recipe = CLIPTEX.changed({"epochs": 40.0, "lr": 3e-3, "head_lr": 1.0, "lambda_seg": 1.0})
    run(recipe, pairs, tmp_path / "w.safetensors", log=recorder, log_every=10)
    first, *_, last = recorder.curve("train/loss_clip")
    assert first == pytest.approx(math.log(16), abs=0.5) and last < first - 0.7
    for task, share in (("seg", 0.6), ("depth", 0.7), ("normal", 0.7)):
        first, *_, last = recorder.curve(f"train/loss_{task}")
        assert last < share * first, task


def test_clip_ft_reads_no_labels_and_sees_the_same_data(pairs, tmp_path):
    labels = toy.ToyLabels()
    ft, out = replace(RECIPES["clip-ft"], **TINY), tmp_path / "ft.safetensors"
    result = run(ft, pairs, out, labels=labels)
    assert labels.reads == 0 and result.key == run(ft, pairs, out, labels=None).key
    first, second = (dataset(pairs, labels, recipe) for recipe in (ft, CLIPTEX))
    assert len(first) == len(second) == 6
    for step in range(6):
        assert torch.equal(first[step].images, second[step].images)
        assert torch.equal(first[step].tokens, second[step].tokens)


def test_micro_batches_move_statistics_once(tmp_path, pairs):
    """Gradient caching passes each micro-batch twice, and updates batch norms once."""
    recipe = replace(CLIPTEX, accumulate=2, epochs=1.0)
    init = other_tower(tmp_path, "timm")
    weights = load_file(run(recipe, pairs, tmp_path / "w.safetensors", init=init).path)
    counts = {int(n) for name, n in weights.items() if name.endswith("num_batches_tracked")}
    assert counts == {2 * 3}


def test_the_exported_weights_are_validated_by_exact_products(pairs, tmp_path, monkeypatch):
    def exact(*embeddings):
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
        return recall(*embeddings)

    monkeypatch.setattr("backbones.cliptex.train.recall", exact)
    recipe = replace(CLIPTEX, ema=0.9, val_pairs=12, epochs=1.0)
    result = run(recipe, pairs, tmp_path / "w.safetensors")
    backbone = backbones.create("cliptex", weights=result.path, any_architecture=True)
    batches = dataset(pairs, None, recipe, 0)
    (batch,) = (batches.to_device(first, CPU) for first in batches.validation())
    towers = models.CLIPWithHeads(backbone.model, (), None).eval()
    with torch.no_grad():
        out = towers(batch.images, batch.tokens)
    for name, value in recall(out["image"], out["text"]).items():
        assert result.metrics[f"val/{name}"] == value


def test_checkpointing_changes_nothing(pairs, tmp_path):
    recipe = replace(CLIPTEX, epochs=0.7)
    result = run(recipe, pairs, tmp_path / "a.safetensors")
    recipe = replace(recipe, grad_checkpointing=True)
    assert not run(recipe, pairs, result.path).trained
    second = load_file(run(recipe, pairs, tmp_path / "b.safetensors").path)
    for name, weights in load_file(result.path).items():
        assert torch.allclose(weights, second[name], atol=1e-5)


def test_a_tower_that_starts_from_imagenet(pairs, tmp_path):
    start = load_initial_clip("imagenet", "mini", seed=3)
    stored, _ = efficientnet_lite_state()
    trunk = start.model.visual.trunk.state_dict()
    assert all(torch.equal(trunk[name], stored[name]) for name in trunk) and len(trunk) > 200
    assert start.data.mean == (0.5, 0.5, 0.5) and "ImageNet" in start.weights.source
    different = load_initial_clip("random", "mini", seed=3)
    assert torch.equal(start.model.token_embedding.weight, different.model.token_embedding.weight)
    assert start.weights.sha256 != different.weights.sha256
    recipe = replace(
        RECIPES["cliptex"], model="mini", batch_size=16, epochs=0.4, label_size=32, head_width=16
    )
    result = run(recipe, pairs, tmp_path / "w.safetensors", init="imagenet")
    backbone = backbones.create("cliptex", weights=result.path, any_architecture=True)
    assert backbone.strides == (4, 8, 16, 32) and backbone.weights.licence == "Apache-2.0"


@pytest.mark.parametrize(
    ("changes", "inputs", "message"),
    [
        ({}, {"labels": None}, "give --labels"),
        ({}, {"labels": toy.ToyLabels(("seg", "normal"))}, "no depth for pairs such as 00000/"),
        ({"model": "tinny"}, {}, "no model 'tinny'"),
        ({}, {"init": "imagenet"}, "timm image towers, and model 'tiny' has none"),
        ({}, {"init": "random/timm/resnet18"}, "no image and text tower"),
        ({}, {"init": "patch-dropout"}, "need every patch"),
    ],
)
def test_wrong_inputs(pairs, tmp_path, changes, inputs, message):
    if inputs.get("init") in TOWERS:
        inputs = {"init": other_tower(tmp_path, inputs["init"])}
    with pytest.raises(UserError, match=message):
        run(replace(CLIPTEX, **changes), pairs, tmp_path / "w.safetensors", **inputs)


def test_what_labels_lack_is_noted(pairs, tmp_path):
    """Pairs without labels count for the contrast."""

    class Blank(toy.ToyLabels):
        def get(self, key, tasks=None):
            labels = super().get(key, tasks)
            return labels | {name: labels[name] * 0 + 255 for name in labels if name == "seg"}

    few = Blank(missing=tuple(map(pairs.key, range(40))))
    result = run(replace(CLIPTEX, epochs=1.0), pairs, tmp_path / "out.safetensors", labels=few)
    blank, unlabelled = result.notes
    assert blank.startswith("labels of seg know no pixel") and "λ_seg has no effect" in blank
    assert unlabelled == "83.3% of the samples have no labels; only the contrast uses them"
    assert 0 < result.metrics["train/loss_depth"] < math.inf


def test_automatic_precision_is_part_of_the_identity(pairs, tmp_path):
    """``auto`` is bf16 on CUDA, whose weights are not those of a CPU."""
    automatic = replace(CLIPTEX, epochs=0.3)
    result = run(replace(automatic, precision="fp32"), pairs, tmp_path / "w.safetensors")
    inputs = {"init": "random", "pairs": pairs, "out": result.path, "labels": toy.ToyLabels()}
    assert find_trained(automatic, **inputs, device="cpu").key == result.key
    assert find_trained(automatic, **inputs, device="cuda") is None


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_images_are_replaced_counted_and_named(tmp_path, workers):
    pairs = toy.damaged_pairs(tmp_path, 120, corrupt=(5,))
    recipe = replace(CLIPTEX, epochs=1.0)
    (note,) = run(recipe, pairs, tmp_path / "w.safetensors", workers=workers).notes
    assert "00000/000000005" in note


def test_fine_tuning_at_another_image_size(pairs, tmp_path):
    first = run(replace(CLIPTEX, epochs=0.5), pairs, tmp_path / "a.safetensors")
    recipe = replace(CLIPTEX, epochs=0.5, image_size=48, precision="bf16")
    second = run(recipe, pairs, tmp_path / "b.safetensors", init=str(first.path))
    backbone = backbones.create("cliptex", weights=second.path, any_architecture=True)
    assert backbone(torch.zeros(1, 3, *backbone.data.size))[0].shape[-2:] == (6, 6)
    assert all(value.dtype == torch.float32 for value in load_file(second.path).values())


# vision config and layers by name
TIMM = {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear"}
STAGES = {"layers": [1, 1, 1, 1], "width": 16, "head_width": 16, "patch_size": None}
# vision config and layers by name
TOWERS: dict[str, tuple[dict, tuple[int, ...]]] = {
    "resnet": ({"image_size": 64, **STAGES}, (1, 2, 3, 4)),
    "timm": ({"image_size": 64, **TIMM}, (1, 2, 3, 4)),
    "timm-vit": (
        {"image_size": 32, **TIMM, "timm_model_name": "test_vit", "timm_pool": ""},
        (2, 5),
    ),
    "patch-dropout": ({**models.TINY_CLIP["vision_cfg"], "patch_dropout": 0.5}, (0, 1)),
}


def other_tower(folder: Path, tower: str) -> str:
    """A file of random weights of a tiny CLIP with another image tower."""
    vision, layers = TOWERS[tower]
    config = {**models.TINY_CLIP, "vision_cfg": vision}
    torch.manual_seed(0)
    size = (vision["image_size"],) * 2
    data = backbones.DataConfig(size, (0.5,) * 3, (0.5,) * 3, layers=layers)
    path, state = folder / "init.safetensors", build_model(config).state_dict()
    backbones.save_checkpoint(backbones.Checkpoint(path, state, "open_clip/toy", config, data))
    return str(path)


@pytest.mark.parametrize("tower", ["resnet", "timm", "timm-vit"])
def test_other_image_towers_train_too(pairs, tmp_path, tower):
    init = other_tower(tmp_path, tower)
    result = run(replace(CLIPTEX, epochs=0.7), pairs, tmp_path / "w.safetensors", init=init)
    backbone = backbones.create("cliptex", weights=result.path, any_architecture=True)
    assert len(backbone(torch.zeros(1, 3, *backbone.data.size))) == len(TOWERS[tower][1])
    assert result.sha256 != backbones.load_checkpoint(init).sha256
