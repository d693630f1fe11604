"""What of a backbone trains in each tier: its groups, its matrices of low rank, what stays as it
is."""

from __future__ import annotations

import copy
import re

import open_clip.factory as factory
import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from transformers import Dinov2Config, Dinov2Model

import backbones
from backbones.adapters.module import ModuleBackbone
from backbones.adapters.transformers import HfBackbone
from backbones.backbone import DataConfig, state_sha256
from backbones.tuning import Average, Tuning, blocks_of
from backbones.weights import Weights
from cliptex_common.errors import UserError
from tests.backbones.mini import CONFIG

HEAD = ("head.", "fc_norm", "head_norm", "classifier.")


def tuned(backbone, tune, read=lambda backbone, images: backbone(images), size=None, **options):
    """Of a backbone, or of timm's architecture of this name with random weights."""
    if isinstance(backbone, str):
        backbone = backbones.create(f"random/timm/{backbone}", seed=0)
    return Tuning(backbone, tune, read, size or backbone.data.size, **options)


@pytest.fixture
def of_kind(monkeypatch):
    """Backbones by the name of an adapter, or of an architecture of timm."""
    monkeypatch.setitem(factory._MODEL_CONFIGS, "Mini", CONFIG)

    def create(kind):
        if kind == "open_clip":
            return backbones.create("open_clip/Mini", seed=1)
        if kind != "transformers":
            return backbones.create(f"random/timm/{kind}", seed=0)
        torch.manual_seed(0)
        config = Dinov2Config(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14
        )
        data = DataConfig((56, 56), (0.5,) * 3, (0.5,) * 3)
        backbone = HfBackbone(Dinov2Model(config), config, data, name="dino", repo="")
        backbone.weights = Weights("random", state_sha256(backbone.model_state()))
        return backbone.freeze()

    return create


@pytest.mark.parametrize(
    "name", ["test_vit", "test_convnext", "swin_tiny_patch4_window7_224", "test_resnet"]
)
def test_groups_are_timms(name):
    backbone = backbones.create(f"random/timm/{name}", seed=0)
    model = copy.deepcopy(backbone.model).requires_grad_(True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    no_decay = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    expected = {
        names[id(parameter)]: (0.02 * group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(
            model, weight_decay=0.1, no_weight_decay_list=no_decay, layer_decay=0.7
        )
        for parameter in group["params"]
    }
    tuning = tuned(backbone, "all", lambda backbone, images: [backbone.encode_image(images)])
    names = {id(parameter): name for name, parameter in tuning.trained.items()}
    own = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in tuning.groups(0.02, 0.1, 0.7)
        for parameter in group["params"]
    }
    assert own == {name: pytest.approx(expected[name]) for name in own}
    missing = expected.keys() - own.keys()
    assert all(each.startswith(("head.fc", "head.weight", "head.bias", "fc.")) for each in missing)


@pytest.mark.parametrize(
    ("kind", "tune", "trained"),
    [
        ("test_vit", "blocks:2", r"blocks\.[45]\.|norm\."),
        ("test_resnet", "blocks:1", r"layer4\."),
        ("open_clip", "blocks:1", r".*resblocks\.1\.|visual\.(ln_post|proj)"),
        ("transformers", "blocks:1", r".*\.layer\.2\.|layernorm\."),
    ],
)
def test_blocks_are_the_last_ones_and_stages_of_a_cnn(of_kind, kind, tune, trained):
    tuning = tuned(of_kind(kind), tune)
    matching = {name for name in tuning.used if re.match(trained, name)}
    assert {*tuning.trained} == matching


@pytest.mark.parametrize(
    ("tune", "message"),
    [("blocks:5", "has 3 blocks; ask for"), ("lora:2", "has neither attention nor linear layers")],
)
def test_what_cannot_be_tuned(tune, message):
    network = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)))
    with pytest.raises(UserError, match=message):
        tuned(ModuleBackbone(network, "net", DataConfig((8, 8), (0.0,) * 3, (1.0,) * 3)), tune)


