"""A study knows what it was started with; storages that cannot be used are said in one line; plots
stand alone."""

from __future__ import annotations

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest

from common.errors import UserError
from sweeps.driver import Evaluation
from sweeps.plots import write_plots
from sweeps.storage import storage_url
from sweeps.study import differences, load_sweep
from sweeps.summary import (
    _verdict,
    best_recipe,
    best_trial,
    complete,
    pareto_front,
    summary,
    trial_table,
)
from tests.sweeps.cheap import completed, finish, measure, start


def test_going_on_with_the_same_is_fine_and_a_sampler_may_get_more_trials(storage):
    start(storage)
    assert len(start(storage).space.cells()) == 9
    start(storage, "more", search="tpe", trials=4)
    assert len(start(storage, "more", search="tpe", trials=9).space.cells()) == 9
    assert len(start(storage, "more", search="tpe", trials=2).space.cells()) == 9, (
        "what was asked for once is not taken back"
    )


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"values": (0.1, 1.0)},
            r"space.settings.lambda_clip.values: \[0.1, 1.0, 10.0\] → \[0.1, 1.0\]",
        ),
        ({"search": "grid"}, 'space.search: "linear" → "grid"'),
        ({"objectives": ("dense",)}, r'objectives: \["gain"\] → \["dense"\]'),
        ({"prune": "val/i2t_R@1"}, 'prune: "" → "val/i2t_R@1"'),
    ],
)
def test_a_changed_study_is_refused_with_what_differs(url, changed, says):
    start(url)
    with pytest.raises(UserError, match=says) as caught:
        start(url, **changed)
    assert "--study NAME" in str(caught.value)


def test_differences_name_every_leaf():
    old, new = {"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 2, "c": [1]}, "e": 3}
    assert differences(old, new) == ["a.b: 1 → 2", "d: 2 → (absent)", "e: (absent) → 3"]


def test_storages_that_cannot_be_used(tmp_path, url):
    for absent in (url, f"journal:///{tmp_path}/sweeps.log"):
        with pytest.raises(UserError, match="no sweeps at"):
            load_sweep(None, absent)
    assert not list(tmp_path.iterdir()), "asking must not make a database"
    with pytest.raises(UserError, match="is no address"):
        storage_url("sweeps.db")
    with pytest.raises(UserError, match="needs a file"):
        storage_url("sqlite://")
    with pytest.raises(UserError, match="only sqlite"):
        storage_url("mysql://host/db")
    with pytest.raises(UserError, match="no folder"):
        start(f"sqlite:///{tmp_path}/absent/sweeps.db")
    with pytest.raises(
        UserError,
        match=r"cannot use the storage postgresql\+psycopg://someone:\*\*\*@127.0.0.1:9/db",
    ):
        start("postgresql+psycopg://someone:secret@127.0.0.1:9/db")
    for name in ("text.db", "text.log"):
        (tmp_path / name).write_text(
            "not a database, but long enough to be looked at as if it were one\n" * 20
        )
        with pytest.raises(UserError, match=r"cannot use the storage|is no journal of Optuna"):
            start(f"{'sqlite' if name == 'text.db' else 'journal'}:///{tmp_path / name}")
    start(url)
    with pytest.raises(UserError, match=r"no study 'other' .* there: cheap"):
        load_sweep("other", url)
    start(url, "second")
    with pytest.raises(UserError, match="cheap, second; say which"):
        load_sweep(None, url)


def test_another_database_is_left_as_it_is(tmp_path):
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("create table mine (x)")
        with pytest.raises(UserError, match="no sweeps at"):
            load_sweep(None, f"sqlite:///{tmp_path / 'other.db'}")
        assert connection.execute("select name from sqlite_master").fetchall() == [("mine",)]


def test_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage_url(None) == f"sqlite:///{tmp_path}/sweeps.db"
    journal = f"journal:///{tmp_path}/some.log"
    assert {
        storage_url(told)
        for told in ("some.log", "journal:///some.log", f"{tmp_path}/some.log", journal)
    } == {journal}


def test_a_storage_that_is_lost_in_the_middle_is_one_line(url, tmp_path, tracker):
    sweep = start(url)
    with closing(sqlite3.connect(tmp_path / "sweeps.db")) as connection:
        connection.execute("drop table trials")
    with pytest.raises(
        UserError, match=r"lost the storage sqlite.*the same command goes on"
    ) as caught:
        finish(sweep, tracker)
    assert "\n" not in str(caught.value)


def test_a_journal_whose_writer_was_killed_in_the_middle_of_a_line_goes_on(tmp_path, tracker):
    path = tmp_path / "sweeps.log"
    start(str(path))
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[-1][:20])
    sweep = start(str(path))
    assert finish(sweep, tracker) == 9 == len(completed(load_sweep(None, str(path))))


