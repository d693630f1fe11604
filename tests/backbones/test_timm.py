"""timm models: the library's own numbers, any image size, and clear words where an architecture
cannot."""

from __future__ import annotations

import copy

import pytest
import torch

import backbones
from backbones.adapters.timm import build
from backbones.checkpoint import save_backbone
from backbones.registry import Request
from cliptex_common.errors import UserError

ARCHITECTURES = [
    "test_vit",
    "resnet18",
    "test_efficientnet",
    "beit_base_patch16_224",
    "swin_tiny_patch4_window7_224",
    "vit_relpos_small_patch16_224",
    "deit3_small_patch16_224",
    "test_convnext",
    "mobilenetv3_small_050",
]
THIN = {
    "beit_base_patch16_224": {"embed_dim": 96, "num_heads": 3, "init_values": 1.0},
    "deit3_small_patch16_224": {"embed_dim": 96, "num_heads": 3, "init_values": 1.0},
    "vit_relpos_small_patch16_224": {"embed_dim": 96, "num_heads": 3},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "num_heads": (1, 2, 4, 8)},
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def backbone(request):
    """A backbone of each kind of architecture: ViTs with and without dynamic sizes, windows,
    CNNs."""
    torch.manual_seed(0)
    arch = request.param
    settings = {"model_args": THIN.get(arch, {})}
    created = build(Request(f"timm/{arch}", settings, random=True)).freeze()
    # position tables start as zeros in some architectures, where a wrong resize would not show
    for name, parameter in created.named_parameters():
        if "pos_embed" in name or "relative_position_bias_table" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return created


def test_the_library_s_own_numbers_at_the_native_size(backbone):
    images, model = torch.randn(2, 3, *backbone.data.size), backbone.model
    plain = len(set(backbone.strides)) == 1
    with torch.inference_mode():
        final, maps = model.forward_intermediates(
            images, indices=list(backbone.data.layers), norm=plain
        )
        for mine, theirs in zip(backbone(images), maps, strict=True):
            torch.testing.assert_close(mine, theirs)
        mine = backbone.encode_image(images)
        theirs, pooled = (
            model.forward_head(features, pre_logits=True)
            for features in (model.forward_features(images), final)
        )
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(mine, pooled, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (2, 3), (4, 1)])
def test_other_sizes(backbone, rows, columns):
    """As timm's own model when told of the size; the original is left as it was."""
    size = rows * 2 * backbone.divisor, columns * 2 * backbone.divisor
    native, images = torch.randn(1, 3, *backbone.data.size), torch.randn(2, 3, *size)
    resized = copy.deepcopy(backbone.model)
    # told of its size Swin takes smaller windows; a dynamic one keeps those it was trained with
    is_swin = "swin" in backbone.architecture
    if hasattr(resized, "set_input_size") and not is_swin:
        resized.set_input_size(size)
    with torch.inference_mode():
        before = backbone.encode_image(native)
        maps, embedding = backbone(images), backbone.encode_image(images)
        assert torch.equal(backbone.encode_image(native), before)
        assert [m.shape[-2:] for m in maps] == [
            (size[0] // s, size[1] // s) for s in backbone.strides
        ]
        if not is_swin:
            theirs = resized.forward_head(resized.forward_features(images), pre_logits=True)
            torch.testing.assert_close(embedding, theirs)


def test_another_pooling_is_another_backbone(tmp_path):
    """The weights are the same, and so is the architecture's name; the embedding is not."""
    original, pooled = backbones.create("random/timm/test_resnet"), []
    for pool in ("avg", "max"):
        path = tmp_path / f"{pool}.safetensors"
        original.model_config = {"global_pool": pool}
        save_backbone(path, original)
        pooled.append(backbones.create("timm/test_resnet", weights=path))
    images = torch.randn(1, 3, 64, 64)
    assert not torch.allclose(*(each.encode_image(images) for each in pooled))
    assert len({each.weights.sha256 for each in pooled}) == 1
    assert len({each.key() for each in pooled}) == 2


def test_architectures_of_one_size_say_so():
    backbone = backbones.create("random/timm/convit_tiny")
    assert backbone(torch.zeros(1, 3, 224, 224))[0].shape == (1, 192, 14, 14)
    message = "timm/convit_tiny takes images of 224×224 only, not 64×96"
    for call in (backbone, backbone.encode_image):
        with pytest.raises(UserError, match=message):
            call(torch.zeros(1, 3, 64, 96))
