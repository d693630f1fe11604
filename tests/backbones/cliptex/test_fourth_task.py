"""A task as `new task edges` writes it, and the expert of docs/examples, as plugins: listed, with a
λ. (test_edges labels, trains and probes with one.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from backbones.cliptex import tasks
from backbones.cliptex.recipes import find_recipe, subsets
from benchmark.commands.new import template
from cliptex_common.errors import UserError
from cliptex_common.registry import load_plugins
from sweeps.space import SearchOptions, make_space

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def loaded(tmp_path):
    """The plugins."""
    path = tmp_path / "edges.py"
    path.write_text(template("task", "edges"))
    load_plugins([path, ROOT / "docs/examples/edge_unet.py"])


def test_it_is_listed_and_has_a_lambda():
    assert tasks.task_names() == (*tasks.PAPER, "edges")
    assert len(subsets()) == 15 and subsets()["cliptex-seg-edges"] == ("seg", "edges")
    assert subsets()["cliptex"] == tasks.PAPER == find_recipe("cliptex").tasks
    assert "lambda_edges" not in find_recipe("cliptex").settings()
    assert find_recipe("cliptex-edges").tasks == ("edges",)
    recipe = find_recipe("cliptex", ["experts=edges,seg", "lambda_edges=0.5"])
    assert recipe.tasks == ("seg", "edges") and recipe.settings()["lambda_edges"] == 0.5
    space = make_space(SearchOptions(vary={"lambda_edges": "0.1,10"}), recipe)
    assert [params["lambda_edges"] for params in space.combinations()] == [0.5, 0.1, 10.0]
    unweighted = find_recipe("cliptex", ["experts=edges,seg"])
    assert recipe.key("i", "p", "l") != unweighted.key("i", "p", "l")
    with pytest.raises(UserError, match="did you mean lambda_edges"):
        find_recipe("cliptex", ["lambda_edge=1"])
