"""Patches in the space of texts: what the tower gives when its pooling looks at one place alone.
(The golden record of TIPS proves a ViT's last attention.)"""

from types import SimpleNamespace

import open_clip.factory as factory
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import backbones
from backbones.adapters.open_clip import encode_dense
from cliptex_common.errors import UserError

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


def build(vision, embed_dim=16):
    config = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": TEXT}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(factory._MODEL_CONFIGS, "Tiny", config)
        backbone = backbones.create("open_clip/Tiny", seed=0)
    for parameter in backbone.parameters():  # norms and biases that do something
        parameter.data += 0.02 * torch.randn_like(parameter)
    return backbone


def test_an_average_is_the_mean_of_its_cells():
    pooling = {"timm_pool": "avg", "timm_proj": "linear"}
    backbone = build({"timm_model_name": "tf_efficientnet_lite0", "image_size": 64, **pooling})
    images = torch.randn(2, 3, 96, 64)
    dense = backbone.encode_dense(images)
    assert dense.shape == (2, 16, 3, 2)
    expected = backbone.encode_image(images)
    torch.testing.assert_close(dense.mean(dim=(2, 3)), expected, atol=1e-5, rtol=1e-4)


def test_attention_pooling_looks_at_one_place():
    """SigLIP's: of an image of one patch the pooled embedding is that of the patch."""
    torch.manual_seed(0)
    small = {"embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 0}
    trunk = VisionTransformer(16, 16, global_pool="map", class_token=False, **small).eval()
    visual = SimpleNamespace(trunk=trunk, head=torch.nn.Identity())
    image = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(encode_dense(visual, image)[..., 0, 0], trunk(image))
    trunk.set_input_size((32, 48))
    assert encode_dense(visual, torch.randn(2, 3, 32, 48)).shape == (2, 32, 2, 3)


def test_clips_resnet():
    """Its pooling attends from the mean to all places: of one place it is that place."""
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    backbone, image = build(vision, embed_dim=32), torch.randn(1, 3, 32, 32)
    backbone.model.visual.attnpool.positional_embedding.data.zero_()
    dense = backbone.encode_dense(image)
    torch.testing.assert_close(dense[..., 0, 0], backbone.encode_image(image))
    assert backbone.encode_dense(torch.randn(1, 3, 64, 96)).shape == (1, 32, 2, 3)


def test_what_has_none_says_so():
    lite = backbones.create("random")
    assert not lite.has_dense_text
    with pytest.raises(UserError, match="not aligned with texts"):
        lite.encode_dense(torch.zeros(1, 3, 32, 32))
