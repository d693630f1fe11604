"""Names: the registry, families, random initialisation, and what other packages bring."""

from __future__ import annotations

from dataclasses import replace

import open_clip
import pytest
import timm
import torch

import backbones
from backbones.checkpoint import Checkpoint, save_checkpoint
from backbones.cliptex.recipes import subsets
from cliptex_common.errors import UserError

NAMED = (
    "aimv2-l14 beit-b16 c-radio-b16 c-radio-l16 capi-l14 clip clip-ft clip-openai cliptex"
    " cliptex-both cliptex-manual deit3-b16 dinov2-b14 dinov2-l14 dinov2-reg-b14 dinov2-reg-l14"
    " dinov3-b16 dinov3-l16 efficientnet-lite0 efficientnet-lite1 efficientnet-lite2"
    " franca-b14 franca-l14 mae-b16 pe-b16 pe-l14 random resnet50 siglip siglip2-b16 siglip2-l16"
)


def test_named_backbones():
    ours = [name for name in backbones.names() if backbones.find(name).about != "for tests"]
    assert ours == sorted({*NAMED.split(), *subsets()})
    for name in backbones.names():
        entry = backbones.BACKBONES[name]
        assert entry.name == name
        assert entry.about and entry.licence and "\n" not in entry.about


@pytest.mark.parametrize("name", [n for n in backbones.names() if backbones.find(n).download])
def test_named_entries_name_real_weights(name):
    entry = backbones.find(name)
    family, _, architecture = entry.settings.get("architecture", "").partition("/")
    if family == "timm":
        config = timm.get_pretrained_cfg(architecture)
        assert config.hf_hub_id == entry.download
        if config.license.startswith(("apache", "cc-")):
            assert config.license == entry.licence.lower()
    elif family == "open_clip":
        config = open_clip.get_pretrained_cfg(architecture, entry.settings["pretrained"])
        assert config["hf_hub"] == entry.download + "/"
    else:
        repository = entry.settings["entry"].rpartition(":")[0]
        assert entry.download == f"github.com/{repository}"


def test_what_builds_nothing_is_named(monkeypatch):
    entry = backbones.Entry("nothing", "for tests", "", lambda request: None)
    monkeypatch.setitem(backbones.BACKBONES, "nothing", entry)
    with pytest.raises(UserError, match="nothing is no backbone: what builds it returned None"):
        backbones.create("nothing")


WITHOUT = next(n for n in timm.list_models("vit_*") if not timm.get_pretrained_cfg(n).hf_hub_id)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clpi", "did you mean clip"),
        ("dinov2-b", "did you mean dinov2-b14"),
        ("efficientnet_lite0", "did you mean efficientnet-lite0"),
        ("random/clpi", "did you mean clip"),
        ("timm/", r"timm/NAME\[.TAG\]"),
        ("timm/resnt18", "timm has no model 'resnt18'; did you mean resnet18"),
        ("timm/resnet18.nonsense", "no weights 'nonsense' of resnet18; known: a1_in1k, "),
        (f"timm/{WITHOUT}", f"for 'timm/{WITHOUT}'; pass --weights FILE, or ask for random/"),
        ("random/timm/pit_xs_224", "integer strides .maps of 224×224 are 27×27"),
        ("random/timm/crossvit_tiny_240", "no feature maps at strides"),
        ("open_clip/ViT-B16", "did you mean ViT-B-16"),
        ("open_clip/ViT-B-16/nonsense", "no weights 'nonsense' of ViT-B-16; known: openai, "),
        ("open_clip/ViT-B-16/openai", "activation; ask for open_clip/ViT-B-16-quickgelu/openai"),
        (
            "open_clip/roberta-ViT-B-32",
            "no network .* config.json of https://huggingface.co/roberta-base",
        ),
    ],
)
def test_names_that_cannot_be_built(name, message):
    with pytest.raises(UserError, match=message) as caught:
        backbones.create(name)
    assert "\n" not in str(caught.value)


def test_random_takes_any_name_and_no_weights(tmp_path):
    backbone = backbones.create("random/timm/resnet18.a1_in1k", seed=4)
    assert backbone.name == "random/timm/resnet18.a1_in1k"
    assert backbone.weights.source == "random(seed=4)"
    with pytest.raises(UserError, match="randomly initialised; ask for 'timm/resnet18'"):
        backbones.create("random/timm/resnet18", weights=tmp_path / "w")


def test_ablations_are_built_as_cliptex_is():
    cliptex = backbones.find("cliptex")
    assert len(subsets()) == 7
    for name, experts in subsets().items():
        entry = backbones.find(name)
        assert entry == replace(cliptex, name=name, about=entry.about)
        assert all(expert in entry.about for expert in experts if name != "cliptex")


@pytest.mark.parametrize("name", ["cliptex", "clip-ft", "cliptex-seg-depth"])
def test_our_own_recipes_say_how_to_make_their_weights(name):
    with pytest.raises(
        UserError, match=f"benchmark train --recipe {name}.* --weights FILE.*--suite mini"
    ):
        backbones.create(name)


@pytest.mark.parametrize(
    ("name", "any_architecture"), [("cliptex", False), ("hub/good/repo:net", True)]
)
def test_a_file_does_not_choose_whose_code_runs(tmp_path, monkeypatch, name, any_architecture):
    monkeypatch.setattr(
        torch.hub, "load", lambda *words, **named: pytest.fail("code was asked for")
    )
    file = tmp_path / "w.safetensors"
    data = backbones.DataConfig((32, 32), (0.5,) * 3, (0.5,) * 3, layers=(0,))
    save_checkpoint(Checkpoint(file, {"a": torch.zeros(1)}, "hub/evil/repo:main:pwn", {}, data))
    with pytest.raises(UserError, match="--backbone hub/evil/repo:main:pwn --weights"):
        backbones.create(name, weights=file, any_architecture=any_architecture)
