"""What the mini suites make: labels belong to the experts that wrote them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from backbones.cliptex.experts import find_expert
from backbones.cliptex.labels import check_labels
from benchmark.evaluation.runner import Options
from benchmark.execution.progress import Bar
from benchmark.mini import pipeline
from tests.backbones.cliptex import toy, toy_experts

KEPT = ("training_key", "accuracy", "seconds", "flops")


@pytest.fixture
def world(tmp_path, monkeypatch) -> Path:
    """A toy world with pairs and truth, the suite ``toy`` on it with the smallest of models, and a home of its own."""
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))
    experts = {name: {**settings, "epochs": 0.5} for name, settings in toy_experts.SETTINGS.items()}
    sizes = pipeline.Sizes({"model": "tiny", "epochs": 0.4, "batch_size": 16}, "random", {}, {}, experts)
    monkeypatch.setitem(pipeline.SIZES, "toy", sizes)
    toy.write_pairs(tmp_path / "world" / "pairs", 32)
    toy_experts.write_truth(tmp_path / "world" / "expert")
    return tmp_path / "world"


def base(world: Path):
    """CLIP and the labels."""
    made, labels, cost = pipeline._base(Options(suite="toy", device="cpu", workers=0), world, [0], True, None, Bar())
    assert labels is not None and len(labels) == 32 and check_labels(labels.root) == []
    assert cost["label_flops"] > 0
    return made["clip", 0], labels


def test_experts_that_were_trained_anew_make_new_labels(world):
    clip, first = base(world)
    written = {path: path.stat().st_mtime_ns for path in first.root.glob("*.labels")}
    (folder,) = (world.parent / "home/experts").glob("*-unet-*")
    files = {path: path.read_bytes() for path in (folder / "weights.safetensors", folder / "expert.json")}

    # as another machine would train it: the same settings, other bits
    expert = find_expert("unet").load(str(folder))
    with torch.no_grad():
        for values in expert.parameters():
            values.add_(0.05 * torch.randn(values.shape, generator=torch.Generator().manual_seed(1)))
    config = json.loads((folder / "expert.json").read_text())
    expert.save(folder, **{key: config[key] for key in KEPT})

    again, second = base(world)
    assert again.path == clip.path, "CLIP knows no labels"
    assert second.root != first.root and second.identity != first.identity
    for path, content in files.items():
        path.write_bytes(content)
    _, third = base(world)
    assert (third.root, third.identity) == (first.root, first.identity)
    assert written and written == {path: path.stat().st_mtime_ns for path in first.root.glob("*.labels")}, "made once"
