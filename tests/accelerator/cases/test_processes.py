"""Two processes that train together on accelerators give what one gives."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from backbones.cliptex.pairs import open_pairs
from backbones.cliptex.recipes import Recipe
from backbones.cliptex.trainer import DistContext
from tests.accelerator import pretended as accelerator
from tests.accelerator.cases.test_trainings import with_bias
from tests.backbones.cliptex import toy
from tests.backbones.cliptex.ranks import RECIPE, check_equals_one, one_rank, one_step
from tests.backbones.cliptex.test_train import other_tower, run
from tests.forks import ranks


def rank_on_accelerator(folder: Path, recipe: Recipe, pairs_dir: str, init: str) -> None:
    """``one_rank``, where each process sees one accelerator."""
    accelerator.start()
    os.environ["LOCAL_RANK"] = "0"
    one_rank(folder, recipe, pairs_dir, "gpu", init)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["gradient cache, moving average", "batch norm", "siglip"])
def test_two_processes_equal_one(case, tmp_path, pretended):
    init = other_tower(tmp_path, "timm") if case == "batch norm" else "random"
    recipe = replace(RECIPE, precision="fp32")
    if case == "siglip":
        recipe = with_bias(recipe, tmp_path)
    elif case != "batch norm":
        recipe = replace(recipe, accumulate=2, ema=0.9)
    pairs_dir = toy.write_pairs(tmp_path / "pairs", 48, 2)
    output = tmp_path / "output.txt"
    ranks(rank_on_accelerator, tmp_path, recipe, str(pairs_dir), init, output=output)
    alone = DistContext(0, 1, pretended)
    expected = one_step(str(pairs_dir), recipe, alone, init)
    single = run(
        recipe, open_pairs(pairs_dir), tmp_path / "one.safetensors", init=init, device=pretended
    )
    check_equals_one(tmp_path, 2, expected, single.path, share=0.02)
