"""The identity of a backbone is looked up where nothing that decides it has changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from backbones.checkpoint import Checkpoint, save_checkpoint
from benchmark.tasks import BackboneInfo, describe_backbone
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


def test_files_of_packages_and_of_the_hub_are_looked_at(workdir):
    info = describe_backbone({"name": "efficientnet-lite0", "weights": None, "seed": 0})
    (path,) = map(Path, info.files)
    info.remember()
    assert path.is_file() and BackboneInfo.recall(info.create_arguments) == info
    (remembered,) = (workdir / "home" / "backbones").iterdir()
    remembered.write_text(remembered.read_text().replace(info.files[str(path)], "other"))
    assert BackboneInfo.recall(info.create_arguments) is None


def test_what_code_of_others_builds_is_not_remembered(workdir):
    (workdir / "net.py").write_text("import torch\n\nnet = lambda: torch.nn.Conv2d(3, 8, 16, 16)\n")
    info = describe_backbone({"name": "net.py:net", "weights": None, "seed": 0})
    info.remember()
    assert not (workdir / "home" / "backbones").exists()
