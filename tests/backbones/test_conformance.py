"""What every backbone must do, checked on every entry of the registry and on typical members of the
families."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import backbones
from backbones.backbone import state_sha256
from tests.backbones import thin


@pytest.fixture(scope="module", autouse=True)
def repositories(tmp_path_factory):
    with thin.repositories(tmp_path_factory.mktemp("hf")):
        yield


@pytest.fixture(scope="module", params=thin.PARAMS)
def name(request):
    """Names to build; the ViT-B ones made thin (all their blocks, fewer channels), to be built
    quickly."""
    with thin.thin(request.param) as name:
        yield name


@pytest.fixture(scope="module")
def backbone(name):
    return backbones.create(name, seed=0)


def images(backbone, rows: int, columns: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(
        count, 3, rows * backbone.divisor, columns * backbone.divisor, generator=generator
    )


def outputs(backbone, batch) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [*backbone(batch), backbone.encode_image(batch)]


@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (2, 5)])
def test_shapes_are_those_declared_and_images_independent(backbone, rows, columns):
    batch = images(backbone, rows, columns)
    height, width = batch.shape[-2:]
    both, again, alone = (outputs(backbone, each) for each in (batch, batch, batch[:1]))
    assert [output.shape for output in both] == [
        *(
            (2, channels, height // stride, width // stride)
            for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
        ),
        (2, backbone.embed_dim),
    ]
    for output, same, first in zip(both, again, alone, strict=True):
        assert output.dtype == torch.float32 and torch.isfinite(output).all()
        assert torch.equal(output, same)
        torch.testing.assert_close(output[:1], first, atol=2e-4, rtol=2e-3)


def test_frozen_means_frozen(backbone):
    batch = images(backbone, 2, 2)
    before, state = outputs(backbone, batch), state_sha256(backbone.state_dict())
    assert not any(p.requires_grad for p in backbone.parameters())
    probe = nn.Conv2d(backbone.channels[-1], 4, 1)
    model = nn.ModuleList([backbone, probe]).train()
    assert not any(module.training for module in backbone.modules())
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1)
    loss = probe(backbone(batch)[-1]).square().mean() + 0 * backbone.encode_image(batch).sum()
    loss.backward()
    optimiser.step()
    assert probe.weight.grad.abs().sum() > 0
    assert state_sha256(backbone.state_dict()) == state
    assert all(map(torch.equal, before, outputs(backbone, batch)))


def test_identity_is_that_of_the_weights(backbone, name):
    assert backbone.weights.sha256 == state_sha256(backbone.model_state())
    assert backbone.weights.licence and backbone.weights.source
    torch.manual_seed(123)
    here = torch.random.get_rng_state()
    again, reseeded = (backbones.create(name, seed=seed) for seed in (0, 1))
    assert torch.equal(torch.random.get_rng_state(), here), "the caller's random state is moved"
    assert again.key() == backbone.key()
    if name != "efficientnet-lite0":
        assert reseeded.weights.sha256 != backbone.weights.sha256
        assert reseeded.key() != backbone.key()


def test_features_before_the_projection_are_what_is_projected(backbone):
    batch = images(backbone, 2, 2)
    with torch.inference_mode():
        features, embedding = backbone.encode_features(batch), backbone.encode_image(batch)
    assert features.ndim == 2 and torch.isfinite(features).all()
    visual = getattr(backbone.model, "visual", None)
    head = getattr(getattr(visual, "trunk", None), "head", None)
    if hasattr(backbone.model, "visual_projection"):  # transformers' CLIP and MetaCLIP 2
        features = backbone.model.visual_projection(features)
    elif isinstance(head, nn.Linear):  # Perception Encoder in timm
        features = head(features)
    elif getattr(visual, "proj", None) is not None:  # else it has no projection of its own
        features = features @ visual.proj
    torch.testing.assert_close(features, embedding)


def test_tokens_of_the_last_blocks(backbone):
    """Through the final norm: the last ones are what the embedding, and the last map read, are made
    of."""
    batch = images(backbone, 2, 3)
    with torch.inference_mode():
        (final,), two = backbone.encode_tokens(batch, 1), backbone.encode_tokens(batch, 2)
        *_, last = backbone(batch)
        features = backbone.encode_features(batch)
    assert len(two) == 2 and all(torch.equal(a, b) for a, b in zip(final, two[-1], strict=True))
    token, patches = final
    assert token.shape == (2, backbone.channels[-1]) and torch.isfinite(token).all()
    torch.testing.assert_close(patches, last.flatten(2).transpose(1, 2))
    if backbone.architecture.startswith("open_clip/ViT") and "SigLIP" not in backbone.architecture:
        torch.testing.assert_close(token, features)
    if len(set(backbone.strides)) > 1:
        torch.testing.assert_close(token, last.mean(dim=(2, 3)))
    with pytest.raises(backbones.UserError, match="maps to read, not 99; ask for fewer"):
        backbone.encode_tokens(batch, 99)


def test_whatever_the_number_follows_from_is_in_the_identity(backbone, monkeypatch):
    key = backbone.key()
    assert backbone.identity()["model_config"] == backbone.model_config
    assert set(backbone.identity()["adapter"]) == {"version", *backbone.libraries}
    monkeypatch.setattr(type(backbone), "version", 99)
    assert backbone.key() != key
    monkeypatch.undo()
    monkeypatch.setattr("backbones.backbone.versions", lambda *names: dict.fromkeys(names, "0.0"))
    assert backbone.key() != key


def test_data_config_is_sane(backbone):
    data = backbone.data
    assert all(32 <= side <= 1024 for side in data.size)
    assert all(0 < value < 1 for value in (*data.mean, *data.std))
    assert data.interpolation in ("bilinear", "bicubic")
    assert 0.5 < data.crop_pct <= 1
    assert len(data.layers) == len(backbone.channels) == len(backbone.strides)
    assert list(data.layers) == sorted(set(data.layers))
    assert backbone.divisor == max(backbone.strides)


def test_names_and_text(backbone, name):
    assert backbone.name == name
    is_open_clip = backbone.architecture.startswith("open_clip/")
    assert backbone.has_text == (is_open_clip or "text_config" in backbone.model_config)
    if not backbone.has_text:
        with pytest.raises(backbones.UserError, match="no text tower"):
            backbone.encode_text(["a dog"])
    elif "hf_tokenizer_name" not in backbone.model_config.get("text_cfg", ()):
        with torch.inference_mode():
            dog, cat, same = backbone.encode_text(["a dog", "a cat", "a dog"])
        assert dog.shape == (backbone.embed_dim,)
        assert torch.allclose(dog, same, atol=1e-5)
        assert not torch.allclose(dog, cat, atol=1e-5)


def test_follows_the_dtype_it_is_moved_to(backbone):
    batch = images(backbone, 2, 3, count=1)
    outputs(backbone, batch)  # a size other than the native one is remembered in float32 …
    try:
        with torch.inference_mode():
            feature_map = backbone.to(torch.bfloat16)(batch.bfloat16())[-1]
        assert feature_map.dtype == torch.bfloat16  # … and must not be used now
    finally:
        backbone.float()


def test_large_entries_are_as_their_base():
    for large, base in thin.LARGE.items():
        big, small = backbones.find(large), backbones.find(base)
        assert (big.build, big.licence) == (small.build, small.licence) and "L/1" in big.about
        assert big.settings.keys() - {"layers"} == small.settings.keys() - {"layers"}


@pytest.mark.parametrize(("name", "stride"), [("clip", 16), ("dinov2-b14", 14)])
def test_full_size_entries_read_vit_b(name, stride):
    backbone = backbones.create(f"random/{name}")
    assert backbone.channels == (768,) * 4
    assert backbone.strides == (stride,) * 4
    assert backbone.data.layers == (2, 5, 8, 11)
    assert backbone(torch.zeros(1, 3, 2 * stride, 3 * stride))[0].shape == (1, 768, 2, 3)
