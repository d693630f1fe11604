"""The bridge: our parts under both libraries' scopes, a backbone that nothing trains, saves or
initialises."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from common.errors import UserError
from probes.runner import bridge as mmlab
from tests.probes.tiny_mmlab import TinyBackbone

# isort: split
import mmdet.registry
import mmseg.registry
from mmengine.model import BaseModule
from mmengine.runner.checkpoint import load_state_dict


def frozen(**options: object) -> mmlab.FrozenBackbone:
    return mmlab.FrozenBackbone(**{"name": "tiny-cnn", "seed": 3, **options})


class Probe(BaseModule):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = frozen()
        self.head = torch.nn.Linear(32, 2)


@pytest.mark.parametrize("library", [mmdet, mmseg])
@pytest.mark.parametrize("name", ["FrozenBackbone", "SimpleFeaturePyramid", "ResizeConcat"])
def test_registered_for_both_libraries(library: object, name: str) -> None:
    models = library.registry.MODELS  # type: ignore[attr-defined]
    assert models.get(name).__module__ == "probes.runner.bridge"
    assert models.get(f"{models.scope}.{name}") is models.get(name)
    mmlab.install()
    mmlab.install()


def test_maps_are_those_of_the_backbone() -> None:
    images = torch.randn(2, 3, 64, 96, requires_grad=True)
    module = frozen()
    maps = module(images)
    assert [tuple(m.shape) for m in maps] == [
        (2, c, 64 // s, 96 // s) for c, s in ((8, 4), (16, 8), (24, 16), (32, 32))
    ]
    assert not any(m.requires_grad for m in maps)
    # the layout that convolutions are quick on, which rounds differently in the last bits
    expected = module.backbone(images.contiguous(memory_format=torch.channels_last))
    assert all(torch.equal(m, e) and m.is_contiguous() for m, e in zip(maps, expected, strict=True))
    for one, plain in zip(maps, module.backbone(images), strict=True):
        torch.testing.assert_close(one, plain)
    last, first = frozen(out_indices=(-1, 0))(images)
    assert torch.equal(last, expected[3]) and torch.equal(first, expected[0])


def test_bf16_is_near_and_returned_in_float32() -> None:
    images = torch.randn(1, 3, 64, 64)
    exact, rough = frozen()(images), frozen(precision="bf16")(images)
    assert all(m.dtype == torch.float32 for m in rough)
    assert not torch.equal(exact[-1], rough[-1])
    torch.testing.assert_close(exact[-1], rough[-1], rtol=0.05, atol=0.05)


def test_training_saving_and_initialising_do_not_reach_it() -> None:
    probe = Probe()
    backbone = probe.backbone.backbone
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    probe.train()
    probe.init_weights()
    probe.requires_grad_(True)
    optimizer = torch.optim.SGD(probe.parameters(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        probe.head(probe.backbone(torch.randn(2, 3, 32, 32))[-1].mean(dim=(2, 3))).sum().backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert not backbone.training and not any(p.requires_grad for p in backbone.parameters())
    assert set(probe.state_dict()) == {"head.weight", "head.bias"}


def test_a_checkpoint_of_the_head_alone_loads(capsys: pytest.CaptureFixture[str]) -> None:
    one, other = Probe(), Probe()
    assert other.load_state_dict(one.state_dict(), strict=True).missing_keys == []
    load_state_dict(other, one.state_dict(), strict=True)  # mmengine's own
    assert torch.equal(one.head.weight, other.head.weight)
    assert "missing" not in capsys.readouterr().out


def test_moving_the_model_moves_the_backbone() -> None:
    probe = Probe()
    mmlab.share({"name": "elsewhere"}, backbone := TinyBackbone("elsewhere", 0, (4,)))
    probe.backbone._frozen = (backbone,)
    probe.to(torch.float64)
    assert all(p.dtype == torch.float64 for p in backbone.parameters())
    probe.to("meta")
    assert all(p.device.type == "meta" for p in backbone.parameters())


def test_one_backbone_for_several_tasks() -> None:
    assert frozen().backbone is frozen(weights=None, any_architecture=False).backbone
    assert frozen().backbone is not frozen(seed=4).backbone
    mine = TinyBackbone("tiny-cnn", 9, (4, 8, 16, 32))
    mmlab.share({"name": "tiny-cnn", "seed": 9}, mine)
    assert frozen(seed=9).backbone is mine
    frozen(seed=10), frozen(seed=11)
    assert frozen(seed=9).backbone is not mine  # only the last two are kept


def test_a_changed_weights_file_is_another_backbone(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    first = mmlab._share_key({"name": "x", "weights": path})
    assert mmlab._share_key({"name": "x", "weights": str(path)}) == first
    save_file({"a": torch.zeros(2)}, path)
    assert mmlab._share_key({"name": "x", "weights": path}) != first


def test_building_a_backbone_does_not_disturb_what_is_drawn_next() -> None:
    def next_numbers() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    mmlab._SHARED.clear()
    values = []
    for _ in range(2):  # built, then found
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        frozen(seed=12)
        values.append(next_numbers())
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "precision 'fp8' is not known; use fp32 or bf16"),
        ({"out_indices": (4,)}, "'tiny-cnn' has 4 feature maps"),
        ({"name": "tiny-cn"}, "did you mean"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        frozen(**options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_size_the_backbone_cannot_take_is_named() -> None:
    with pytest.raises(UserError, match=r"multiples of 32, not \(64, 50\)"):
        frozen()(torch.zeros(1, 3, 64, 50))


@pytest.mark.parametrize(("stride", "norm"), [(16, "LN"), (16, "GN"), (14, "LN")])
def test_pyramid_neck(stride: int, norm: str) -> None:
    neck = mmlab.SimpleFeaturePyramidNeck(12, 32, stride, norm=norm, num_outs=5)
    levels = neck((torch.zeros(1), torch.randn(2, 12, 8, 6)))
    assert [tuple(level.shape) for level in levels] == [
        (2, 32, h, w) for h, w in ((32, 24), (16, 12), (8, 6), (4, 3), (2, 2))
    ]
    assert torch.equal(levels[4], levels[3][..., ::2, ::2])


def test_resize_concat() -> None:
    fine, coarse = torch.randn(2, 3, 16, 8), torch.randn(2, 5, 4, 2)
    (both,) = mmlab.ResizeConcat((4, 16))((fine, coarse))
    assert both.shape == (2, 8, 16, 8) and torch.equal(both[:, :3], fine)
    up = torch.nn.functional.interpolate(coarse, (16, 8), mode="bilinear", align_corners=False)
    assert torch.equal(both[:, 3:], up)
    assert mmlab.ResizeConcat((4, 16), 8)((fine, coarse))[0].shape == (2, 8, 8, 4)
    assert list(mmlab.ResizeConcat((4,)).parameters()) == []
    with pytest.raises(ValueError, match="2 maps but 1 strides"):
        mmlab.ResizeConcat((4,))((fine, coarse))
