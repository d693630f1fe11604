"""``hf/REPO``: its tokens, embeddings and texts are those of transformers' own models, from a
folder as the hub has it."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    PixioConfig,
    PixioModel,
    ResNetBackbone,
    ResNetConfig,
    ViTMAEConfig,
)
from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

import backbones
from backbones import UserError
from tests.backbones.mini import save_backbone
from tests.backbones.thin import HF, TEXT, VIT, save_tokenizer

CROPPED = {
    "do_center_crop": True,
    "size": {"shortest_edge": 40},
    "crop_size": {"height": 32, "width": 32},
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "resample": 2,
}
SQUASHED = {**CROPPED, "do_center_crop": None, "size": {"height": 32, "width": 32}, "resample": 3}


def saved(folder, model, preprocessing):
    """A folder as the hub has it."""
    model.eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return f"hf/{folder}"


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    torch.manual_seed(3)
    model = Dinov2Model(Dinov2Config(**VIT))
    return saved(tmp_path_factory.mktemp("dino"), model, CROPPED), model


def test_tokens_are_those_of_the_model(dino):
    name, model = dino
    backbone, images = backbones.create(name), torch.randn(2, 3, 24, 40)
    with torch.inference_mode():
        outputs = model(images, output_hidden_states=True)
        (before, after), maps = backbone.encode_tokens(images, 2), backbone(images)
        first, third = (model.layernorm(outputs.hidden_states[layer])[:, 1:] for layer in (1, 3))
    torch.testing.assert_close(after[0], outputs.pooler_output)
    torch.testing.assert_close(after[1], outputs.last_hidden_state[:, 1:])
    torch.testing.assert_close(before[1], third)
    assert [tuple(each.shape) for each in maps] == [(2, 32, 3, 5)] * 4
    torch.testing.assert_close(maps[0][:, :, 1, 2], first[:, 5 + 2])
    assert backbone.weights.source == name and backbone.data.mean == (0.1, 0.2, 0.3)
    assert (backbone.data.size, backbone.data.crop_pct, backbone.data.interpolation) == (
        (32, 32),
        0.8,
        "bilinear",
    )


def test_the_class_token_of_pixio_is_the_mean_of_its_eight(tmp_path):
    model = PixioModel(PixioConfig(**VIT))
    backbone, images = backbones.create(saved(tmp_path, model, CROPPED)), torch.randn(2, 3, 24, 40)
    with torch.inference_mode():
        expected = model(images)
        layers = backbone.encode_layers(images)
    torch.testing.assert_close(layers[-1][0], expected.pooler_output)
    patches = layers[-1][1].flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches, expected.last_hidden_state[:, 8:])
    torch.testing.assert_close(backbone.encode_image(images), expected.pooler_output)


def test_clip_images_and_texts(tmp_path):
    torch.manual_seed(4)
    model = CLIPModel(CLIPConfig(vision_config=VIT, text_config=TEXT, projection_dim=16))
    save_tokenizer(tmp_path)
    backbone, images = backbones.create(saved(tmp_path, model, SQUASHED)), torch.randn(2, 3, 32, 32)
    ids = torch.tensor([[1, 4, 5, 2], [1, 4, 6, 2]])
    with torch.inference_mode():
        torch.testing.assert_close(
            backbone.encode_image(images), model.get_image_features(images).pooler_output
        )
        expected = model.get_text_features(ids, attention_mask=torch.ones_like(ids)).pooler_output
        torch.testing.assert_close(
            backbone.encode_text(["a dog", "A cat"]), expected
        )  # padding means nothing to it
        wide = backbone(torch.randn(1, 3, 16, 48))[0]
    assert (
        wide.shape == (1, 32, 2, 6)
        and backbone.data.squash
        and backbone.data.interpolation == "bicubic"
    )


def test_siglip2_takes_the_rows_of_its_processor(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2", **HF["siglip2"]}))
    backbone, images = backbones.create(f"random/hf/{tmp_path}"), torch.randn(2, 3, 16, 24)
    rows = backbone._inputs(images)["pixel_values"]
    expected = torch.stack(
        [torch.as_tensor(convert_image_to_patches(i.numpy(), 8)) for i in images]
    )
    torch.testing.assert_close(rows, expected)


def test_stages_come_from_auto_backbone(tmp_path):
    torch.manual_seed(5)
    config = ResNetConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], embedding_size=8)
    model = ResNetBackbone(config)
    backbone, images = (
        backbones.create(saved(tmp_path, model, {"crop_size": 32, **SQUASHED})),
        torch.randn(1, 3, 64, 96),
    )
    with torch.inference_mode():
        torch.testing.assert_close(backbone(images)[-1], model(images).feature_maps[-1])
    assert (backbone.strides, backbone.channels) == ((4, 8, 16, 32), (8, 16, 24, 32))


def test_weights_of_ones_own_remember_the_model(dino, tmp_path):
    name, _ = dino
    backbone = backbones.create(name)
    save_backbone(tmp_path / "w.safetensors", backbone)
    again = backbones.create(name, weights=tmp_path / "w.safetensors")
    assert again.key() == backbone.key()
    anywhere = backbones.create("cliptex", weights=tmp_path / "w.safetensors")  # without the folder
    assert anywhere.identity() == backbone.identity()


def test_what_cannot_be_read_is_said(tmp_path):
    def error_of(model, **config):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model, **config}))
        with pytest.raises(UserError) as caught:
            backbones.create(f"random/hf/{tmp_path}")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    mae = ViTMAEConfig(**VIT).to_diff_dict()
    assert "for 24 patches" in error_of("vit_mae", **mae) and "template.py" in error_of(
        "vit_mae", **mae
    )
    assert "never run" in error_of("somebodys", auto_map={"AutoModel": "evil.Model"})
    assert "no image encoder" in error_of("bert")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2", **VIT}))
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        backbones.create(f"hf/{tmp_path}")


def test_code_of_a_repository_is_never_run(tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')\n")
    config = {
        **Dinov2Config(**VIT).to_diff_dict(),
        "auto_map": {"AutoModel": "evil.M", "AutoConfig": "evil.C"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    backbone = backbones.create(
        f"random/hf/{tmp_path}"
    )  # a model that transformers knows is its own
    assert type(backbone.model).__module__.startswith("transformers.")
