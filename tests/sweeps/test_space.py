"""The cells and ranges of a search, and the options that are refused."""

from __future__ import annotations

import itertools

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbones.cliptex.training.recipes import RECIPES
from cliptex_common.errors import UserError
from sweeps.space import BASE, LAMBDAS, SearchRequest, Space, make_space, short

RECIPE = RECIPES["cliptex"].changed(BASE)


def space_of(recipe=RECIPE, **options) -> Space:
    return make_space(SearchRequest(**options), recipe)


def test_linear_search_is_the_papers_nine_cells():
    base, *cells = space_of().cells().values()
    assert base == BASE
    assert len(cells) == 8
    for params in cells:
        changed = [value for value in params.values() if value != 1.0]
        assert len(changed) == 1 and changed[0] in (0.1, 10.0)


def test_grid_is_every_combination_once_and_fixed_lambdas_are_params_too():
    recipe = RECIPE.changed({"lambda_normal": 2})
    cells = space_of(recipe, search="grid", lambdas=("clip", "seg")).cells().values()
    values = (0.1, 1.0, 10.0)
    expected = set(itertools.product(values, values, [1.0], [2.0]))
    assert {tuple(params.values()) for params in cells} == expected and len(cells) == 9


def test_further_settings_vary_around_their_base():
    vary = {"lr": "1e-4,1e-3", "experts": "seg|seg,depth"}
    recipe = RECIPE.changed({"lr": 3e-4})
    cells = space_of(recipe, lambdas=("seg",), vary=vary).cells().values()
    assert len(cells) == 1 + 2 + 2 + 2
    assert {params["experts"] for params in cells} == {"seg,depth,normal", "seg", "seg,depth"}
    assert sum(params["lr"] == 3e-4 for params in cells) == 5


def test_samplers_draw_within_the_ranges_on_a_log_scale():
    vary = {"batch_size": "2:5"}
    space = space_of(search="random", lambdas=("clip", "seg"), vary=vary, trials=60)
    assert list(space.cells().values()) == [{}] * 60
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    sampled = [space.suggest(study.ask()) for _ in range(60)]
    assert all(
        0.01 <= params["lambda_seg"] <= 100 and params["lambda_depth"] == 1.0 for params in sampled
    )
    assert {params["batch_size"] for params in sampled} == {2, 3, 4, 5}
    below = sum(params["lambda_seg"] < 1 for params in sampled)
    assert 15 < below < 45, "a linear scale would have none below 1"


@given(
    st.sampled_from(["linear", "grid"]),
    st.lists(st.sampled_from(LAMBDAS), unique=True, min_size=1, max_size=3),
    st.lists(st.floats(0, 1e4), min_size=1, max_size=4),
)
def test_every_cell_is_one_that_optuna_can_hold(search, lambdas, values):
    space = space_of(search=search, lambdas=lambdas, values=values)
    distributions = space.distributions()
    for params in space.cells().values():
        for name, value in params.items():
            assert distributions[name]._contains(distributions[name].to_internal_repr(value))
    assert Space.from_identity(space.identity(), space.trials) == space


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lambdas": ["colour"]}, "choose among clip, seg"),
        ({"values": [-1.0]}, "0 or more"),
        ({"between": (0.0, 1.0)}, "0 < LOW"),
        ({"trials": 0}, "trials=0"),
        ({"lambdas": []}, "nothing to vary"),
        ({"search": "grid", "vary": {"lr": "1e-4:1e-3"}}, "not a range"),
        ({"search": "tpe", "vary": {"lr": "1e-3:1e-4"}}, "LOW below HIGH"),
        ({"search": "tpe", "vary": {"experts": "seg:depth"}}, "a range is LOW:HIGH of a number"),
        ({"search": "tpe", "vary": {"lambda_seg": "1:2"}}, "--lambdas"),
        ({"vary": {"learning": "1,2"}}, "no setting 'learning'"),
        ({"search": "best"}, "search=best"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        space_of(**options)


def test_names_for_people():
    base = space_of().base
    assert short(base, base) == "base"
    assert short({**base, "lambda_seg": 0.1}, base) == "λseg 0.1"
