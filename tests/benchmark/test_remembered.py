"""The identity of a backbone is looked up where nothing that decides it has changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from backbones.checkpoint import Checkpoint, save_checkpoint
from benchmark.tasks import BackboneInfo, describe_backbone
from cliptex_common.registry import load
from tests.backbones.mini import CONFIG, DATA, mini_clip

pytestmark = pytest.mark.integration


def save(path: Path, seed: int) -> None:
    state = mini_clip(seed).state_dict()
    save_checkpoint(Checkpoint(path, state, "open_clip/mini", CONFIG, DATA))


def arguments(weights: Path) -> dict:
    return {"name": "cliptex", "weights": str(weights), "seed": 0}


@pytest.fixture
def described(workdir) -> BackboneInfo:
    save(workdir / "weights.safetensors", seed=1)
    info = describe_backbone(arguments(workdir / "weights.safetensors"))
    assert BackboneInfo.recall(info.create_arguments) is None
    info.remember()
    return info


def test_it_is_the_same_as_that_of_the_built_backbone(described, workdir):
    assert BackboneInfo.recall(described.create_arguments) == described
    assert BackboneInfo.recall({**described.create_arguments, "seed": 1}) is None
    elsewhere = shutil.copy(workdir / "weights.safetensors", workdir / "copy.safetensors")
    copied = BackboneInfo.recall(arguments(elsewhere))
    assert copied == describe_backbone(arguments(elsewhere))
    assert copied.weights.source == str(elsewhere)


def test_a_changed_file_and_other_libraries_are_seen(described, workdir, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("backbones.remembered.LIBRARIES", ("torch", "no_such_library"))
        assert BackboneInfo.recall(described.create_arguments) is None
    save(workdir / "weights.safetensors", seed=2)
    assert BackboneInfo.recall(described.create_arguments) is None


def test_other_content_of_equal_size_and_time_is_seen(described, workdir):
    path = workdir / "weights.safetensors"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=times)
    assert BackboneInfo.recall(described.create_arguments) is None


def test_what_changes_while_it_is_read_is_not_remembered(workdir):
    save(workdir / "weights.safetensors", seed=1)
    info = describe_backbone(arguments(workdir / "weights.safetensors"))
    save(workdir / "weights.safetensors", seed=2)
    info.remember()
    assert BackboneInfo.recall(info.create_arguments) is None


@pytest.mark.parametrize("damage", [lambda text: text[:50], lambda text: text.replace("0", "1")])
def test_a_damaged_file_is_ignored_and_written_again(described, workdir, damage):
    (path,) = (workdir / "home" / "backbones").iterdir()
    path.write_text(damage(path.read_text()))
    assert BackboneInfo.recall(described.create_arguments) is None
    described.remember()
    assert BackboneInfo.recall(described.create_arguments) == described


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "random", "weights": None, "seed": 3},
        {"name": "random/timm/test_vit", "weights": None, "seed": 1, "layers": (1, 2)},
        {"name": "open_clip/ViT-S-32-alt", "weights": None, "seed": 0},
    ],
    ids=lambda arguments: arguments["name"],
)
def test_recalled_is_what_would_be_built(workdir, arguments):
    info = describe_backbone(arguments)
    info.remember()
    assert BackboneInfo.recall(arguments) == info
    assert BackboneInfo.recall({**arguments, "seed": 7}) is None
    (workdir / "plugin.py").write_text("# registers nothing, and may change how timm builds\n")
    load(workdir / "plugin.py", registers=False)
    assert BackboneInfo.recall(arguments) is None


def test_files_of_packages_and_of_the_hub_are_looked_at(workdir, monkeypatch):
    info = describe_backbone({"name": "efficientnet-lite0", "weights": None, "seed": 0})
    (path,) = map(Path, info.files)
    info.remember()
    assert path.is_file() and BackboneInfo.recall(info.create_arguments) == info
    monkeypatch.setattr(
        "backbones.remembered.sha256_files", lambda paths: dict.fromkeys(paths, "x")
    )
    assert BackboneInfo.recall(info.create_arguments) is None


def test_what_code_of_others_builds_is_not_remembered(workdir):
    (workdir / "net.py").write_text("import torch\n\nnet = lambda: torch.nn.Conv2d(3, 8, 16, 16)\n")
    info = describe_backbone({"name": "net.py:net", "weights": None, "seed": 0})
    info.remember()
    assert not (workdir / "home" / "backbones").exists()