@pytest.mark.parametrize("name", ["a study of each", None])
def test_a_new_storage_is_made_once_however_many_come_first(name, storage):
    with ThreadPoolExecutor(4) as pool:
        made = list(
            pool.map(
                lambda number: start(storage, f"study-{number}" if name else "one").name, range(4)
            )
        )
    assert made == [f"study-{number}" if name else "one" for number in range(4)]


def again(sweep, params, seed: int, iou: float) -> None:
    """A cell that was run again with a fresh seed, as ``sweep launch`` notes it."""
    metrics = {**measure(params), "seg/linear": {"mIoU": iou, "aAcc": 61.0}}
    sweep.note(f"again.{seed}.{iou}", {"params": params, "seed": seed, "metrics": metrics})


def test_summary_names_the_best_lambda_of_each_task_and_what_fresh_seeds_say(url, tracker):
    sweep = start(url, objectives=("seg/linear/mIoU",))
    finish(sweep, tracker)
    rows = {row["what"]: row for row in summary(sweep).to_dict("records")}
    seg = rows["seg/linear"]
    assert (seg["best"], seg["value"], seg["base"], seg["baseline"]) == (
        "λseg 0.1",
        30.0,
        29.0,
        28.0,
    )
    assert seg["verdict"] == rows["seg/linear/mIoU"]["verdict"] == "not confirmed", (
        "one trial's value tells nothing"
    )
    assert (rows["depth/linear"]["best"], rows["depth/linear"]["verdict"]) == ("base", "")
    wanted = {**sweep.space.base, "recipe": "cliptex", "epochs": 2.0, "lambda_seg": 0.1}
    assert best_recipe(sweep, best_trial(sweep)) == wanted

    best, base = best_trial(sweep).params, sweep.space.base
    for seed, noise in ((1, 0.2), (2, -0.2), (3, 0.0)):
        again(sweep, best, seed, 30.0 + noise)
        again(sweep, base, seed, 29.0 + noise + 0.01 * seed)
    rows = {row["what"]: row for row in summary(sweep).to_dict("records")}
    row = rows["seg/linear/mIoU"]
    assert row["confirmed"] == pytest.approx(1.0 - 0.02) and row["verdict"] == "clear"
    assert row["noise"] == pytest.approx(np.std([29.0, 29.21, 28.82, 29.03], ddof=1))

    for seed in (4, 5):  # seeds differ by more than winner and base do
        again(sweep, best, seed, 27.0)
        again(sweep, base, seed, 28.0)
    verdicts = {row["what"]: row["verdict"] for row in summary(sweep).to_dict("records")}
    assert verdicts["seg/linear/mIoU"] == verdicts["seg/linear"] == "within noise"


