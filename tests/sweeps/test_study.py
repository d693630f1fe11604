"""Identity of a study, errors of its storage, its summary and plots."""

from __future__ import annotations

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest

from cliptex_common.errors import UserError
from sweeps.driver import Evaluation
from sweeps.plots import plots
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

pytestmark = pytest.mark.integration


def test_the_number_of_trials_grows_and_never_shrinks(storage):
    for trials, cells in ((4, 4), (9, 9), (2, 9)):
        assert len(start(storage, search="tpe", trials=trials).space.cells()) == cells


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"values": (0.1, 1.0)}, r"lambda_clip.values: \[0.1, 1.0, 10.0\] → \[0.1, 1.0\]"),
        ({"search": "grid"}, 'space.search: "linear" → "grid"'),
        ({"objectives": ("dense",)}, r'objectives: \["gain"\] → \["dense"\]'),
        ({"prune": "val/i2t_R@1"}, 'prune: "" → "val/i2t_R@1"'),
    ],
)
def test_a_changed_study_is_refused_with_its_differences(url, changed, difference):
    start(url)
    with pytest.raises(UserError, match=difference) as caught:
        start(url, **changed)
    assert "--study NAME" in str(caught.value)


def test_differences_name_every_leaf():
    old, new = {"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 2, "c": [1]}, "e": 3}
    assert differences(old, new) == ["a.b: 1 → 2", "d: 2 → (absent)", "e: (absent) → 3"]


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("sweeps.db", "is not supported"),
        ("mysql://host/db", "is not supported"),
        ("sqlite:////no/such/folder/sweeps.db", "cannot use the storage"),
        ("sqlite:///text", "cannot use the storage"),
        ("journal:///text", "is not a journal of Optuna"),
        (
            "postgresql+psycopg://someone:secret@127.0.0.1:9/db",
            r"cannot use the storage postgresql\+psycopg://someone:\*\*\*@127.0.0.1:9/db",
        ),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_line(storage, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "not a database\n" * 100 + "end"
    (tmp_path / "text").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        start(storage)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "text").read_text() == text


def test_reading_creates_nothing(tmp_path, url):
    for missing in (url, f"journal:///{tmp_path}/sweeps.log"):
        with pytest.raises(UserError, match="no sweeps at"):
            load_sweep(None, missing)
    assert not list(tmp_path.iterdir())


def test_a_study_must_exist_and_be_unambiguous(url):
    start(url)
    with pytest.raises(UserError, match=r"no study 'other' .* there: cheap"):
        load_sweep("other", url)
    start(url, "second")
    with pytest.raises(UserError, match="cheap, second; select one"):
        load_sweep(None, url)


def test_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage_url(None) == f"sqlite:///{tmp_path}/sweeps.db"
    journal = f"journal:///{tmp_path}/some.log"
    spellings = ("some.log", "journal:///some.log", f"{tmp_path}/some.log", journal)
    assert {storage_url(spelling) for spelling in spellings} == {journal}


def test_a_storage_that_is_lost_in_the_middle_is_one_line(url, tmp_path, tracker):
    sweep = start(url)
    with closing(sqlite3.connect(tmp_path / "sweeps.db")) as connection:
        connection.execute("drop table trials")
    with pytest.raises(UserError, match=r"lost the storage sqlite.*same command again") as caught:
        finish(sweep, tracker)
    assert "\n" not in str(caught.value)


def test_a_journal_whose_writer_was_killed_in_the_middle_of_a_line_goes_on(tmp_path, tracker):
    path = tmp_path / "sweeps.log"
    start(str(path))
    content = path.read_bytes()
    path.write_bytes(content + content.splitlines()[-1][:20])
    sweep = start(str(path))
    assert finish(sweep, tracker) == 9 == len(completed(load_sweep(None, str(path))))


@pytest.mark.parametrize("names", [["study"] * 4, ["a", "b", "c", "d"]])
def test_several_threads_may_create_a_storage_at_once(names, storage):
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(lambda name: start(storage, name).name, names)) == names


def again(sweep, params, seed: int, iou: float) -> None:
    """A cell that was run again with a fresh seed, as ``sweep launch`` notes it."""
    metrics = {**measure(params), "seg/linear": {"mIoU": iou, "aAcc": 61.0}}
    sweep.store(f"again.{seed}.{iou}", {"params": params, "seed": seed, "metrics": metrics})


