"""Modules of a user's file: what a trial pass finds, what is refused, and what identifies them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import backbones
from benchmark.tasks import describe_backbone
from benchmark.unit import Unit
from cliptex_common import registry
from cliptex_common.errors import UserError
from cliptex_common.settings import split_words

FILE = '''
import torch
from torch import nn

from backbones import Backbone, DataConfig

model = nn.Identity()  # a config file of MMEngine states a model, too
SMALL = DataConfig((64, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Tokens(nn.Module):
    """Patch tokens after ``prefix`` others, of each of ``blocks`` blocks."""

    data = SMALL

    def __init__(self, prefix=0, blocks=1):
        super().__init__()
        self.conv, self.blocks = nn.Conv2d(3, 6, 16, 16), blocks
        self.prefix = nn.Parameter(torch.ones(1, prefix, 6))

    def forward(self, images):
        patches = self.conv(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(len(images), -1, -1), patches], 1)
        return [tokens + block for block in range(self.blocks)]


class Maps(nn.Module):
    def __init__(self, parts):
        super().__init__()
        self.parts, self.conv = parts.split(), nn.Conv2d(3, 4, 1)

    def forward(self, images):
        maps = self.conv(images)
        pooled = maps.mean((2, 3))
        return [pooled if p == "pooled" else nn.AvgPool2d(int(p))(maps) for p in self.parts]


class First(Maps):
    def forward(self, images):
        return super().forward(images)[0]


class Named(Maps):
    def forward(self, images):
        return {str(n): value for n, value in enumerate(super().forward(images))}


class Encodes(Maps):
    def encode_image(self, images):
        return images.new_full((len(images), 9), 2.0)


class Declares(Backbone):
    channels, strides, divisor, embed_dim, data = (4,), (8,), 8, 4, SMALL

    def __init__(self):
        super().__init__()
        self.model = nn.Conv2d(3, 4, 8, 8)

    def forward(self, images):
        return (self.model(images),)

    def encode_image(self, images):
        return self(images)[0].mean((2, 3))


def number():
    return 5


class Wrong(First):
    """A map with a fault, or with a fault in what its encode_image returns."""

    def __init__(self, fault, embeds=False):
        super().__init__("8")
        self.fault = fault
        if embeds:
            self.encode_image = lambda images: self.broken(self.conv(images).mean((2, 3)))

    def forward(self, images):
        maps = super().forward(images)
        return maps if hasattr(self, "encode_image") else self.broken(maps)

    def broken(self, values):
        if self.fault == "nothing":
            return None
        if self.fault == "integers":
            return values.long()
        if self.fault == "nan":
            return values * float("nan")
        if self.fault == "one row":
            return values.mean(0, keepdim=True)
        if self.fault == "maps":
            return values[:, :, None, None].expand(-1, -1, 28, 28)
        if self.fault == "dropout":
            return nn.functional.dropout(values)
        if self.fault == "noise":
            return values + 0.001 * torch.randn_like(values)
        if self.fault == "batch":
            return values - values.mean(0)
        return nn.functional.batch_norm(values, None, None, training=True)


class Half(First):
    """Computes in bfloat16, in another order in another batch."""

    def forward(self, images):
        maps = super().forward(images)
        for _ in range(4):
            maps = (maps.bfloat16() * (1 + 1e-3 * len(images))).float()
        return maps / (1 + 1e-3 * len(images)) ** 4
'''


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.py"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize(
    ("call", "strides", "summary"),
    [
        ("First('8')", (8,), "embedding of 4 (the mean of the last map)"),
        ("Maps('8 16')", (8, 16), "2 feature maps (channels 4, 4; strides 8, 16)"),
        ("Named('8 pooled')", (8,), "embedding of 4 (returned beside them)"),
        ("Encodes('8 pooled pooled')", (8,), "embedding of 9 (by its encode_image)"),
        ("Tokens", (16,), "embedding of 6 (the mean of the last map)"),
        ("Tokens(1, blocks=3)", (16, 16, 16), "embedding of 6 (the class token)"),
        ("Half('8')", (8,), "embedding of 4"),
        ("Declares()", (8,), ""),
    ],
)
def test_a_trial_pass_finds_maps_and_embedding(call, strides, summary):
    backbone = backbones.create(f"net.py:{call}")
    assert backbone.strides == strides and summary in backbone.summary
    images = torch.rand(2, 3, 96, 64)  # another size than that of the trial
    with torch.inference_mode():
        maps, embedding = backbone(images), backbone.encode_image(images)
    sizes = zip(backbone.channels, strides, strict=True)
    shapes = [(2, channels, 96 // stride, 64 // stride) for channels, stride in sizes]
    assert [each.shape for each in maps] == shapes
    assert embedding.shape == (2, backbone.embed_dim)
    if "class token" in summary:
        assert torch.equal(embedding, torch.full((2, 6), 3.0)), "of the last block"
        assert len(backbone.at_layers([1, 2])(images)) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "net.py",
            r"write net.py:CLASS or net.py:FUNCTION\(ARGUMENTS\), .* it defines Tokens, Maps",
        ),
        ("net.py:Tokns", "it defines Tokens"),
        ("net.py:Tokens(os.getcwd())", r"arguments are literals, as in Tokens\(64"),
        ("net.py:Maps", r"missing a required argument: .parts.; it is Maps"),
        ("net.py:Maps('x')", r"net.py:35: ValueError"),
        ("net.py:Maps('pooled')", r"not \(1, 4\); return what it pools"),
        ("net.py:Maps('8 pooled pooled')", r"returns 2 tensors \(N, D\); define encode_image"),
        ("net.py:Tokens(5)", r"not \(1, 13, 6\); leave registers out"),
        ("net.py:number", "is of type int; name what builds an nn.Module"),
        ("net.py:Wrong('nothing')", r"must return feature maps .*not NoneType"),
        ("net.py:Wrong('integers')", r"floating-point numbers .*not \(1, 4, 28, 28\) of int64"),
        ("net.py:Wrong('nan')", "NaN or infinity alone"),
        ("net.py:Wrong('one row')", r"of each image, not \(1, 4, 28, 28\) of float32 of 2 images"),
        ("net.py:Wrong('dropout')", "the same images at another pass"),
        ("net.py:Wrong('noise')", "the same images at another pass"),
        ("net.py:Wrong('batch')", "an image in a batch than alone"),
        ("net.py:Wrong('batch norm')", "an image in a batch than alone"),
        ("net.py:Wrong('nothing', True)", r"encode_image must return vectors .*not NoneType"),
        ("net.py:Wrong('maps', True)", r"encode_image must return vectors .*\(1, 4, 28, 28\)"),
        ("net.py:Wrong('integers', True)", r"floating-point numbers .*not \(1, 4\) of int64"),
        ("net.py:Wrong('one row', True)", r"of each image, not \(1, 4\) of float32 of 2 images"),
        ("net.py:Wrong('dropout', True)", "the same images at another pass"),
        ("absent.py:Net", "cannot read .*absent.py: No such file"),
        ("absent.net:Net", "No module named 'absent'"),
    ],
)
def test_what_is_refused(name, message):
    with pytest.raises(UserError, match=message) as caught:
        backbones.create(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("prefix", "networks"), [("", 1), ("random/", 2)])
def test_it_is_one_network_unless_it_is_random(prefix, networks):
    built = [backbones.create(f"{prefix}net.py:First('8')", seed=seed) for seed in (1, 2)]
    assert len({each.weights.sha256 for each in built}) == networks


def test_weights_are_loaded_strictly(tmp_path):
    state = {"conv.weight": torch.zeros(4, 3, 1, 1), "conv.bias": torch.full((4,), 3.0)}
    save_file(state, tmp_path / "w.safetensors")
    backbone = backbones.create("net.py:First('8')", weights="w.safetensors")
    assert (backbone(torch.rand(1, 3, 224, 224))[0] == 3).all()
    assert backbone.weights.source == "w.safetensors"
    with pytest.raises(UserError, match=r"does not fit net.py:Tokens: .*no prefix"):
        backbones.create("net.py:Tokens", weights="w.safetensors")


def test_a_worker_elsewhere_builds_what_the_submitting_process_read(file, tmp_path, monkeypatch):
    name = "net.py:Tokens(1)"
    info = describe_backbone({"name": name})
    content = pickle.dumps(Unit(describe_backbone, ({"name": name},), "unit", tmp_path))
    file.write_text(FILE.replace("range(self.blocks)", "range(2)"))
    worker: Unit = pickle.loads(content)
    assert worker.call().identity == info.identity, "although the file was edited"
    registry.LOADED[file].remove()
    (tmp_path / "moved").mkdir()
    file.rename(tmp_path / "moved/other.py")
    monkeypatch.chdir("moved")
    assert pickle.loads(content).call().identity == info.identity, "although it sees no file"
    assert backbones.create("other.py:Tokens(1)").identity() != info.identity


def test_an_edited_file_is_another_backbone_from_the_next_command_on(file):
    before = backbones.create("net.py:Tokens").identity()
    os.utime(file)
    file.write_text(f"{FILE}# edited\n")
    assert backbones.create("net.py:Tokens").identity() == before
    backbones.find("net.py:Tokens", fresh=True)
    assert backbones.create("net.py:Tokens").identity() != before


def test_an_importable_module_needs_no_file(tmp_path, monkeypatch):
    Path("importable_net.py").write_text(FILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    backbone = backbones.create("importable_net:First('8')")
    of_file = backbones.create("net.py:First('8')").identity()
    assert backbone.identity()["model_config"] == of_file["model_config"]
    assert "importable_net" in backbone.identity()["adapter"]


def test_commas_in_parentheses_do_not_separate_names():
    names = "clip,net.py:Net(1, kinds=(2,3)),net.py:Net"
    assert split_words(names) == ["clip", "net.py:Net(1, kinds=(2,3))", "net.py:Net"]
