"""Experts: predictions, files, training, accuracy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from backbones.backbone import state_sha256
from backbones.cliptex.encoders import PACKAGED, timm_encoder
from backbones.cliptex.experts.base import load_data, load_experts
from backbones.cliptex.experts.fit import ExpertTrainer, evaluate_expert, train_expert
from backbones.cliptex.trainer import TrainContext
from benchmark.commands.new import template
from cliptex_common import registry
from cliptex_common.errors import UserError
from cliptex_common.progress import Silent
from tests.backbones.cliptex import toy
from tests.backbones.cliptex.experts import toy_experts
from tests.kinds import slow_except

pytestmark = pytest.mark.integration

NAMES = ("unet-seg", "unet-depth", "unet-normals")
QUIET = TrainContext()


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory):
    """An expert as ``new expert ground-plane`` writes it."""
    path = tmp_path_factory.mktemp("plugin") / "ground-plane.py"
    path.write_text(template("expert", "ground-plane"))
    registry.load(path)
    yield
    registry.LOADED[path].remove()


@pytest.mark.parametrize("name", [*NAMES, "ground-plane"])
@pytest.mark.parametrize("size", [(32, 32), (40, 56), (64, 48)])
def test_predictions(name, size):
    expert = toy_experts.make_expert(name)
    images = torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8)
    outputs, alone = expert.predict(images), expert.predict(images[1:2])
    label = outputs[expert.task]
    assert label.shape[0] == 3 and label.shape[-2:] == size
    assert label.dtype == (np.uint8 if expert.task == "seg" else np.float32)
    np.testing.assert_allclose(alone[expert.task][0], label[1], atol=1e-5)
    if expert.task == "normal":
        np.testing.assert_allclose(np.linalg.norm(label, axis=1), 1, atol=1e-5)
        assert outputs["confidence"].shape == (3, *size) and outputs["confidence"].min() > 0
    assert not expert.training
    assert not any(parameter.requires_grad for parameter in expert.parameters())


@pytest.mark.parametrize("name", [*NAMES, "ground-plane"])
def test_save_and_load(name, tmp_path):
    expert = toy_experts.make_expert(name)
    expert.save(tmp_path / "expert", note="kept")
    (loaded,) = load_experts([f"{name}={tmp_path / 'expert'}"])
    assert loaded.identity() == expert.identity()
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    for label, values in expert.predict(images).items():
        np.testing.assert_array_equal(loaded.predict(images)[label], values)
    changed = toy_experts.make_expert(name)
    with torch.no_grad():
        next(changed.parameters()).add_(1e-3)
    assert changed.identity() != expert.identity()


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ("unet-seg={folder}/e", "holds expert 'unet-depth', not 'unet-seg'"),
        ("unet-depth={folder}/e unet-depth={folder}/e", "both label depth"),
        ("unet-depth={folder}/changed", "has changed since"),
        ("unet-depth={folder}/cut", "does not hold"),
        ("unet-seg={folder}", "no expert in"),
        ("nll-angfm=x", "did you mean nll-angmf"),
        ("unet-depth", "needs its weights"),
    ],
)
def test_damaged_and_wrong_experts(tmp_path, specs, message):
    for name in ("e", "changed", "cut"):
        toy_experts.make_expert("unet-depth").save(tmp_path / name)
    content = (tmp_path / "e/weights.safetensors").read_bytes()
    (tmp_path / "cut/weights.safetensors").write_bytes(content[:999])
    flipped = content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]
    (tmp_path / "changed/weights.safetensors").write_bytes(flipped)
    with pytest.raises(UserError, match=message):
        load_experts(specs.format(folder=tmp_path).split())


TRAINED = {
    "unet-seg": (20.0, "object_acc", 70.0, 1),
    "unet-depth": (8.0, "abs_rel", 0.12, -1),
    "unet-normals": (20.0, "normal_median", 6.0, -1),
}


@pytest.mark.parametrize("name", slow_except(NAMES, ["unet-depth"]))
def test_training_learns_and_is_reused(name, tmp_path):
    root = toy_experts.write_truth(tmp_path / "data", train=32, val=8)
    epochs, metric, goal, sign = TRAINED[name]
    changes = {"batch_size": 8, "color_jitter": 0.1, "epochs": epochs, "lr": 3e-3, "width": 16}
    settings = toy_experts.SMALL_UNET | changes

    def train(seed: int) -> dict:
        return train_expert(name, root, tmp_path / "out", QUIET, settings, seed)

    trained = train(seed=1)
    assert sign * trained["accuracy"][metric] > sign * goal, trained["accuracy"]
    (expert,) = load_experts([f"{name}={tmp_path / 'out'}"])
    val = load_data(root, expert.task, "val", settings["size"], Silent())
    accuracy = evaluate_expert(expert, val, Silent())
    assert accuracy[metric] == pytest.approx(trained["accuracy"][metric], abs=1e-4)
    weights = tmp_path / "out" / "weights.safetensors"
    modified = weights.stat().st_mtime_ns
    assert train(seed=1) == trained and weights.stat().st_mtime_ns == modified
    with pytest.raises(UserError, match="holds another expert"):
        train(seed=2)


def test_a_frozen_encoder_is_computed_once_for_all_experts(tmp_path):
    root = toy_experts.write_truth(tmp_path / "data", train=8, val=4)
    encoder = {"encoder": PACKAGED, "pretrained": True, "frozen": True}
    settings = {**toy_experts.SMALL_UNET, **encoder, "batch_size": 4, "epochs": 2.0}
    for name in NAMES:
        train_expert(name, root, tmp_path / name, QUIET, settings)
    alone = [load_experts([f"{name}={tmp_path / name}"])[0] for name in NAMES]
    untrained = timm_encoder(PACKAGED, pretrained=True)[0]
    assert state_sha256(alone[0].net.encoder.state_dict()) == state_sha256(untrained.state_dict())
    together = load_experts([f"{name}={tmp_path / name}" for name in NAMES])
    passes = []
    together[0].net.encoder.conv_stem.register_forward_hook(lambda *_: passes.append(1))
    for seed in (0, 1):
        images = torch.from_numpy(toy_experts.picture(seed, 32, 32)).permute(2, 0, 1)[None]
        for expert, same in zip(alone, together, strict=True):
            expected, label = (each.predict(images)[expert.task] for each in (expert, same))
            np.testing.assert_array_equal(label, expected)
    assert len(passes) == 2  # of six
    assert [expert.identity() for expert in together] == [expert.identity() for expert in alone]


def test_a_training_names_where_its_states_go(tmp_path):
    expert = toy_experts.make_expert("unet-normals").requires_grad_(True)
    root = toy_experts.write_truth(tmp_path / "data", train=4, val=1)
    data = load_data(root, expert.task, "train", 32, Silent())
    with pytest.raises(ValueError, match="resume_dir"):
        ExpertTrainer(expert, data, QUIET, 0)


def test_training_is_the_same_resumed_or_not(tmp_path, monkeypatch):
    def exact(*args):
        assert not torch.backends.cudnn.allow_tf32
        return evaluate_expert(*args)

    monkeypatch.setattr("backbones.cliptex.experts.fit.evaluate_expert", exact)
    root, out = toy_experts.write_truth(tmp_path / "data", train=16, val=4), tmp_path / "out"
    settings = {**toy_experts.SMALL_UNET, "batch_size": 8, "epochs": 6.0}
    complete = train_expert("unet-normals", root, tmp_path / "complete", QUIET, settings)
    with pytest.raises(KeyboardInterrupt):
        context = replace(QUIET, progress=toy.Recorder(die_at=8))
        train_expert("unet-normals", root, out, context, settings)
    (state,) = (out / "training-state").iterdir()
    seconds = torch.load(state, weights_only=True)["seconds"]
    resumed = train_expert("unet-normals", root, out, QUIET, settings)
    assert resumed["sha256"] == complete["sha256"]
    assert resumed["flops"] == complete["flops"] > 1e7 and resumed["seconds"] > seconds > 0
    assert not (out / "training-state").exists()
