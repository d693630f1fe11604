"""``hf/REPO``: its tokens, embeddings and texts are those of transformers' own models, from a
folder as the hub has it."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model
from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

import backbones
from backbones.checkpoint import save_backbone
from cliptex_common.errors import UserError
from tests.backbones.thin import HF, VIT, configs, save_tokenizer

TRANSFORMERS = {**HF, **configs("transformers")}

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
    data = backbone.data
    assert backbone.weights.source == name and data.mean == (0.1, 0.2, 0.3)
    assert (data.size, data.crop_pct, data.interpolation) == ((32, 32), 0.8, "bilinear")


def created(folder, model, **config):
    """A backbone with random weights, whose tokenizer is the tests'."""
    config = {**(config or TRANSFORMERS[model]), "model_type": model}
    (folder / "config.json").write_text(json.dumps(config))
    save_tokenizer(folder)
    return backbones.create(f"random/hf/{folder}")


@pytest.mark.parametrize(
    ("model", "output"),
    [
        ("aimv2_vision_model", lambda outputs: outputs.pooler_output),  # an attention pool
        ("deit", lambda outputs: outputs.last_hidden_state[:, 0]),
        ("internvl_vision", lambda outputs: outputs.last_hidden_state[:, 1:].mean(dim=1)),
        ("pixio", lambda outputs: outputs.pooler_output),  # the mean of eight class tokens
        ("radio", lambda outputs: outputs.summary),
        ("siglip_vision_model", lambda outputs: outputs.pooler_output),  # an attention pool
    ],
)
def test_the_embedding_is_what_the_model_offers(model, output, tmp_path):
    backbone = created(tmp_path, model)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        outputs = backbone.model(images)
        torch.testing.assert_close(backbone.encode_image(images), output(outputs))
        patches = backbone(images)[-1].flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches, outputs.last_hidden_state[:, -16:])


@pytest.mark.parametrize("model", ["aimv2", "clip", "metaclip_2", "tipsv2", "siglip"])
def test_text_towers_are_those_that_the_model_offers(model, tmp_path):
    """The attention mask has a part in the embeddings of AIMv2 and TIPSv2; SigLIP reads lower case
    without one."""
    backbone, images = created(tmp_path, model), torch.randn(2, 3, 32, 32)
    ids = torch.tensor([[1, 4, 5, 2] + 12 * [0], [1, 4, 6, 2] + 12 * [0]])
    is_siglip = model == "siglip"
    mask = {} if is_siglip else {"attention_mask": (ids > 0).long()}
    with torch.inference_mode():
        expected = backbone.model.get_image_features(pixel_values=images).pooler_output
        torch.testing.assert_close(backbone.encode_image(images), expected)
        expected = backbone.model.get_text_features(ids, **mask).pooler_output
        texts = backbone.encode_text(["A Dog", "a CAT"] if is_siglip else ["a dog", "a cat"])
    torch.testing.assert_close(texts, expected)


def test_masked_autoencoders_see_every_patch_in_order(tmp_path):
    backbone, embedded = created(tmp_path, "vit_mae"), []
    images = torch.randn(1, 3, 24, 40)
    changed = images.clone()
    changed[..., :8, 8:16] += 3  # the second patch
    embeddings = backbone.vision.embeddings
    embeddings.register_forward_hook(lambda module, inputs, outputs: embedded.append(outputs[0]))
    with torch.inference_mode():
        assert torch.equal(backbone(images)[-1], backbone(images)[-1])
        backbone(changed)
    differs = (embedded[-1] != embedded[0]).any(dim=2)[0]
    assert embedded[0].shape == (1, 1 + 15, 32) and differs.nonzero().flatten().tolist() == [2]


def test_a_video_encoder_sees_a_clip_of_one_frame_repeated(tmp_path):
    backbone, images = created(tmp_path, "vjepa2"), torch.randn(2, 3, 32, 32)
    clip = torch.stack([images, images], dim=1)
    with torch.inference_mode():
        outputs = backbone.model(clip, skip_predictor=True).last_hidden_state
        feature_map, embedding = backbone(images)[-1], backbone.encode_image(images)
    torch.testing.assert_close(feature_map.flatten(2).transpose(1, 2), outputs)
    torch.testing.assert_close(embedding, outputs.mean(dim=1))
    assert backbone.fixed_size == (32, 32)
    with pytest.raises(UserError, match="hf/vjepa2 takes images of 32×32 only, not 32×40"):
        backbone(torch.zeros(1, 3, 32, 40))


def test_preprocessing_that_does_not_normalise(tmp_path):
    """RADIO takes values from 0 to 1; newer repositories nest the settings of images."""
    nested = {"image_processor": {**SQUASHED, "do_normalize": False}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    data = created(tmp_path, "radio").data
    assert (data.mean, data.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert data.squash and data.size == (32, 32)


def test_siglip2_takes_the_rows_of_its_processor(tmp_path):
    backbone, images, rows = created(tmp_path, "siglip2"), torch.randn(2, 3, 16, 24), []
    backbone.vision.register_forward_pre_hook(
        lambda module, inputs, named: rows.append(named["pixel_values"]), with_kwargs=True
    )
    backbone(images)
    for image, row in zip(images.numpy(), rows[0], strict=True):
        expected = torch.as_tensor(convert_image_to_patches(image, 8))
        torch.testing.assert_close(row, expected)


def test_weights_of_ones_own_remember_the_model(dino, tmp_path):
    backbone, path = backbones.create(dino[0]), tmp_path / "w.safetensors"
    save_backbone(path, backbone)
    assert backbones.create(dino[0], weights=path).key() == backbone.key()
    anywhere = backbones.create("cliptex", weights=path)  # without the folder
    assert anywhere.identity() == backbone.identity()


@pytest.mark.parametrize(
    ("prefix", "config", "message"),
    [
        ("random/", {"model_type": "new", "auto_map": {"AutoModel": "evil.Model"}}, "never run"),
        ("random/", {"model_type": "bert"}, "no image encoder"),
        ("", {"model_type": "dinov2", **VIT}, r"has no model\.safetensors"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, prefix, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message) as caught:
        backbones.create(f"{prefix}hf/{tmp_path}")
    assert "\n" not in str(caught.value)


def test_code_of_a_repository_is_never_run(tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')\n")
    code = {"AutoModel": "evil.M", "AutoConfig": "evil.C"}
    backbone = created(tmp_path, "dinov2", **Dinov2Config(**VIT).to_diff_dict(), auto_map=code)
    assert type(backbone.model).__module__.startswith("transformers.")
