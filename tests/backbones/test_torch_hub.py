"""``hub/REPO:ENTRY``: a local folder, and a repository that nobody has said to trust."""

from __future__ import annotations

import shutil
from unittest.mock import Mock

import pytest
import torch

import backbones
from backbones.adapters import torch_hub
from backbones.checkpoint import save_backbone
from cliptex_common.errors import UserError
from tests.backbones.hub_repo import HUB_REPO


@pytest.mark.parametrize("entry", ["dino_like", "capi_like"])
def test_tokens_of_both_interfaces(entry):
    torch.manual_seed(2)
    backbone, images = backbones.create(f"hub/{HUB_REPO}:{entry}"), torch.randn(2, 3, 28, 42)
    model = backbone.model
    with torch.inference_mode():
        if entry == "dino_like":
            layers = [model.norm(layer) for layer in model.layers(images)]
            embedding = layers[-1][:, 0]
        else:
            tokens, _, _ = model.prepare_tokens_and_drop(images, None)
            outputs = model.encoder(tokens, set(range(1, 5)))
            layers = [model.enc_norm(layer) for layer in outputs.values()]
            embedding = layers[-1][:, 2:].mean(dim=1)
        torch.testing.assert_close(backbone.encode_image(images), embedding)
        for feature_map, layer in zip(backbone(images), layers, strict=True):
            assert feature_map.shape[2:] == (2, 3)
            torch.testing.assert_close(feature_map.flatten(2).transpose(1, 2), layer[:, 2:])
        torch.testing.assert_close(backbone.encode_tokens(images, 2)[0][1], layers[-2][:, 2:])


def test_of_an_encoder_with_a_predictor_the_encoder_sees_one_frame_repeated():
    """As V-JEPA 2's entry points return it."""
    backbone, images = backbones.create(f"hub/{HUB_REPO}:video_like"), torch.randn(2, 3, 28, 42)
    with torch.inference_mode():
        backbone.model.out_layers = None
        expected = backbone.model(torch.stack([images, images], dim=2))
        feature_map = backbone(images)[-1]
        torch.testing.assert_close(backbone.encode_image(images), expected.mean(dim=1))
    torch.testing.assert_close(feature_map.flatten(2).transpose(1, 2), expected)
    assert backbone.data.size == (56, 56)
    backbone.model.hierarchical_layers = [1, 3]  # V-JEPA 2.1 has norms for some blocks only
    with pytest.raises(UserError, match="after blocks 1, 3 only, not after 2; ask for fewer"):
        backbone.encode_tokens(images, 2)


def test_the_code_is_part_of_the_identity(tmp_path):
    backbone = backbones.create(f"random/hub/{HUB_REPO}:dino_like")
    save_backbone(tmp_path / "w.safetensors", backbone)
    again = backbones.create(f"hub/{HUB_REPO}:dino_like", weights=tmp_path / "w.safetensors")
    assert again.key() == backbone.key()
    shutil.copytree(HUB_REPO, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "copy" / "hubconf.py").open("a") as file:
        file.write("# another version\n")
    changed = backbones.create(f"random/hub/{tmp_path / 'copy'}:dino_like")
    assert changed.weights.sha256 == backbone.weights.sha256
    assert changed.code_sha256 != backbone.code_sha256


@pytest.mark.parametrize(
    ("entry", "hint"),
    [
        ("dino_lik", "torch.hub cannot build .*dino_lik"),
        ("always_loaded", "argument 'pretrained'"),
        ("another_interface", "write a module"),
        ("no_module", "returns a str, not a module"),
    ],
)
def test_what_cannot_be_used_is_said(entry, hint):
    with pytest.raises(UserError, match=hint):
        backbones.create(f"random/hub/{HUB_REPO}:{entry}")


def test_a_repository_runs_only_where_it_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "trusted_list").touch()
    answer = Mock(side_effect=[EOFError, "n"])  # without a terminal, and at one
    monkeypatch.setattr("builtins.input", answer)
    once = "not said you trust; answer once, at a terminal: python -c"
    for message in (once, "Untrusted repository"):
        with pytest.raises(UserError, match=message):
            backbones.create("hub/somebody/repo:main:net")
        assert "Do you trust" in answer.call_args[0][0] and not list(tmp_path.glob("somebody*"))
    shutil.copytree(HUB_REPO, tmp_path / "somebody_repo_main")  # fetched before, so trusted
    name = "hub/somebody/repo:main:dino_like"
    assert backbones.create(name).architecture == name
