"""DPT from MiDaS's checkpoints: names and shapes, and the same numbers as MiDaS's arithmetic over
timm's ViT gives."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from transformers import DPTConfig, DPTForDepthEstimation

from backbones.cliptex.experts import load_experts
from backbones.cliptex.experts.midas import midas_config, renamed
from common.errors import UserError


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.conv2 = (
            nn.Conv2d(width, width, 3, padding=1),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x):
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Fusion(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.out_conv = nn.Conv2d(width, width, 1)
        self.resConfUnit1, self.resConfUnit2 = Residual(width), Residual(width)

    def forward(self, x, skip=None):
        x = x if skip is None else x + self.resConfUnit1(skip)
        x = F.interpolate(self.resConfUnit2(x), scale_factor=2, mode="bilinear", align_corners=True)
        return self.out_conv(x)


class MiDaS(nn.Module):
    """A DPT whose parameters have MiDaS's names, over timm's ViT or hybrid."""

    def __init__(self, vit, hooks, neck, fusion=256):
        super().__init__()
        self.hybrid, self.hooks = hasattr(vit.patch_embed, "backbone"), hooks
        width = vit.embed_dim
        self.pretrained = nn.Module()
        self.pretrained.model = vit
        resizes = [
            nn.ConvTranspose2d(neck[0], neck[0], 4, 4),
            nn.ConvTranspose2d(neck[1], neck[1], 2, 2),
        ]
        resizes += [nn.Identity(), nn.Conv2d(neck[3], neck[3], 3, 2, 1)]
        for number, (channels, resize) in enumerate(zip(neck, resizes, strict=True), 1):
            if self.hybrid and number < 3:
                continue
            part = nn.ModuleDict(
                {"0": nn.Module(), "3": nn.Conv2d(width, channels, 1), "4": resize}
            )
            part["0"].project = nn.Sequential(nn.Linear(2 * width, width), nn.GELU())
            setattr(self.pretrained, f"act_postprocess{number}", part)
        self.scratch = nn.Module()
        for number, channels in enumerate(neck, 1):
            setattr(
                self.scratch,
                f"layer{number}_rn",
                nn.Conv2d(channels, fusion, 3, padding=1, bias=False),
            )
            setattr(self.scratch, f"refinenet{number}", Fusion(fusion))
        enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        head = [
            nn.Conv2d(fusion, fusion // 2, 3, padding=1),
            enlarge,
            nn.Conv2d(fusion // 2, 32, 3, padding=1),
        ]
        self.scratch.output_conv = nn.Sequential(*head, nn.ReLU(), nn.Conv2d(32, 1, 1), nn.ReLU())

    def forward(self, pixels):
        vit, kept = self.pretrained.model, {}
        modules = [*vit.blocks]
        if self.hybrid:
            modules[:2] = list(vit.patch_embed.backbone.stages)[:2]
        hooks = [
            modules[at].register_forward_hook(
                lambda module, inputs, output, number=number: kept.update({number: output})
            )
            for number, at in enumerate(self.hooks, 1)
        ]
        vit.forward_features(pixels)
        for hook in hooks:
            hook.remove()
        maps = []
        for number in (1, 2, 3, 4):
            x = kept[number]
            if x.ndim == 3:
                part = getattr(self.pretrained, f"act_postprocess{number}")
                tokens, readout = x[:, 1:], x[:, :1].expand_as(x[:, 1:])
                x = part["0"].project(torch.cat([tokens, readout], -1)).transpose(1, 2)
                x = x.unflatten(2, (round(x.shape[2] ** 0.5), -1))
                x = part["4"](part["3"](x))
            maps.append(getattr(self.scratch, f"layer{number}_rn")(x))
        x = self.scratch.refinenet4(maps[3])
        for number in (3, 2, 1):
            x = getattr(self.scratch, f"refinenet{number}")(x, maps[number - 1])
        return self.scratch.output_conv(x)[:, 0]


def vit(name: str, **more) -> nn.Module:
    return timm.create_model(name, num_classes=0, **more)


@pytest.mark.parametrize(
    ("name", "file", "hooks", "neck", "config"),
    [
        (
            "vit_large_patch16_384",
            "dpt_large_384",
            [5, 11, 17, 23],
            (256, 512, 1024, 1024),
            {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "backbone_out_indices": [5, 11, 17, 23],
            },
        ),
        (
            "vit_base_r50_s16_384",
            "dpt_hybrid_384",
            [0, 1, 8, 11],
            (256, 512, 768, 768),
            {"is_hybrid": True, "reassemble_factors": [1, 1, 1, 0.5]},
        ),
    ],
)
def test_names_and_shapes_of_the_published_files(name, file, hooks, neck, config):
    """The renamed state fits, name by name and shape by shape, transformers' model of the Intel
    hub's configuration."""
    with torch.device("meta"):
        state = MiDaS(timm.create_model(name), hooks, neck).state_dict()
        model = DPTForDepthEstimation(DPTConfig(neck_hidden_sizes=neck, **config))
        ours = DPTForDepthEstimation(midas_config(state))
    assert (
        len(state) > 300
        and f"pretrained.model.blocks.{config.get('num_hidden_layers', 12) - 1}.attn.qkv.bias"
        in state
    )
    found = {
        name: tensor.shape
        for name, tensor in renamed(state, config.get("is_hybrid", False)).items()
    }
    assert found == {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert found == {name: tensor.shape for name, tensor in ours.state_dict().items()}
    for key in ("image_size", "num_attention_heads", "backbone_out_indices", "reassemble_factors"):
        assert list(np.atleast_1d(getattr(ours.config, key))) == list(
            np.atleast_1d(getattr(model.config, key))
        )


@pytest.mark.parametrize("hybrid", [False, True])
def test_the_same_depth_as_midas(hybrid, tmp_path):
    torch.manual_seed(0)
    small = {"embed_dim": 128, "depth": 4, "num_heads": 2, "img_size": 64}
    if hybrid:
        net = MiDaS(vit("vit_base_r50_s16_384", **small), [0, 1, 2, 3], (256, 512, 32, 48), 16)
    else:
        net = MiDaS(vit("vit_base_patch16_384", **small), [0, 1, 2, 3], (16, 24, 32, 48), 16)
    for (
        parameter
    ) in net.parameters():  # timm's initial tokens and biases are zero, and would show nothing
        if parameter.ndim == 1 or parameter.shape[0] == 1:
            nn.init.normal_(parameter, 1.0 if parameter.mean() > 0.5 else 0.0, 0.1)
    for module in net.scratch.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    nn.init.constant_(net.scratch.output_conv[4].bias, 3.0)
    torch.save(net.state_dict(), tmp_path / "dpt.pt")
    (expert,) = load_experts([f"dpt={tmp_path / 'dpt.pt'}"])
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = net.eval()((images / 255 - 0.5) / 0.5)
    assert expected.std() > 0.1 * expected.mean() > 0
    np.testing.assert_allclose(
        expert.predict(images)["depth"], expected.numpy(), atol=1e-3 * float(expected.std())
    )
    expert.save(tmp_path / "ours")
    (back,) = load_experts([f"dpt={tmp_path / 'ours'}"])
    assert back.identity() == expert.identity()
    np.testing.assert_array_equal(back.predict(images)["depth"], expert.predict(images)["depth"])
    # as the Intel hub has it: config.json, and weights as a torch file
    expert.net.config.save_pretrained(tmp_path / "hub")
    torch.save(expert.net.state_dict(), tmp_path / "hub" / "pytorch_model.bin")
    (hub,) = load_experts([f"dpt={tmp_path / 'hub'}"])
    np.testing.assert_array_equal(hub.predict(images)["depth"], expert.predict(images)["depth"])
    rounded = expert.freeze(bf16=True).predict(images)["depth"]
    assert 0 < np.abs(rounded - expected.numpy()).mean() < 0.1 * float(expected.std())


class Evil:
    def __reduce__(self):
        return (open, ("proof", "w"))


def test_torch_files_of_the_hub_are_not_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    DPTConfig(hidden_size=64, num_hidden_layers=4, num_attention_heads=1).save_pretrained(tmp_path)
    torch.save(
        {"dpt.layernorm.weight": torch.ones(64), "evil": Evil()}, tmp_path / "pytorch_model.bin"
    )
    with pytest.raises(UserError, match="no DPT at") as error:
        load_experts([f"dpt={tmp_path}"])
    assert "\n" not in str(error.value) and not (tmp_path / "proof").exists()


def test_other_files_are_one_line(tmp_path):
    for state, told in (
        ({"model.conv1.weight": torch.zeros(1)}, "is no DPT of MiDaS .*it has no"),
        (
            {"pretrained.model.patch_embed.proj.weight": torch.zeros(8, 3, 16, 16)},
            "no DPT of MiDaS with a ViT",
        ),
    ):
        torch.save(state, tmp_path / "bad.pt")
        with pytest.raises(UserError, match=told) as error:
            load_experts([f"dpt={tmp_path / 'bad.pt'}"])
        assert "\n" not in str(error.value)
