"""Recipes: settings are typed, checked, and decide the identity of the weights."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backbones.cliptex.recipes import (
    RECIPES,
    changed_settings,
    find_recipe,
    subsets,
    trained_experts,
)
from backbones.cliptex.tasks import PAPER
from cliptex_common.errors import UserError


def test_the_three_differ_only_in_configuration():
    cliptex, ft = RECIPES["cliptex"].settings(), RECIPES["clip-ft"].settings()
    changed = {name for name in cliptex if cliptex[name] != ft[name]}
    assert changed == {"name", "lambda_seg", "lambda_depth", "lambda_normal"}
    assert [cliptex[f"lambda_{name}"] for name in ("clip", *PAPER)] == [1.0, 0.1, 1.0, 1.0]
    assert (
        cliptex["epochs"] == 30
        and RECIPES["cliptex"].tasks == PAPER
        and RECIPES["clip"].tasks == ()
    )


def test_subsets_of_experts_are_cliptex_with_fewer_losses():
    ablation = subsets()
    assert len(set(ablation.values())) == len(ablation) == 7 and ablation["cliptex"] == PAPER
    assert [*subsets(["normal", "seg"])] == ["cliptex-seg", "cliptex-normal", "cliptex-seg-normal"]
    for name, experts in ablation.items():
        recipe = find_recipe(name)
        assert (recipe.name, recipe.tasks) == (name, experts)
        assert recipe == replace(RECIPES["cliptex"], name=name, experts=experts)
    assert find_recipe("cliptex-seg", ["lambda_seg=1"]).loss_weights["seg"] == 1
    with pytest.raises(UserError, match="nothing to learn"):
        find_recipe("clip-ft", ["lambda_clip=0"])
    with pytest.raises(UserError, match="did you mean cliptex-seg"):
        find_recipe("cliptex-seq")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lamda_seg=1", "lambda_seg"),
        ("lambda_seg=-1", "lambda_seg=-1: must be greater than or equal to 0"),
        ("batch_size=10", "accumulate"),
        ("experts=seg,flow", "no task 'flow'; known: depth, normal, seg"),
        ("crop_scale=0.9,0.5", "crop_scale"),
    ],
)
def test_wrong_settings(change, message):
    with pytest.raises(UserError, match=message):
        find_recipe("cliptex", [change, "accumulate=4"])


def test_files(tmp_path):
    path = tmp_path / "trial.json"
    path.write_text(
        '{"recipe": "cliptex", "lambda_depth": 10, "experts": ["depth","normal"], "batch_size": 64}'
    )
    recipe = find_recipe(str(path), ["epochs=2"])
    assert (recipe.name, recipe.loss_weights["depth"], recipe.batch_size) == ("trial", 10.0, 64)
    assert recipe.tasks == ("depth", "normal")
    toml = tmp_path / "trial.toml"
    toml.write_text(
        'recipe = "cliptex"\nlambda_depth = 10\nexperts = ["depth", "normal"]\nbatch_size = 64\n'
    )
    assert find_recipe(str(toml), ["epochs=2"]) == recipe
    for text, message in (
        ("{", "valid JSON"),
        ('{"lrr": 1}', "lr"),
        ('{"recipe": "mae"}', "mae"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            find_recipe(str(path))
    with pytest.raises(UserError, match="cannot read"):
        find_recipe("no.toml")


def test_identity():
    base = RECIPES["cliptex"]
    key = base.key("i", "p", "l")
    assert replace(base, name="mine").key("i", "p", "l") == key
    for changed in (base.key("j", "p", "l"), base.key("i", "q", "l"), base.key("i", "p", "m")):
        assert changed != key
    ft = RECIPES["clip-ft"]
    assert ft.key("i", "p", "l") == ft.key("i", "p", "")
    assert ft.key("i", "p", "l") == replace(ft, head_width=7, experts=("seg",)).key("i", "p", "x")


def test_recipes_that_train_the_same_thing_have_one_identity():
    """The order of experts, a λ of 0 and the λ of a task that is not learned change nothing."""

    def key(*changes: str) -> str:
        return find_recipe("cliptex", changes).key("i", "p", "l")

    assert key("experts=depth,normal") == key("experts=normal,depth") == key("lambda_seg=0")
    assert key("experts=depth,normal") == key("experts=depth,normal", "lambda_seg=7")
    assert key("experts=seg,seg,depth,normal") == key() == key("lambda_seg=0.1")
    assert key() != key("lambda_seg=0.2")
    no_tasks = key("lambda_seg=0", "lambda_depth=0", "lambda_normal=0")
    assert no_tasks == find_recipe("clip-ft").key("i", "p", "")


@pytest.mark.parametrize(
    ("name", "changes", "experts"),
    [
        ("cliptex", [], PAPER),
        ("cliptex", ["experts=seg", "lr=0.1"], ("seg",)),
        ("cliptex", ["experts=depth,seg"], ("seg", "depth")),
        ("cliptex-depth", [], ("depth",)),
        ("clip-ft", [], ()),
    ],
)
def test_the_experts_of_weights_are_those_of_their_training(name, changes, experts):
    settings = find_recipe(name, changes).settings()
    assert sorted(trained_experts(name, changed_settings(settings))) == sorted(experts)