def fill(tuning):
    """Nothing is zero."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in tuning.trained.values():
            parameter.normal_(0, 0.1)


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("test_vit", r"blocks\.\d+\.attn\.(qkv|proj)"),
        ("transformers", r".*\.attention\..*proj"),
        ("open_clip", ""),  # PEFT has nothing for its joint projections
    ],
)
def test_merged_weights_give_what_peft_gives(kind, targets, of_kind):
    backbone = of_kind(kind)
    images = torch.randn(2, 3, *backbone.data.size)
    tuning, digest = tuned(backbone, "lora:3"), state_sha256(backbone.model_state())
    with torch.no_grad():
        before = backbone(images)
        assert all(map(torch.equal, tuning.backbone(images), before)), "it begins as it was"
        fill(tuning)
        expected, merged = tuning.backbone(images), tuning.merged()
        if targets:
            other = copy.deepcopy(backbone)
            peft = pytest.importorskip("peft")
            config = peft.LoraConfig(r=3, lora_alpha=3, target_modules=targets)
            peft.inject_adapter_in_model(config, other.model)
            for name, parameter in tuning.trained.items():
                module = other.model.get_submodule(name.partition(".parametrizations.")[0])
                part = {"down": "lora_A", "up": "lora_B"}[name.rpartition(".")[2]]
                getattr(module, part)["default"].weight.copy_(parameter)
            every = [each for each, _ in other.model.named_parameters() if "lora_" in each]
            assert len(tuning.trained) == len(every), "the same projections"
            expected = other(images)
        for own, theirs, old in zip(merged(images), expected, before, strict=True):
            assert torch.allclose(own, theirs, atol=1e-6) and not torch.equal(own, old)
    assert state_sha256(backbone.model_state()) == digest
    assert not any(parameter.requires_grad for parameter in merged.parameters())


def test_low_rank_is_of_projections_not_of_the_bias_of_positions():
    tuning = tuned("swinv2_cr_tiny_224", "lora:2")
    changed = {
        name.partition(".parametrizations.")[0].rpartition(".")[2] for name in tuning.trained
    }
    assert changed == {"qkv", "proj"}


def test_low_rank_of_a_cnn_is_of_its_pointwise_convolutions(of_kind):
    backbone, path = of_kind("test_efficientnet"), "blocks.1.0.conv_pwl"
    images, tuning = torch.randn(2, 3, *backbone.data.size), tuned(backbone, "lora:2")
    fill(tuning)
    weight = tuning.model.get_submodule(path).weight[..., 0, 0]
    added = tuning.model.get_submodule(path).parametrizations.weight[0]
    base = backbone.model.get_submodule(path).weight[..., 0, 0]
    assert torch.allclose(weight, base + added.up @ added.down)
    with torch.no_grad():
        assert torch.allclose(tuning.backbone(images)[-1], tuning.merged()(images)[-1], atol=1e-5)


def test_copies_for_other_sizes_share_what_trains(of_kind):
    """open_clip's towers are copied for each size; what trains is the same in all copies."""
    clip = of_kind("open_clip")
    own, other = tuned(clip, "all", size=(64, 64)), tuned(clip, "all", size=(48, 80))
    assert own.trained.keys() - other.trained.keys() == {"visual.positional_embedding"}
    images = torch.randn(2, 3, 48, 80)
    before = other.backbone(images)[-1]
    before.square().mean().backward()
    assert all(parameter.grad is not None for parameter in other.trained.values())
    torch.optim.SGD(other.groups(0.1, 0.0, 1.0)).step()
    with torch.no_grad():
        after = other.backbone(images)[-1]
        assert not torch.equal(after, before)
        assert torch.equal(other.merged()(images)[-1], after)


def test_drop_path_grows_with_depth_and_only_trains():
    tuning = tuned("test_vit", "all", drop_path=0.3)
    rates = [block.drop_path1.drop_prob for block in tuning.model.blocks]
    assert rates == pytest.approx(torch.linspace(0, 0.3, len(rates)).tolist())
    images = torch.randn(4, 3, *tuning.backbone.data.size)
    with torch.no_grad():
        exact = tuning.backbone(images)[-1]
        for training in (True, False):
            tuning.train(training)
            assert torch.equal(tuning.backbone(images)[-1], exact) != training


@pytest.mark.parametrize("kind", ["open_clip", "test_convnext"])
def test_checkpointing_changes_no_gradient(kind, of_kind):
    backbone, images, gradients = of_kind(kind), torch.randn(2, 3, 64, 64), []
    for checkpointing in (False, True):
        tuning = tuned(backbone, "all", checkpointing=checkpointing)
        tuning.backbone(images)[-1].square().mean().backward()
        gradients.append({name: each.grad for name, each in tuning.trained.items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=0)


def test_networks_without_a_list_of_blocks_have_their_parts():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    assert list(blocks_of(network, dict(network.named_parameters()))) == ["0", "2"]


@pytest.mark.parametrize(
    "kind", ["test_vit", "test_resnet", "test_convnext", "open_clip", "transformers"]
)
def test_what_is_recorded_before_the_cut_takes_the_place_of_images(kind, of_kind):
    backbone = of_kind(kind)
    size = (2 * backbone.divisor, 3 * backbone.divisor)
    tuning = tuned(backbone, "blocks:1", size=size)
    for shape in (size, size[::-1]):
        images = torch.randn(3, 3, *shape)
        with torch.no_grad():
            expected = tuning.backbone(images)
            recorded = tuning.cut.record(images)
            with tuning.cut.replaying(recorded, shape) as black:
                for others in (black, torch.randn_like(images)):
                    replayed = tuning.backbone(others)
                    assert all(map(torch.equal, replayed, expected)), "images are not read"


@pytest.mark.parametrize("tune", ["blocks:1", "lora:2", "all"])
def test_drop_path_of_an_architecture_is_not_that_of_a_training(tune):
    """timm's Swin brings a rate of 0.1."""
    images = torch.randn(2, 3, 224, 224)
    for rate in (0.0, 0.5):
        tuning = tuned("swin_tiny_patch4_window7_224", tune, drop_path=rate)
        with torch.no_grad():
            expected = tuning.backbone(images)
            tuning.train(True)
            same = all(map(torch.equal, tuning.backbone(images), expected))
            assert same == (rate == 0.0 or tune == "lora:2")
            if tune == "blocks:1":  # what is frozen gives the same each time
                first, second = (tuning.cut.record(images) for _ in range(2))
                assert all(map(torch.equal, first, second))


def test_a_network_that_reads_images_by_itself_has_no_cut():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(7, 4, 1)

        def forward(self, images):
            return self.last(torch.cat([self.first(images), images], dim=1))

    backbone = ModuleBackbone(Skip(), "skip", DataConfig((8, 8), (0.0,) * 3, (1.0,) * 3))
    with pytest.raises(UserError, match="reads images outside of its modules; set cache=none"):
        _ = tuned(backbone, "blocks:1").cut


def test_the_average_is_its_closed_form():
    parameter, steps = nn.Parameter(torch.zeros(3)), torch.randn(7, 3)
    average = Average([parameter], 0.9)
    for step in steps:
        parameter.data.copy_(step)
        average.update()
    average.apply()
    weights = torch.tensor([0.9**6, *(0.1 * 0.9 ** (5 - number) for number in range(6))])
    assert torch.allclose(parameter, weights @ steps, atol=1e-6)
