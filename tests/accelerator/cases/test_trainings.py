"""CLIPTeX trains on an accelerator as on a CPU, with every feature of a recipe, and resumes to the
same bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from backbones.cliptex.model import TINY_CLIP
from backbones.cliptex.pairs import PairSource, open_pairs
from backbones.cliptex.recipes import RECIPES, Recipe
from backbones.cliptex.train import TrainResult
from cliptex_common.device import CPU
from tests.accelerator.cases.devices import is_pretended
from tests.backbones.cliptex import toy
from tests.backbones.cliptex.test_objective import check_both_passes_drop_the_same
from tests.backbones.cliptex.test_train import other_tower, run

EXACT = 1e-4
TINY = {"model": "tiny", "batch_size": 8, "epochs": 1.0, "lr": 1e-3, "precision": "fp32"}
slow = pytest.mark.slow


FEATURES: dict[str, dict[str, Any]] = {
    "everything": {"accumulate": 2, "ema": 0.9, "val_pairs": 8},
    "siglip": {},
    "grad-checkpointing": {"grad_checkpointing": True},
    "one-batch": {},
    "no-clipping": {"grad_clip": 0.0},
}
CASES = [
    ("cliptex", "everything", "batch-norm"),
    ("cliptex", "siglip", "random"),
    ("cliptex", "grad-checkpointing", "random"),
    ("cliptex", "one-batch", "batch-norm"),
    ("cliptex", "no-clipping", "random"),
    *((name, "one-batch", "random") for name in RECIPES),
]
ALWAYS = CASES[:2]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> PairSource:
    return open_pairs(toy.write_pairs(tmp_path_factory.mktemp("pairs"), 32, 2))


def with_bias(recipe: Recipe, folder: Path) -> Recipe:
    """A model with a bias of its logits is trained with SigLIP's loss."""
    path = folder / "model.json"
    path.write_text(json.dumps({**TINY_CLIP, "init_logit_bias": -3.0}))
    return replace(recipe, model=str(path))


def make_recipe(name: str, feature: str, folder: Path, **more: Any) -> Recipe:
    recipe = replace(RECIPES[name], **{**TINY, **FEATURES[feature], **more})
    return with_bias(recipe, folder) if feature == "siglip" else recipe


def check_weights(actual: Path, expected: Path) -> None:
    """Compare exported weights, up to some that Adam moves by the sign of a rounding error."""
    trained, reference = load_file(actual), load_file(expected)
    differences = [(trained[name] - reference[name]).abs().flatten() for name in reference]
    assert (torch.cat(differences) > EXACT).double().mean() < 0.02


@pytest.mark.parametrize(
    ("name", "feature", "init"),
    [pytest.param(*case, marks=() if case in ALWAYS else slow) for case in CASES],
)
def test_a_training(name, feature, init, pairs, tmp_path, device):
    recipe = make_recipe(name, feature, tmp_path)
    weights = other_tower(tmp_path, "timm") if init == "batch-norm" else init

    def train(out: str, target: torch.device, **more: Any) -> TrainResult:
        path = tmp_path / f"{out}.safetensors"
        return run(recipe, pairs, path, device=target, save_seconds=0.0, init=weights, **more)

    complete = train("complete", device)
    with pytest.raises(KeyboardInterrupt):
        train("resumed", device, progress=toy.Recorder(die_at=2))
    assert train("resumed", device).sha256 == complete.sha256
    if is_pretended(device):
        on_cpu = train("cpu", CPU)
        check_weights(complete.path, on_cpu.path)
        assert complete.metrics["train/loss"] == pytest.approx(
            on_cpu.metrics["train/loss"], rel=1e-3
        )


@pytest.mark.parametrize("from_cpu", [True, False], ids=["from-cpu", "to-cpu"])
def test_a_training_resumes_on_another_device(from_cpu, pairs, tmp_path, device):
    recipe = make_recipe("clip-ft", "one-batch", tmp_path)
    first, second = (CPU, device) if from_cpu else (device, CPU)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, pairs, tmp_path / "moved", device=first, progress=toy.Recorder(die_at=2))
    moved = run(recipe, pairs, tmp_path / "moved", device=second)
    check_weights(moved.path, run(recipe, pairs, tmp_path / "complete", device=second).path)


def test_both_passes_of_a_micro_batch_drop_the_same(pairs, device):
    check_both_passes_drop_the_same(pairs, device)


@slow
def test_automatic_precision_is_bf16(pairs, tmp_path, device):
    recipe = make_recipe("cliptex", "one-batch", tmp_path, precision="auto")
    result = run(recipe, pairs, tmp_path / "w.safetensors", device=device)
    exact = run(replace(recipe, precision="fp32"), pairs, tmp_path / "x.safetensors", device=device)
    assert result.key != exact.key
    assert result.metrics["train/loss"] == pytest.approx(exact.metrics["train/loss"], rel=0.05)
