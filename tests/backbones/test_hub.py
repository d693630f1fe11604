"""Weights from the hub: a real little hub on loopback, its cache, and no hub at all."""

from __future__ import annotations

import socket

import open_clip
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

import backbones
from backbones.backbone import state_sha256
from cliptex_common.errors import UserError
from tests.backbones.mini import CONFIG, mini_clip
from tests.servers import FileServer

TIMM, MINI = "timm/test_vit.r160_in1k", "somebody/mini-clip"
WEB = "open_clip/Mini-quickgelu/web"


@pytest.fixture(scope="module")
def little_hub(tmp_path_factory):
    """A server with two repositories."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(1)
    for repository, file, model in (
        (TIMM, "model.safetensors", timm.create_model("test_vit")),
        (MINI, "open_clip_model.safetensors", mini_clip(1)),
    ):
        path = folder / repository / "resolve/main" / file
        path.parent.mkdir(parents=True)
        save_file(model.state_dict(), path)
    with FileServer(folder) as server:
        yield server


@pytest.mark.integration
def test_download_then_cache(little_hub, tmp_path, monkeypatch):
    """Both backbones from that hub, and then from the cache, without a hub."""
    torch.manual_seed(1)
    vit = state_sha256(timm.create_model("test_vit").state_dict())
    clip = state_sha256(mini_clip(1).state_dict())
    pretrained = {"hf_hub": f"{MINI}/", "quick_gelu": True, "mean": (0.1, 0.2, 0.3)}
    tags = {"web": open_clip.pretrained._pcfg(**pretrained)}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Mini-quickgelu", CONFIG)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Mini-quickgelu", tags)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, little_hub.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", little_hub.address)
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        for name, source, digest, licence, mean in (
            ("timm/test_vit", TIMM, vit, "apache-2.0", (0.5, 0.5, 0.5)),
            (WEB, WEB, clip, "unknown", (0.1, 0.2, 0.3)),
        ):
            backbone = backbones.create(name)
            weights = backbone.weights
            described = weights.source, weights.sha256, weights.licence
            assert (*described, backbone.data.mean) == (source, digest, licence, mean)
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    # the very file the message asks for also goes in by hand
    file = little_hub.folder / TIMM / "resolve/main/model.safetensors"
    assert backbones.create("timm/test_vit", weights=file).weights.sha256 == vit


@pytest.fixture(params=["refused", "silent", "offline"])
def no_hub(request, monkeypatch, tmp_path):
    """The ways in which there is no hub; ``silent`` accepts connections and never answers."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", request.param == "offline")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param == "silent":
            listener.listen()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        yield


def test_without_network_one_line_says_which_file_to_put_where(no_hub, monkeypatch):
    # the hub's client alone would try again for half a minute
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waits for another try"))
    with pytest.raises(UserError) as caught:
        backbones.create("timm/resnet18")
    message = str(caught.value)
    assert "model.safetensors of https://huggingface.co/timm/resnet18.a1_in1k" in message
    assert "--weights FILE" in message and "\n" not in message


def test_every_hub_backbone_says_so_before_it_is_built(monkeypatch, tmp_path):
    def built(*_, **__):
        pytest.fail("the model was built before its weights were found to be missing")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr("timm.create_model", built)
    monkeypatch.setattr("backbones.adapters.open_clip.build_model", built)
    for name in backbones.names():
        if download := backbones.find(name).download:
            host = "" if download.startswith("github.com/") else "huggingface.co/"
            with pytest.raises(UserError, match=f"no network .*{host}{download}") as caught:
                backbones.create(name)
            assert name in str(caught.value)
