"""Recipes: settings are typed, checked, and decide the identity of the weights."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backbones.cliptex.recipes import (
    OPTIONAL,
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
    assert cliptex["epochs"] == 30 and RECIPES["clip"].tasks == ()


def test_subsets_of_experts_are_cliptex_with_fewer_losses():
    ablation = subsets()
    assert len(set(ablation.values())) == len(ablation) == 7 and ablation["cliptex"] == PAPER
    assert [*subsets(["normal", "seg"])] == ["cliptex-seg", "cliptex-normal", "cliptex-seg-normal"]
    for name, experts in ablation.items():
        recipe = find_recipe(name)
        assert (recipe.name, recipe.tasks) == (name, experts)
        assert recipe == replace(RECIPES["cliptex"], name=name, experts=experts)
    assert find_recipe("cliptex-seg", ["lambda_seg=1"]).loss_weights["seg"] == 1


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("cliptex", "lamda_seg=1", "lambda_seg"),
        ("cliptex", "lambda_seg=-1", "lambda_seg=-1: must be greater than or equal to 0"),
        ("cliptex", "batch_size=10", "accumulate"),
        ("cliptex", "experts=seg,flow", "no task 'flow'; known: depth, normal, seg"),
        ("cliptex", "crop_scale=0.9,0.5", "crop_scale"),
        ("cliptex", "schedules=seg", "no schedule of a λ ''"),
        ("cliptex", "schedules=flow:rise", "LOSS:SCHEDULE"),
        ("cliptex", "schedules=seg:rize", "rise"),
        ("clip-ft", "lambda_clip=0", "nothing to learn"),
        ("cliptex-seq", "epochs=1", "did you mean cliptex-seg"),
        ("no.toml", "epochs=1", "cannot read"),
    ],
)
def test_wrong_settings(name, change, message):
    with pytest.raises(UserError, match=message):
        find_recipe(name, [change, "accumulate=4"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("trial.json", '{"recipe": "cliptex", "lambda_depth": 10, "experts": ["depth","normal"]}'),
        ("trial.toml", 'recipe = "cliptex"\nlambda_depth = 10\nexperts = ["depth", "normal"]\n'),
    ],
)
def test_files(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    recipe = find_recipe(str(tmp_path / name), ["epochs=2"])
    changes = {"lambda_depth": 10.0, "experts": ("depth", "normal"), "epochs": 2.0}
    assert recipe == replace(RECIPES["cliptex"].changed(changes), name="trial")


@pytest.mark.parametrize(
    ("text", "message"), [("{", "valid JSON"), ('{"lrr": 1}', "lr"), ('{"recipe": "mae"}', "mae")]
)
def test_wrong_files(tmp_path, text, message):
    (tmp_path / "trial.json").write_text(text)
    with pytest.raises(UserError, match=message):
        find_recipe(str(tmp_path / "trial.json"))


def test_recipes_that_train_the_same_thing_have_one_identity():
    """The order of experts, a λ of 0, the λ of a task that is not learned and what heads that do
    not exist would read change nothing."""

    def key(*changes: str, name="cliptex", inputs=("i", "p", "l")) -> str:
        return find_recipe(name, changes).key(*inputs)

    assert key("experts=depth,normal") == key("experts=normal,depth") == key("lambda_seg=0")
    assert key("experts=depth,normal") == key("experts=depth,normal", "lambda_seg=7")
    assert key("experts=seg,seg,depth,normal") == key() == key("lambda_seg=0.1")
    assert replace(RECIPES["cliptex"], name="mine").key("i", "p", "l") == key()
    others = ("lambda_seg=0.2", "layers=1,2", "schedules=clip:cosine", "schedules=seg:rise")
    inputs = (("j", "p", "l"), ("i", "q", "l"), ("i", "p", "m"))
    keys = {key(), *map(key, others), *(key(inputs=each) for each in inputs)}
    assert len(keys) == 1 + len(others) + len(inputs)
    no_tasks = key("lambda_seg=0", "lambda_depth=0", "lambda_normal=0")
    for changes in ((), ("head_width=7", "experts=seg", "lambda_seg=0"), ("layers=1",)):
        assert key(*changes, name="clip-ft", inputs=("i", "p", "x")) == no_tasks
    for recipe in RECIPES.values():  # what is not set is no part of an identity
        assert not {*recipe.identity(), *recipe.settings()} & {*OPTIONAL}


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
