"""Weights from the hub: a real little hub on loopback, its cache, and no hub at all."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

import backbones
from cliptex_common.errors import UserError
from tests.backbones.mini import CONFIG, mini_clip
from tests.servers import FileServer

TIMM, MINI = "timm/test_vit.r160_in1k", "somebody/mini-clip"

SCRIPT = """
import json, sys, warnings
import open_clip.factory, open_clip.pretrained
import backbones
from huggingface_hub import constants
config = json.loads(sys.argv[1])
open_clip.factory._MODEL_CONFIGS["Mini-quickgelu"] = config
open_clip.pretrained._PRETRAINED["Mini-quickgelu"] = {
    "web": open_clip.pretrained._pcfg(hf_hub="somebody/mini-clip/", quick_gelu=True, mean=(0.1, 0.2, 0.3))
}
results = []
for constants.HF_HUB_OFFLINE in (False, True):
    for name in ("timm/test_vit", "open_clip/Mini-quickgelu/web"):
        try:
            backbone = backbones.create(name)
            results.append([backbone.weights.source, backbone.weights.sha256, backbone.weights.licence, backbone.data.mean])
        except backbones.UserError as error:
            results.append(str(error))
    constants.ENDPOINT = "http://127.0.0.1:9"
print(json.dumps(results))
"""  # noqa: E501


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


def create_elsewhere(endpoint: str, home: Path) -> list:
    """Both backbones, from that hub and then from the cache without a hub, in a process of its own:
    hub settings are read once."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
    }
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(CONFIG)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.integration
def test_download_then_cache(little_hub, tmp_path):
    torch.manual_seed(1)
    vit = backbones.backbone.state_sha256(timm.create_model("test_vit").state_dict())
    clip = backbones.backbone.state_sha256(mini_clip(1).state_dict())
    expected = [
        ["timm/test_vit.r160_in1k", vit, "apache-2.0", [0.5, 0.5, 0.5]],
        ["open_clip/Mini-quickgelu/web", clip, "unknown", [0.1, 0.2, 0.3]],
    ]
    assert create_elsewhere(little_hub.address, tmp_path) == expected * 2
    # the very file the message asks for also goes in by hand
    by_hand = backbones.create(
        "timm/test_vit", weights=little_hub.folder / TIMM / "resolve/main/model.safetensors"
    )
    assert by_hand.weights.sha256 == vit


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
    monkeypatch.setattr("backbones.adapters.timm._create", built)
    monkeypatch.setattr("backbones.adapters.open_clip.build_model", built)
    for name in backbones.names():
        if download := backbones.find(name).download:
            host = "" if download.startswith("github.com/") else "huggingface.co/"
            with pytest.raises(UserError, match=f"no network .*{host}{download}") as caught:
                backbones.create(name)
            assert name in str(caught.value)