def test_summary_names_the_best_lambda_of_each_task_and_what_fresh_seeds_say(url, tracker):
    sweep = start(url, objectives=("seg/linear/mIoU",))
    finish(sweep, tracker)
    rows = {row["what"]: row for row in summary(sweep).to_dict("records")}
    seg = rows["seg/linear"]
    shown = [seg[key] for key in ("best", "value", "base", "baseline")]
    assert shown == ["λseg 0.1", 30.0, 29.0, 28.0]
    assert seg["verdict"] == rows["seg/linear/mIoU"]["verdict"] == "not confirmed"
    assert (rows["depth/linear"]["best"], rows["depth/linear"]["verdict"]) == ("base", "")
    expected = {**sweep.space.base, "recipe": "cliptex", "epochs": 2.0, "lambda_seg": 0.1}
    assert best_recipe(sweep, best_trial(sweep)) == expected

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
        return Evaluation({**measure(params), "seg/linear": {"mIoU": 30 + rng.normal()}})

    finish(sweep, tracker, noisy)
    gaps = rng.normal(0, 1.4, (2000, 5))
    clear = [_verdict(each, len(complete(sweep)) - 1) == "clear" for each in gaps]
    assert np.mean(clear) <= 0.05 / 8, "one side of two"
    assert _verdict(np.array([5.0, 5.1, 5.2]), 8) == "clear"


def test_a_trial_that_loses_zero_shot_is_not_chosen(url, tracker):
    """The default objective looks at dense tasks alone; zero-shot must not pay for them."""
    options = {"objectives": (), "lambdas": ("clip",), "values": (0.1, 10.0)}
    free = start(url, "free", **options)
    constrained = start(url, "constrained", zero_shot_loss=5.0, **options)

    async def traded(params, run, pruning):
        metrics = measure({**params, "lambda_clip": 1.0})
        metrics["seg/linear"]["mIoU"] += params["lambda_clip"]
        metrics["class/zero-shot"] = {"top1": 50.0 - params["lambda_clip"]}
        return Evaluation(metrics)

    for sweep in (free, constrained):
        finish(sweep, tracker, traded)
        assert sweep.objectives[0].name == "dense"
    assert best_trial(free).params["lambda_clip"] == 10.0, "20 % of zero-shot are lost"
    assert best_trial(constrained).params["lambda_clip"] == 1.0
    rows = {row["what"]: row for row in summary(constrained).to_dict("records")}
    assert rows["dense gain over clip-ft (%)"]["best"] == "base"
    assert rows["seg/linear"]["best"] == "λclip 10"
    assert trial_table(constrained)["state"].str.contains("loses zero-shot").sum() == 1
    aimed = start(url, "aimed", objectives=("dense", "zero-shot"), zero_shot_loss=5.0)
    assert aimed.constraint is None
    options = {"search": "tpe", "trials": 3, "objectives": (), "lambdas": ("clip",)}
    tpe = start(url, "tpe", zero_shot_loss=5.0, **options)
    finish(tpe, tracker, traded)
    assert completed(tpe) and all("constraints" in trial.system_attrs for trial in tpe.trials())


def test_several_objectives_give_a_pareto_front(url, tracker):
    sweep = start(url, search="grid", objectives=("dense", "zero-shot"), lambdas=("clip", "seg"))

    async def traded(params, run, pruning):
        metrics = measure(params)
        metrics["class/zero-shot"] = {"top1": 50.0 + params["lambda_clip"]}  # a trade-off
        return Evaluation(metrics)

    finish(sweep, tracker, traded)
    front = pareto_front(sweep)
    settings = {(t.params["lambda_clip"], t.params["lambda_seg"]) for t in front}
    assert settings == {(1.0, 0.1), (10.0, 0.1)}
    table = trial_table(sweep)
    marked = table["trial"][table["state"].str.contains("Pareto")]
    assert set(marked) == {trial.number for trial in front}


def test_plots(url, tracker):
    sweep = start(url)
    assert plots(sweep) == []
    finish(sweep, tracker)
    figures = plots(sweep)
    titles = " ".join(figure["title"] for figure in figures)
    for title in ("History", "Parallel Coordinate", "Slice", "Contour", "Importances"):
        assert title in titles
    text = json.dumps(figures)
    assert "mean gain over clip-ft" in text
    assert len(text) < 100_000, "without Plotly's template"
