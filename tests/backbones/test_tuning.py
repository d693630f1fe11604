"""What of a backbone trains in each tier: its groups, its matrices of low rank, what stays as it
is."""

from __future__ import annotations

import copy

import open_clip.factory as factory
import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

import backbones
from backbones.adapters.module import ModuleBackbone
from backbones.adapters.transformers import HfBackbone
from backbones.backbone import DataConfig, state_sha256
from backbones.tuning import Average, Tuning, blocks_of
from backbones.weights import Weights
from cliptex_common.errors import UserError
from tests.backbones.mini import CONFIG

HEAD = ("head.", "fc_norm", "head_norm", "classifier.")


def maps(backbone, images):
    return backbone(images)


def embedding(backbone, images):
    return [backbone.encode_image(images)]


def tuned(name, tune, read=maps, size=None, **options):
    backbone = name if isinstance(name, nn.Module) else backbones.create(name, seed=0)
    return Tuning(backbone, tune, read, size or backbone.data.size, **options)


@pytest.fixture
def hugging():
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14
    )
    data = DataConfig((56, 56), (0.5,) * 3, (0.5,) * 3)
    backbone = HfBackbone(Dinov2Model(config), config, data, name="dino", repo="")
    backbone.weights = Weights("random", state_sha256(backbone.model_state()))
    return backbone.freeze()


@pytest.fixture
def small_clip(monkeypatch):
    monkeypatch.setitem(factory._MODEL_CONFIGS, "Mini", CONFIG)
    return backbones.create("open_clip/Mini", seed=1)


