"""open_clip models: the library's own numbers at the native size, sensible maps at every other."""

from __future__ import annotations

import open_clip.factory as factory
import pytest
import torch
from open_clip.model import resize_pos_embed

import backbones
from backbones.adapters.open_clip import build_model
from cliptex_common.errors import UserError
from tests.backbones.mini import CONFIG

RESNET = {
    **CONFIG,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32},
}
SIGLIP = {
    **CONFIG,
    "embed_dim": 64,
    "custom_text": True,
    "init_logit_bias": -10,
    "vision_cfg": {
        "image_size": 160,
        "timm_model_name": "test_vit",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
}


@pytest.fixture(autouse=True)
def small_architectures(monkeypatch):
    monkeypatch.setitem(factory._MODEL_CONFIGS, "Mini", CONFIG)
    monkeypatch.setitem(factory._MODEL_CONFIGS, "MiniRN", RESNET)
    monkeypatch.setitem(factory._MODEL_CONFIGS, "MiniSigLIP", SIGLIP)


@pytest.mark.parametrize("name", ["Mini", "MiniRN", "MiniSigLIP"])
def test_the_library_s_own_numbers_at_the_native_size(name):
    backbone = backbones.create(f"open_clip/{name}", seed=5)
    check_numbers(backbone, backbone.model, torch.randn(2, 3, *backbone.data.size))


@pytest.mark.parametrize("size", [(96, 96), (48, 120)])
def test_another_size_is_as_if_built_at_it(size):
    """open_clip resizes position embeddings when it loads weights into a model of another size; so
    do we."""
    backbone = backbones.create("open_clip/Mini", seed=5)
    vision = {**CONFIG["vision_cfg"], "image_size": size}
    built = build_model({**CONFIG, "vision_cfg": vision}).eval().requires_grad_(False)
    state = backbone.model.state_dict()
    resize_pos_embed(state, built)
    built.load_state_dict(state)
    check_numbers(backbone, built, torch.randn(2, 3, *size))


def check_numbers(backbone, model, images):
    """Embeddings and maps are those of open_clip's model."""
    options = {"normalize_intermediates": True, "intermediates_only": True}
    with torch.inference_mode():
        # torch's fused attention of one path and the plain one of the other differ in the last bits
        torch.testing.assert_close(backbone.encode_image(images), model.encode_image(images))
        theirs = model.forward_intermediates(
            image=images, image_indices=list(backbone.data.layers), **options
        )["image_intermediates"]
        for mine, expected in zip(backbone(images), theirs, strict=True):
            torch.testing.assert_close(mine, expected)


def test_a_tokenizer_on_the_hub_is_named(monkeypatch):
    text = {**CONFIG["text_cfg"], "hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "Foreign", {**CONFIG, "text_cfg": text})
    backbone = backbones.create("open_clip/Foreign")
    assert backbone.encode_image(torch.zeros(1, 3, 64, 64)).shape == (1, 32)
    message = r"no tokenizer for 'open_clip/Foreign'.*timm/ViT-B-16-SigLIP"
    with pytest.raises(UserError, match=message):
        backbone.encode_text(["a dog"])
