"""What is tried: cells, ranges, and what a user may say."""

from __future__ import annotations

import itertools

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from sweeps.space import LAMBDAS, SearchRequest, Space, cell_name, make_space, short


def test_linear_search_is_the_papers_nine_cells():
    cells = make_space(SearchRequest()).cells()
    assert len(cells) == len({cell.key for cell in cells}) == 9
    assert cells[0].params == dict.fromkeys((f"lambda_{name}" for name in LAMBDAS), 1.0), (
        "the base comes first"
    )
    for cell in cells[1:]:
        changed = [value for value in cell.params.values() if value != 1.0]
        assert len(changed) == 1 and changed[0] in (0.1, 10.0)


def test_grid_is_every_combination_once_and_fixed_lambdas_are_params_too():
    cells = make_space(SearchRequest("grid", ("clip", "seg"))).cells()
    expected = {(clip, seg) for clip, seg in itertools.product((0.1, 1.0, 10.0), repeat=2)}
    assert {(cell.params["lambda_clip"], cell.params["lambda_seg"]) for cell in cells} == expected
    assert len(cells) == 9
    assert all(cell.params["lambda_depth"] == cell.params["lambda_normal"] == 1.0 for cell in cells)
    assert len(make_space(SearchRequest("grid")).cells()) == 81


def test_further_settings_vary_around_their_base():
    bases = {"lr": 3e-4, "experts": ("seg", "depth", "normal")}

    def read(name, text):
        return tuple(text.split(",")) if name == "experts" else float(text)

    vary = {"lr": "1e-4,1e-3", "experts": "seg|seg,depth"}
    space = make_space(SearchRequest("linear", ("seg",), vary=vary), bases, read)
    cells = [cell.params for cell in space.cells()]
    assert len(cells) == 1 + 2 + 2 + 2
    assert {params["experts"] for params in cells} == {"seg,depth,normal", "seg", "seg,depth"}
    assert sum(params["lr"] == 3e-4 for params in cells) == 5


def test_samplers_draw_within_the_ranges_on_a_log_scale():
    request = SearchRequest("random", ("clip", "seg"), vary={"epochs": "1:4"}, trials=60)
    space = make_space(request, {"epochs": 2}, lambda _, t: int(t))
    assert [cell.params for cell in space.cells()] == [None] * 60
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    sampled = [space.suggest(study.ask()) for _ in range(60)]
    assert all(
        0.01 <= params["lambda_seg"] <= 100 and params["lambda_depth"] == 1.0 for params in sampled
    )
    assert {params["epochs"] for params in sampled} == {1, 2, 3, 4}
    below = sum(params["lambda_seg"] < 1 for params in sampled)
    assert 15 < below < 45, "a linear scale would have none below 1"


@given(
    st.sampled_from(["linear", "grid"]),
    st.lists(st.sampled_from(LAMBDAS), unique=True, min_size=1, max_size=3),
    st.lists(st.floats(0, 1e4), min_size=1, max_size=4),
)
def test_every_cell_is_one_that_optuna_can_hold(search, lambdas, values):
    space = make_space(SearchRequest(search, lambdas, values))
    cells = space.cells()
    assert len({cell.key for cell in cells}) == len(cells)
    distributions = space.distributions()
    for cell in cells:
        assert cell.key == cell_name(cell.params)
        for name, value in cell.params.items():
            assert distributions[name]._contains(distributions[name].to_internal_repr(value))
    again = Space.from_identity(space.identity(), space.trials)
    assert again == space


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"search": "linear", "lambdas": ["colour"]}, "choose among clip, seg"),
        ({"search": "linear", "values": [-1.0]}, "0 or more"),
        ({"search": "tpe", "between": (0.0, 1.0)}, "0 < LOW"),
        ({"search": "tpe", "trials": 0}, "at least 1"),
        ({"search": "linear", "lambdas": []}, "nothing to vary"),
        ({"search": "grid", "vary": {"lr": "1e-4:1e-3"}}, "not a range"),
        ({"search": "tpe", "vary": {"lr": "1e-3:1e-4"}}, "LOW below HIGH"),
        ({"search": "tpe", "vary": {"lambda_seg": "1:2"}}, "--lambdas"),
        ({"search": "best"}, "choose one of"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(arguments, says):
    with pytest.raises(UserError, match=says) as caught:
        make_space(SearchRequest(**arguments), {"lr": 1e-4})
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_names_for_people():
    space = make_space(SearchRequest())
    assert short(space.cells()[0].params, space.base) == "base"
    assert short({**space.base, "lambda_seg": 0.1}, space.base) == "λseg 0.1"
