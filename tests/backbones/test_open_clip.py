"""open_clip models: the library's own numbers at the native size, sensible maps at every other."""

from __future__ import annotations

import copy

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
    images = torch.randn(2, 3, *backbone.data.size)
    with torch.inference_mode():
        # torch's fused attention of one path and the plain one of the other differ in the last bits
        torch.testing.assert_close(
            backbone.encode_image(images), backbone.model.encode_image(images)
        )
        theirs = backbone.model.forward_intermediates(
            image=images,
            image_indices=list(backbone.data.layers),
            normalize_intermediates=True,
            intermediates_only=True,
            image_output_fmt="NCHW",
        )["image_intermediates"]
        for mine, expected in zip(backbone(images), theirs, strict=True):
            torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("size", [(96, 96), (48, 120)])
def test_another_size_is_as_if_built_at_it(size):
    """open_clip resizes position embeddings when it loads weights into a model of another size; so
    do we."""
    backbone = backbones.create("open_clip/Mini", seed=5)
    config = copy.deepcopy(CONFIG)
    config["vision_cfg"]["image_size"] = size
    built, state = build_model(config).eval().requires_grad_(False), backbone.model.state_dict()
    resize_pos_embed(state, built)
    built.load_state_dict(state)
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        torch.testing.assert_close(backbone.encode_image(images), built.encode_image(images))
        theirs = built.forward_intermediates(
            image=images,
            image_indices=[0, 1],
            normalize_intermediates=True,
            intermediates_only=True,
        )["image_intermediates"]
        for mine, expected in zip(backbone(images), theirs, strict=True):
            torch.testing.assert_close(mine, expected)


def test_names():
    with pytest.raises(UserError, match="did you mean ViT-B-16"):
        backbones.create("open_clip/ViT-B16")
    with pytest.raises(UserError, match="no weights 'nonsense' of ViT-B-16; known: openai, "):
        backbones.create("open_clip/ViT-B-16/nonsense")
    with pytest.raises(
        UserError, match="other activation; ask for open_clip/ViT-B-16-quickgelu/openai"
    ):
        backbones.create("open_clip/ViT-B-16/openai")
    with pytest.raises(
        UserError, match=r"no network .* config.json of https://huggingface.co/roberta-base"
    ):
        backbones.create("open_clip/roberta-ViT-B-32")


def test_a_tokenizer_on_the_hub_is_named(monkeypatch):
    config = copy.deepcopy(CONFIG)
    config["text_cfg"]["hf_tokenizer_name"] = "timm/ViT-B-16-SigLIP"
    monkeypatch.setitem(factory._MODEL_CONFIGS, "Foreign", config)
    backbone = backbones.create("open_clip/Foreign")
    assert backbone.encode_image(torch.zeros(1, 3, 64, 64)).shape == (1, 32)
    with pytest.raises(
        UserError, match=r"no tokenizer for 'open_clip/Foreign'.*timm/ViT-B-16-SigLIP"
    ):
        backbone.encode_text(["a dog"])
