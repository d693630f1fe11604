"""timm models: the library's own numbers, any image size, and clear words where an architecture
cannot."""

from __future__ import annotations

import copy

import pytest
import timm
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
    images = torch.randn(2, 3, *backbone.data.size)
    with torch.inference_mode():
        model = backbone.model
        plain = len(set(backbone.strides)) == 1
        final, theirs = model.forward_intermediates(
            images, indices=list(backbone.data.layers), norm=plain
        )
        for mine, expected in zip(backbone(images), theirs, strict=True):
            torch.testing.assert_close(mine, expected)
        embedding = backbone.encode_image(images)
        torch.testing.assert_close(
            embedding, model.forward_head(model.forward_features(images), pre_logits=True)
        )
        torch.testing.assert_close(
            embedding, model.forward_head(final, pre_logits=True), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (2, 3), (4, 1)])
def test_other_sizes(backbone, rows, columns):
    """As timm's own model when told of the size; the original is left as it was."""
    size = rows * 2 * backbone.divisor, columns * 2 * backbone.divisor
    native = torch.randn(1, 3, *backbone.data.size)
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        before = backbone.encode_image(native)
        maps, embedding = backbone(images), backbone.encode_image(images)
        assert torch.equal(backbone.encode_image(native), before)
    assert [m.shape[-2:] for m in maps] == [(size[0] // s, size[1] // s) for s in backbone.strides]
    resized = copy.deepcopy(backbone.model)
    if hasattr(resized, "set_input_size"):
        if "swin" in backbone.architecture:
            # told of its size it takes smaller windows; a dynamic one keeps those it was trained
            # with
            return
        resized.set_input_size(size)
    with torch.inference_mode():
        torch.testing.assert_close(
            embedding, resized.forward_head(resized.forward_features(images), pre_logits=True)
        )


def test_another_pooling_is_another_backbone(tmp_path):
    """The weights are the same, and so is the architecture's name; the embedding is not."""
    original = backbones.create("random/timm/test_resnet")
    pooled = []
    for pool in ("avg", "max"):
        path = tmp_path / f"{pool}.safetensors"
        original.model_config = {"global_pool": pool}
        save_backbone(path, original)
        pooled.append(backbones.create("timm/test_resnet", weights=path))
    images = torch.randn(1, 3, 64, 64)
    assert not torch.allclose(*(each.encode_image(images) for each in pooled))
    assert (
        pooled[0].weights.sha256 == pooled[1].weights.sha256 and pooled[0].key() != pooled[1].key()
    )


def test_names():
    with pytest.raises(UserError, match="timm has no model 'resnt18'; did you mean resnet18"):
        backbones.create("timm/resnt18")
    with pytest.raises(UserError, match="no weights 'nonsense' of resnet18; known: a1_in1k, "):
        backbones.create("timm/resnet18.nonsense")
    without = next(n for n in timm.list_models("vit_*") if not timm.get_pretrained_cfg(n).hf_hub_id)
    with pytest.raises(
        UserError, match=f"no weights for 'timm/{without}'; pass --weights FILE, or ask for random/"
    ):
        backbones.create(f"timm/{without}")


def test_architectures_of_one_size_say_so():
    backbone = backbones.create("random/timm/convit_tiny")
    assert backbone(torch.zeros(1, 3, 224, 224))[0].shape == (1, 192, 14, 14)
    for call in (backbone, backbone.encode_image):
        with pytest.raises(
            UserError, match="timm/convit_tiny takes images of 224×224 only, not 64×96"
        ):
            call(torch.zeros(1, 3, 64, 96))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("pit_xs_224", "integer strides .maps of 224×224 are 27×27"),
        ("crossvit_tiny_240", "no feature maps at strides"),
    ],
)
def test_architectures_without_a_grid_are_refused(name, why):
    with pytest.raises(UserError, match=why):
        backbones.create(f"random/timm/{name}")
