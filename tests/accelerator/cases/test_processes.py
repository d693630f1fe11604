"""Two processes that train together on accelerators give what one gives."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from backbones.cliptex.data.pairs import open_pairs
from backbones.cliptex.training.distributed import DistContext
from backbones.cliptex.training.models import TINY_CLIP
from backbones.cliptex.training.recipes import Recipe
from tests.accelerator import pretended as accelerator
from tests.backbones.cliptex import toy
from tests.backbones.cliptex.training.ranks import RECIPE, one_rank, one_step
from tests.backbones.cliptex.training.test_train import other_tower, run
from tests.forks import ranks

CASES: dict[str, dict[str, Any]] = {
    "gradient cache": {"accumulate": 2},
    "statistics over both": {"batch_norm": True},
    "siglip": {"bias": -3.0},
}


def rank_on_accelerator(folder: Path, recipe: Recipe, pairs_dir: str, init: str) -> None:
    """``one_rank``, where each process sees one accelerator."""
    accelerator.start()
    os.environ["LOCAL_RANK"] = "0"
    one_rank(folder, recipe, pairs_dir, "gpu", init)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case, tmp_path, pretended):
    changes = {"precision": "fp32", **CASES[case]}
    has_norms, bias = changes.pop("batch_norm", False), changes.pop("bias", None)
    init = other_tower(tmp_path, "timm") if has_norms else "random"
    if bias is not None:
        (tmp_path / "model.json").write_text(json.dumps({**TINY_CLIP, "init_logit_bias": bias}))
        changes["model"] = str(tmp_path / "model.json")
    pairs_dir = toy.write_pairs(tmp_path / "pairs", 48, 2)
    recipe = replace(RECIPE, **changes)
    output = tmp_path / "output.txt"
    ranks(rank_on_accelerator, tmp_path, recipe, str(pairs_dir), init, output=output)
    alone = DistContext(0, 1, pretended)
    losses, gradients, norms = one_step(str(pairs_dir), recipe, alone, init)
    shares = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for name, loss in losses.items():
        torch.testing.assert_close(sum(part[name] for part, _, _ in shares) / 2, loss)
    for _, own_gradients, own_norms in shares:
        assert own_norms == pytest.approx(norms, rel=1e-3)
        for name, gradient in gradients.items():
            torch.testing.assert_close(own_gradients[name], gradient, rtol=1e-3, atol=2e-5)
    assert len({(tmp_path / f"sha{rank}").read_text() for rank in range(2)}) == 1
    single = run(
        recipe, open_pairs(pairs_dir), tmp_path / "one.safetensors", init=init, device=pretended
    )
    many, single_weights = load_file(tmp_path / "many.safetensors"), load_file(single.path)
    differences = torch.cat(
        [(many[name] - single_weights[name]).abs().flatten() for name in single_weights]
    )
    assert (differences > 1e-4).double().mean() < 0.02
