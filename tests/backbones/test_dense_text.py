"""Patches in the space of texts: what the tower gives when its pooling looks at one place alone.
(The golden record of TIPS proves a ViT's last attention.)"""

from types import SimpleNamespace

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer as TimmViT

import backbones
from backbones.adapters.open_clip import (
    OpenClipBackbone,
    _data,
    _encode_timm,
    build_model,
    can_be_dense,
)
from cliptex_common.errors import UserError

VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


def build(vision, embed_dim=16):
    torch.manual_seed(0)
    config = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": TEXT}
    model = build_model(config)
    for parameter in model.parameters():  # norms and biases that do something
        parameter.data += 0.02 * torch.randn_like(parameter)
    backbone = OpenClipBackbone(
        model, name="tiny", arch="tiny", model_config=config, data=_data(model, {}, {})
    )
    return backbone.freeze()


def test_an_average_is_the_mean_of_its_cells():
    vision = {
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 64,
    }
    backbone, images = build(vision), torch.randn(2, 3, 96, 64)
    dense = backbone.encode_dense(images)
    assert dense.shape == (2, 16, 3, 2)
    torch.testing.assert_close(
        dense.mean(dim=(2, 3)), backbone.encode_image(images), atol=1e-5, rtol=1e-4
    )


def test_attention_pooling_looks_at_one_place():
    """SigLIP's: of an image of one patch the pooled embedding is that of the patch."""
    torch.manual_seed(0)
    trunk = TimmViT(
        32,
        16,
        num_classes=0,
        global_pool="map",
        class_token=False,
        embed_dim=32,
        depth=1,
        num_heads=2,
    )
    trunk.set_input_size(16)
    visual = SimpleNamespace(trunk=trunk.eval(), head=torch.nn.Identity())
    image = torch.randn(1, 3, 16, 16)
    dense = _encode_timm(visual, image)
    assert dense.shape == (1, 32, 1, 1)
    torch.testing.assert_close(dense[..., 0, 0], trunk(image))
    trunk.set_input_size((32, 48))
    assert _encode_timm(visual, torch.randn(2, 3, 32, 48)).shape == (2, 32, 2, 3)


def test_clips_resnet():
    """Its pooling attends from the mean to all places: of one place it is that place."""
    backbone = build(
        {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}, embed_dim=32
    )
    backbone.model.visual.attnpool.positional_embedding.data.zero_()
    image = torch.randn(1, 3, 32, 32)
    dense = backbone.encode_dense(image)
    torch.testing.assert_close(dense[..., 0, 0], backbone.encode_image(image))
    assert backbone.encode_dense(torch.randn(1, 3, 64, 96)).shape == (1, 32, 2, 3)


def test_what_has_none_says_so():
    lite = backbones.create("random")
    assert not lite.has_dense_text
    with pytest.raises(UserError, match="not aligned with texts"):
        lite.encode_dense(torch.zeros(1, 3, 32, 32))
    assert not can_be_dense(torch.nn.Identity())