@pytest.mark.parametrize(
    "name",
    ["test_vit", "test_convnext", "swin_tiny_patch4_window7_224", "test_resnet"],
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
    tuning = tuned(backbone, "all", embedding)
    own_names = {id(parameter): name for name, parameter in tuning.trained.items()}
    own = {
        own_names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in tuning.groups(0.02, 0.1, 0.7)
        for parameter in group["params"]
    }
    assert own == {name: pytest.approx(expected[name]) for name in own}
    missing = expected.keys() - own.keys()
    assert all(each.startswith(("head.fc", "head.weight", "head.bias", "fc.")) for each in missing)


def test_blocks_are_the_last_ones_and_stages_of_a_cnn(small_clip, hugging):
    vit = tuned("random/timm/test_vit", "blocks:2")
    depth = len(vit.model.blocks)
    names = {name.rpartition(".")[0].split(".attn")[0] for name in vit.trained}
    assert {".".join(name.split(".")[:2]) for name in names} == {
        f"blocks.{depth - 2}",
        f"blocks.{depth - 1}",
        "norm",
    }
    resnet = tuned("random/timm/test_resnet", "blocks:1")
    assert {name.partition(".")[0] for name in resnet.trained} == {"layer4"}
    clip = tuned(small_clip, "blocks:1")
    assert {name.rpartition("resblocks.")[2][:2] for name in clip.trained} <= {"1.", "vi"}
    dino = tuned(hugging, "blocks:1")
    assert {name.partition(".layer.")[2][:2] or name for name in dino.trained} == {
        "2.",
        "layernorm.weight",
        "layernorm.bias",
    }
    with pytest.raises(UserError, match="has 4 blocks; ask for"):
        tuned("random/timm/test_resnet", "blocks:5")


def peft_model(model, targets, rank):
    peft = pytest.importorskip("peft")
    options = {"r": rank, "lora_alpha": rank, "target_modules": targets}
    return peft.inject_adapter_in_model(peft.LoraConfig(**options), model)


def fill(tuning):
    """Nothing is zero."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in tuning.trained.values():
            parameter.normal_(0, 0.1)


@pytest.mark.parametrize("kind", ["timm", "open_clip", "transformers"])
def test_merged_weights_are_weights_and_products_of_low_rank(kind, small_clip, hugging):
    backbone = {
        "timm": backbones.create("random/timm/test_vit", seed=0),
        "open_clip": small_clip,
        "transformers": hugging,
    }[kind]
    images = torch.randn(2, 3, *backbone.data.size)
    with torch.no_grad():
        before = backbone(images)
        digest = state_sha256(backbone.model_state())
        tuning = tuned(backbone, "lora:3")
        assert all(map(torch.equal, tuning.backbone(images), before)), "it begins as it was"
        fill(tuning)
        parts, merged = tuning.backbone(images), tuning.merged()
        for part, whole in zip(parts, merged(images), strict=True):
            assert torch.allclose(part, whole, atol=1e-6)
        assert not torch.equal(before[-1], parts[-1])
        assert state_sha256(backbone.model_state()) == digest
    assert not any(parameter.requires_grad for parameter in merged.parameters())
    base, state = backbone.model.state_dict(), merged.model.state_dict()
    assert base.keys() == state.keys()
    changed = 0
    for name, added in tuning.trained.items():
        if name.endswith(".up"):
            path, _, weight = name.removesuffix(".0.up").rpartition(".parametrizations.")
            down = tuning.trained[name.removesuffix("up") + "down"]
            expected = base[f"{path}.{weight}"] + added @ down
            assert torch.allclose(state[f"{path}.{weight}"], expected, atol=1e-6)
            changed += 1
    assert changed == sum(not torch.equal(base[name], state[name]) for name in base) > 0


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_merged_weights_give_what_peft_gives(kind, hugging):
    backbone = backbones.create("random/timm/test_vit", seed=0) if kind == "timm" else hugging
    targets = r"blocks\.\d+\.attn\.(qkv|proj)" if kind == "timm" else r".*\.attention\..*proj"
    tuning = tuned(backbone, "lora:3")
    fill(tuning)
    other = copy.deepcopy(backbone)
    peft_model(other.model, targets, 3)
    modules, copied = dict(other.model.named_modules()), 0
    for name, parameter in tuning.trained.items():
        path = name.partition(".parametrizations.")[0]
        part = {"down": "lora_A", "up": "lora_B"}[name.rpartition(".")[2]]
        getattr(modules[path], part)["default"].weight.data.copy_(parameter)
        copied += 1
    every = [each for each, _ in other.model.named_parameters() if "lora_" in each]
    assert copied == len(every), "the same projections"
    images = torch.randn(2, 3, *backbone.data.size)
    with torch.no_grad():
        for own, theirs in zip(tuning.merged()(images), other(images), strict=True):
            assert torch.allclose(own, theirs, atol=1e-6)


def test_low_rank_is_of_projections_not_of_the_bias_of_positions():
    tuning = tuned(backbones.create("random/timm/swinv2_cr_tiny_224", seed=0), "lora:2")
    changed = {
        name.partition(".parametrizations.")[0].rpartition(".")[2] for name in tuning.trained
    }
    assert changed == {"qkv", "proj"}


def test_low_rank_of_a_cnn_is_of_its_pointwise_convolutions():
    backbone = backbones.create("random/timm/test_efficientnet", seed=0)
    images = torch.randn(2, 3, *backbone.data.size)
    tuning = tuned(backbone, "lora:2")
    fill(tuning)
    module = tuning.model.get_submodule("blocks.1.0.conv_pwl")
    base = backbone.model.get_submodule("blocks.1.0.conv_pwl").weight
    added = module.parametrizations.weight[0]
    assert torch.allclose(module.weight[..., 0, 0], base[..., 0, 0] + added.up @ added.down)
    with torch.no_grad():
        assert torch.allclose(tuning.backbone(images)[-1], tuning.merged()(images)[-1], atol=1e-5)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    with pytest.raises(UserError, match="has neither attention nor linear layers"):
        tuned(ModuleBackbone(network, "net", DataConfig((8, 8), (0.0,) * 3, (1.0,) * 3)), "lora:2")


def test_copies_for_other_sizes_share_what_trains(small_clip):
    """open_clip's towers are copied for each size; what trains is the same in all copies."""
    own, other = tuned(small_clip, "all", size=(64, 64)), tuned(small_clip, "all", size=(48, 80))
    table = "visual.positional_embedding"
    assert own.trained.keys() - other.trained.keys() == {table}
    optimizer = torch.optim.SGD(other.groups(0.1, 0.0, 1.0))
    images = torch.randn(2, 3, 48, 80)
    before = other.backbone(images)[-1].detach()
    other.backbone(images)[-1].square().mean().backward()
    optimizer.step()
    assert all(parameter.grad is not None for parameter in other.trained.values())
    assert not torch.equal(other.backbone(images)[-1], before)
    with torch.no_grad():
        assert torch.equal(other.merged()(images)[-1], other.backbone(images)[-1])


def test_drop_path_grows_with_depth_and_only_trains():
    tuning = tuned("random/timm/test_vit", "all", drop_path=0.3)
    rates = [block.drop_path1.drop_prob for block in tuning.model.blocks]
    assert rates == pytest.approx(torch.linspace(0, 0.3, len(rates)).tolist())
    images = torch.randn(4, 3, *tuning.backbone.data.size)
    with torch.no_grad():
        exact = tuning.backbone(images)[-1]
        tuning.train(True)
        assert not torch.equal(tuning.backbone(images)[-1], exact)
        tuning.train(False)
        assert torch.equal(tuning.backbone(images)[-1], exact)
    assert isinstance(timm.create_model("test_vit").blocks[0].drop_path1, nn.Identity)


def test_checkpointing_changes_no_gradient(small_clip):
    for backbone in (small_clip, backbones.create("random/timm/test_convnext", seed=0)):
        images, gradients = torch.randn(2, 3, 64, 64), []
        for checkpointing in (False, True):
            tuning = tuned(backbone, "all", checkpointing=checkpointing)
            tuning.backbone(images)[-1].square().mean().backward()
            gradients.append({name: each.grad for name, each in tuning.trained.items()})
        for name, gradient in gradients[0].items():
            other = gradients[1][name]
            assert (gradient is None) == (other is None)
            assert gradient is None or torch.equal(gradient, other)


def test_networks_without_a_list_of_blocks_have_their_parts():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    assert list(blocks_of(network, dict(network.named_parameters()))) == ["0", "2"]


@pytest.mark.parametrize(
    "kind", ["test_vit", "test_resnet", "test_convnext", "open_clip", "transformers"]
)
def test_what_is_recorded_before_the_cut_takes_the_place_of_images(kind, small_clip, hugging):
    own = {"open_clip": small_clip, "transformers": hugging}
    backbone = own.get(kind) or backbones.create(f"random/timm/{kind}", seed=0)
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
        tuning = tuned("random/timm/swin_tiny_patch4_window7_224", tune, drop_path=rate)
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
