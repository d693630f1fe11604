"""Our modules under both libraries' scopes, and a backbone that nothing trains, saves
or initialises."""

import gc
import random
import weakref

import numpy as np
import pytest
import torch

from cliptex_common.errors import UserError
from probes.train import frozen_backbone
from tests.probes.tiny_mmlab import TinyBackbone

# isort: split


@pytest.fixture(autouse=True)
def nothing_shared():
    """Other tests share other backbones under these names; the last one alone is shared."""
    frozen_backbone.share({}, TinyBackbone("none", 0, (4,)))


def frozen(**options: object) -> frozen_backbone.FrozenBackbone:
    return frozen_backbone.FrozenBackbone(**{"name": "tiny-cnn", "seed": 3, **options})


def test_maps_are_those_of_the_backbone():
    images = torch.randn(2, 3, 64, 96, requires_grad=True)
    module = frozen()
    maps = module(images)
    shapes = [(2, c, 64 // s, 96 // s) for c, s in ((8, 4), (16, 8), (24, 16), (32, 32))]
    assert [tuple(each.shape) for each in maps] == shapes
    assert not any(each.requires_grad for each in maps)
    # channels-last rounds differently in the last bits
    expected = module.backbone(images.contiguous(memory_format=torch.channels_last))
    for ours, exact, plain in zip(maps, expected, module.backbone(images), strict=True):
        assert torch.equal(ours, exact) and ours.is_contiguous()
        torch.testing.assert_close(ours, plain)
    last, first = frozen(out_indices=(-1, 0))(images)
    assert torch.equal(last, expected[3]) and torch.equal(first, expected[0])


def test_bf16_is_close_and_returned_in_float32():
    images = torch.randn(1, 3, 64, 64)
    exact, rounded = frozen()(images), frozen(precision="bf16")(images)
    assert all(each.dtype == torch.float32 for each in rounded)
    assert not torch.equal(exact[-1], rounded[-1])
    torch.testing.assert_close(exact[-1], rounded[-1], rtol=0.05, atol=0.05)


def test_the_backbone_is_exact_under_the_autocast_of_the_heads():
    module, images = frozen(), torch.randn(1, 3, 64, 64)
    expected = module(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, module(images), expected))


def test_moving_the_model_moves_the_backbone():
    backbone = TinyBackbone("elsewhere", 0, (4,))
    frozen_backbone.share({"name": "elsewhere"}, backbone)
    module = torch.nn.Sequential(frozen_backbone.FrozenBackbone(name="elsewhere"))
    module.to("meta")
    assert all(parameter.device.type == "meta" for parameter in backbone.parameters())


def test_a_backbone_that_nothing_uses_is_not_kept():
    backbone = TinyBackbone("unused", 0, (4,))
    frozen_backbone.share({"name": "unused"}, backbone)
    reference = weakref.ref(backbone)
    del backbone
    gc.collect()
    assert reference() is None


def test_building_a_backbone_does_not_change_the_random_numbers():
    numbers, modules = [], []
    for _ in range(2):  # built, then shared
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        modules.append(frozen(seed=12))
        numbers.append((random.random(), np.random.rand(), float(torch.rand(()))))
    assert numbers[0] == numbers[1]


def test_a_size_that_the_backbone_cannot_take_is_named():
    with pytest.raises(UserError, match=r"multiples of 32, not \(64, 50\)"):
        frozen()(torch.zeros(1, 3, 64, 50))


def test_heads_share_what_they_compute_within_one_batch():
    same, second_map = [frozen(), frozen()], frozen(out_indices=(1,))
    images = torch.randn(2, 3, 64, 64)
    with frozen_backbone.one_batch():
        maps = same[0](images)
        assert same[1](images) is maps is not same[0](images.clone())
        assert second_map(images)[0].shape == (2, 16, 8, 8)
        assert same[0](images[:1])[0].shape == (1, 8, 16, 16)  # a view of the same memory
    assert same[0](images) is not maps
