"""What trials differ in, and the options that are refused."""

from __future__ import annotations

import itertools

import optuna
import pytest

from cliptex_common.errors import UserError
from sweeps.space import LAMBDAS, SearchOptions, Space, make_space
from tests.sweeps.cheap import RECIPE


def space_of(recipe=RECIPE, **options) -> Space:
    return make_space(SearchOptions(**options), recipe)


def test_linear_search_is_the_papers_nine_trials():
    base, *trials = space_of().combinations()
    assert base == dict.fromkeys(LAMBDAS, 1.0)
    changes = [[value for value in params.values() if value != 1.0] for params in trials]
    assert sorted(changes) == [[0.1]] * 4 + [[10.0]] * 4


def test_grid_is_every_combination_once():
    vary = {"lambda_clip": "0.1,1,1.0", "lr": "1e-4,1e-3", "experts": "seg|seg,depth"}
    params = space_of(search="grid", vary=vary).combinations()
    expected = set(itertools.product((0.1, 1.0), (1e-4, 1e-3), ("seg", "seg,depth")))
    assert {tuple(each.values()) for each in params} == expected and len(params) == 8


def test_linear_search_is_around_the_base_also_where_it_is_not_among_the_values():
    space = space_of(RECIPE.changed({"lr": 3e-4}), vary={"lr": "1e-4,1e-3", "experts": "seg|depth"})
    base = {"lr": 3e-4, "experts": "seg,depth,normal"}
    changed = [{"lr": 1e-4}, {"lr": 1e-3}, {"experts": "seg"}, {"experts": "depth"}]
    assert space.combinations() == [base, *({**base, **each} for each in changed)]
    names = ["base", "lr 0.0001", "lr 0.001", "experts seg", "experts depth"]
    assert [space.name(params) for params in space.combinations()] == names
    assert space_of().name({**space_of().base, "lambda_seg": 0.1}) == "λseg 0.1"


def test_tpe_draws_from_ranges_on_a_log_scale():
    vary = {"lambda_seg": "0.01:100", "batch_size": "2:5", "precision": "fp32,bf16"}
    space = space_of(search="tpe", vary=vary, trials=60)
    assert space.combinations() == [] and space.total == 60
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    params = [study.ask(dict(space.distributions)).params for _ in range(60)]
    assert {each["batch_size"] for each in params} == {2, 3, 4, 5}
    assert {each["precision"] for each in params} == {"fp32", "bf16"}
    assert 15 < sum(each["lambda_seg"] < 1 for each in params) < 45, "on a linear scale none"
    assert set(space_of(search="tpe").distributions) == set(LAMBDAS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vary": {"learning": "1,2"}}, "no setting 'learning'"),
        ({"vary": {"lambda_colour": "1,2"}}, "no setting 'lambda_colour'"),
        ({"vary": {"lambda_seg": "-1,1"}}, "lambda_seg"),
        ({"vary": {"seed": "1,2"}}, "--confirm for seeds"),
        ({"vary": {"lr": ""}}, "lr"),
        ({"search": "grid", "vary": {"lr": "1e-4:1e-3"}}, "lr=1e-4:1e-3"),
        ({"search": "grid", "vary": dict.fromkeys(LAMBDAS, "0,1")}, "every lambda is 0"),
        ({"search": "tpe", "vary": {"lr": "1e-3:1e-4"}}, "LOW below HIGH"),
        ({"search": "tpe", "vary": {"lr": "-1:1"}}, "greater than 0"),
        ({"search": "tpe", "vary": {"experts": "seg:depth"}}, "a range is LOW:HIGH of a number"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        space_of(**options)