def test_the_best_of_equal_cells_is_rarely_clear(url, tracker):
    """Nine equal cells, five fresh seeds: the level is divided by the cells that were tried."""
    sweep = start(url, objectives=("seg/linear/mIoU",))
    rng = np.random.default_rng(0)

    async def noisy(params, run, pruning):
        return Evaluation(
            {**measure(params), "seg/linear": {"mIoU": 30 + rng.normal(), "aAcc": 61.0}}
        )

    finish(sweep, tracker, noisy)
    assert (trial := best_trial(sweep)).params != sweep.space.base
    gaps = rng.normal(0, 1.4, (2000, 5))
    clear = [_verdict(each, len(complete(sweep)) - 1) == "clear" for each in gaps]
    assert np.mean(clear) <= 0.05 / 8, "one side of two"
    assert (
        _verdict(np.array([5.0, 5.1, 5.2]), 8) == "clear"
        and _verdict(np.array([5.0]), 1) == "not confirmed"
    )
    assert trial.values[0] > 30


def test_a_trial_that_loses_zero_shot_is_not_chosen(url, tracker):
    """The default objective looks at dense tasks alone; zero-shot must not pay for them."""
    wanted = {"search": "linear", "objectives": (), "lambdas": ("clip",), "values": (0.1, 10.0)}
    free, held = start(url, "free", **wanted), start(url, "held", zero_shot_loss=5.0, **wanted)

    async def traded(params, run, pruning):
        metrics = measure({**params, "lambda_clip": 1.0})
        metrics["seg/linear"]["mIoU"] += params["lambda_clip"]
        metrics["class/zero-shot"] = {"top1": 50.0 - params["lambda_clip"]}
        return Evaluation(metrics)

    for sweep in (free, held):
        finish(sweep, tracker, traded)
        assert sweep.objectives[0].name == "dense"
    assert best_trial(free).params["lambda_clip"] == 10.0, "20 % of zero-shot are lost"
    assert best_trial(held).params["lambda_clip"] == 1.0
    rows = {row["what"]: row for row in summary(held).to_dict("records")}
    assert (
        rows["dense gain over clip-ft (%)"]["best"] == "base"
        and rows["seg/linear"]["best"] == "λclip 10"
    )
    assert trial_table(held)["state"].str.contains("loses zero-shot").sum() == 1
    assert (
        start(
            url, "aimed", **{**wanted, "objectives": ("dense", "zero-shot")}, zero_shot_loss=5.0
        ).constraint
        is None
    )
    tpe = start(
        url,
        "tpe",
        search="tpe",
        trials=3,
        objectives=("dense",),
        lambdas=("clip",),
        zero_shot_loss=5.0,
    )
    finish(tpe, tracker, traded)
    assert completed(tpe) and all("constraints" in trial.system_attrs for trial in tpe.trials())


def test_several_objectives_give_a_pareto_front(url, tracker):
    sweep = start(url, search="grid", objectives=("dense", "zero-shot"), lambdas=("clip", "seg"))

    async def traded(params, run, pruning):
        metrics = measure(params)
        metrics["class/zero-shot"] = {
            "top1": 50.0 + params["lambda_clip"]
        }  # what helps it costs the dense tasks
        return Evaluation(metrics)

    finish(sweep, tracker, traded)
    front = pareto_front(sweep)
    assert {(t.params["lambda_clip"], t.params["lambda_seg"]) for t in front} == {
        (1.0, 0.1),
        (10.0, 0.1),
    }
    table = trial_table(sweep)
    assert set(table["trial"][table["state"].str.contains("Pareto")]) == {
        trial.number for trial in front
    }


def test_plots_are_one_page_that_needs_nothing_else(url, tmp_path, tracker):
    sweep = start(url)
    assert write_plots(sweep, tmp_path) == []
    finish(sweep, tracker)
    page, data = write_plots(sweep, tmp_path)
    text = page.read_text()
    assert (
        text.count("<section>") == 5
        and text.count("Plotly.newPlot(") >= 5
        and 'src="http' not in text
    )
    for title in ("History", "Parallel Coordinate", "Slice", "Contour", "Importances"):
        assert f"{title}" in text
    assert len(text) < 6_000_000, "plotly's script is there once, not once a plot"
    assert "mean gain over clip-ft" in text
    figures = json.loads(data.read_text())
    assert len(figures) == 5 and all(one["title"] and one["spec"]["data"] for one in figures)
    assert len(data.read_text()) < 100_000, "without Plotly's template"
