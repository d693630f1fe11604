"""A study: every trial ends once, whatever fails, is killed, or is started twice."""

from __future__ import annotations

import asyncio
import errno
import json
import math
import random
import signal
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import product
from pathlib import Path

import optuna
import pytest

from backbones.cliptex.recipes import RECIPES
from cliptex_common.errors import UserError
from reports.records import PLOTS
from reports.store import Store
from reports.studies import find_study, study_frame
from sweeps.study import (
    best_recipe,
    create_study,
    fix_identity,
    load_study,
    next_trial,
    queue_trials,
    sole_driver,
    storage_errors,
    storage_url,
)
from sweeps.trial import gains
from tests.forks import Fork
from tests.sweeps.cheap import (
    BASELINE,
    RECIPE,
    drive_slowly,
    finish,
    hold,
    measure,
    sweep_of,
    values,
)

pytestmark = pytest.mark.integration
SEG = {"vary": {"lambda_seg": "0.1,1,10"}}


def runs_of(tracker):
    return {run.run_id: run for run in tracker.search(study="cheap")}


def statuses(tracker):
    return sorted(run.status for run in tracker.search("tags.`cliptex.trial` != ''"))


def test_every_trial_is_finished_once_and_optuna_and_mlflow_agree(storage, tracker):
    running, most, lines = set(), [], []

    async def watched(recipe, run):
        running.add(run.id)
        most.append(len(running))
        await asyncio.sleep(0.02)
        running.remove(run.id)
        return measure(recipe)

    sweep = finish(sweep_of(storage, tracker, watched, lines), width=3)
    assert max(most) == 3 and len(lines) == 1 + 9
    assert finish(sweep_of(storage, tracker, watched)).unfinished == 0, "all is done"
    assert len(values(sweep)) == len(sweep.study.trials) == 9
    runs = runs_of(tracker)
    assert {run.status for run in runs.values()} == {"done"}
    for trial in sweep.study.trials:
        run = runs[trial.user_attrs["mlflow.run"]]
        assert run.parent == sweep.study.user_attrs["mlflow.run"]
        assert run.tags["trial"] == str(trial.number)
        assert run.metrics["objective"] == pytest.approx(trial.value)
        assert {name: float(value) for name, value in run.params.items()} == trial.params
    plain = optuna.load_study(study_name="cheap", storage=storage_url(storage))
    assert plain.best_params["lambda_seg"] == 0.1
    stored = best_recipe(sweep.study)
    assert RECIPES[stored.pop("recipe")].changed(stored) == RECIPE.changed({"lambda_seg": 0.1})
    figures = Path(tracker.client.download_artifacts(sweep.parent.id, PLOTS)).read_text()
    titles = [figure["title"] for figure in json.loads(figures)]
    assert len(titles) == 5 and "Optimization History Plot" in titles
    assert len(figures) < 100_000, "without Plotly's template"


def test_tpe_gets_its_trials_and_may_get_more(storage, tracker):
    assert len(values(finish(sweep_of(storage, tracker, search="tpe", trials=5)))) == 5
    finish(sweep_of(storage, tracker, search="tpe", trials=2))
    trials = values(finish(sweep_of(storage, tracker, search="tpe", trials=8)))
    assert len({params["lambda_seg"] for params, _ in trials}) == len(trials) == 8


@pytest.mark.parametrize(
    "search", [SEG, pytest.param({"search": "tpe", "trials": 5}, marks=pytest.mark.slow)]
)
def test_a_driver_killed_anywhere_is_followed_by_one_that_finishes(
    search, storage, tracker, tmp_path
):
    """kill -9 at random times: the same trials with the same values as undisturbed."""
    chance = random.Random(f"{search}{storage}")
    for number in range(3):
        arguments = storage, tracker.uri, tracker.experiment, tmp_path, search
        fork = Fork(drive_slowly, *arguments, output=tmp_path / f"output-{number}")
        begun = len(list(tmp_path.glob("begun-*")))
        while fork.process.is_alive() and len(list(tmp_path.glob("begun-*"))) == begun:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.5))
        if fork.process.is_alive():
            fork.signal(signal.SIGKILL)
        assert fork.end() in (0, -9), fork.text()
    tracker.close_stale()
    sweep = finish(sweep_of(storage, tracker, **search), width=1)
    undisturbed = finish(sweep_of(f"sqlite:///{tmp_path}/other.db", tracker, **search), width=1)
    assert values(sweep) == values(undisturbed)
    assert {trial.state.name for trial in sweep.study.trials} <= {"COMPLETE", "FAIL"}
    assert set(statuses(tracker)) <= {"done", "interrupted"}


@pytest.mark.parametrize("queued", [False, True])
def test_a_trial_that_died_between_two_of_its_params_is_drawn_again(queued, tmp_path, tracker):
    died, undisturbed = (
        sweep_of(f"sqlite:///{tmp_path}/{name}.db", tracker, search="tpe", trials=3)
        for name in ("died", "undisturbed")
    )
    if queued:  # by a second driver, after the first had died with all of its params
        next_trial(died.study, died.space)
        queue_trials(died.study, died.space)
    died.study.ask().suggest_float("lambda_clip", 0.01, 100, log=True)
    assert values(finish(died, width=1)) == values(finish(undisturbed, width=1))


def test_a_second_driver_is_refused_in_one_line(url, tmp_path, tracker):
    refused = pytest.raises(UserError, match="is driven by another process")
    fork = Fork(hold, url, tmp_path, output=tmp_path / "output")
    fork.wait_for(tmp_path, "driving")
    try:
        with refused, sole_driver("cheap", storage_url(url)):
            pass
    finally:
        fork.signal(signal.SIGKILL)
        fork.end()
    with sole_driver("cheap", storage_url(url)):
        sweep = finish(sweep_of(url, tracker, **SEG))
    # on a machine without this lock, the sweep's run in MLflow decides
    tracker.client.update_run(sweep.parent.id, status="RUNNING")
    with refused:
        finish(sweep_of(url, tracker, **SEG))


def test_a_trial_that_fails_is_left_out_and_tried_again_by_the_next_launch(storage, tracker):
    lines = []

    async def fails(recipe, run):
        if recipe.loss_weights.get("seg", 0.0) == 10:
            raise RuntimeError("the loss became NaN\nat step 3")
        return measure(recipe)

    sweep = finish(sweep_of(storage, tracker, fails, lines, **SEG))
    assert (len(values(sweep)), sweep.unfinished) == (2, 1)
    assert any("λseg 10 failed: RuntimeError: the loss became NaN" in line for line in lines)
    assert statuses(tracker) == ["done", "done", "failed"]
    assert runs_of(tracker)[sweep.parent.id].status == "failed"
    assert finish(sweep_of(storage, tracker, **SEG)).unfinished == 0
    assert runs_of(tracker)[sweep.parent.id].status == "done"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), UserError("no such weights")]
)
def test_an_error_of_the_user_ends_the_sweep(error, url, tracker):
    async def fails(recipe, run):
        if recipe.name != "clip-ft" and recipe.loss_weights.get("seg", 0.0) == 1:
            raise RuntimeError("while saving") from error
        await asyncio.sleep(0 if recipe.name == "clip-ft" else 600)  # nobody waits for it
        return measure(recipe)

    with pytest.raises(RuntimeError, match="while saving"):
        finish(sweep_of(url, tracker, fails, **SEG))
    assert statuses(tracker) == ["failed", "interrupted"]
    assert len(values(finish(sweep_of(url, tracker, **SEG)))) == 3


@pytest.mark.parametrize("broken", ["clip-ft", "cliptex"])
def test_a_metric_that_is_missing_is_an_error(broken, url, tracker):
    async def incomplete(recipe, run):
        metrics = measure(recipe)
        return {**metrics, "mini-depth/linear": {}} if recipe.name == broken else metrics

    lines = []
    sweep = finish(sweep_of(url, tracker, incomplete, lines, **SEG))
    assert sweep.unfinished == 3 and len(sweep.study.trials) == (0 if broken == "clip-ft" else 3)
    assert "no value for gain/mini-depth/linear" in lines[-1]


def test_the_objective_is_the_mean_gain_of_dense_tasks():
    better = {"mini-seg/linear": {"mIoU": 30.8}, "mini-depth/linear": {"abs_rel": 0.24}}
    result = gains({**BASELINE, **better}, BASELINE)
    assert (result["gain/mini-seg/linear"], result["zero-shot"]) == (pytest.approx(10), 0)
    assert result["gain/mini-depth/linear"] == pytest.approx(25), "a smaller error is a gain"
    assert result["objective"] == pytest.approx(17.5)
    only = {"mini-class/zero-shot": {"top1": 55.0}}
    assert gains(only, {"mini-class/zero-shot": {"top1": 50.0}})["objective"] == pytest.approx(10)
    assert math.isnan(gains({}, BASELINE)["objective"])


def test_best_and_base_run_again_on_the_same_fresh_seeds_once(url, tracker):
    """One that fails is left out. The report compares them."""
    measured = []

    async def noisy(recipe, run):
        seg = recipe.loss_weights.get("seg", 0.0)
        measured.append((seg, recipe.seed))
        if measured[-1] == (0.1, 3) and measured.count((0.1, 3)) == 1:
            raise RuntimeError("the loss became NaN")
        metrics = measure(recipe)
        mean = metrics["mini-seg/linear"]["mIoU"]
        return {**metrics, "mini-seg/linear": {"mIoU": mean + 0.01 * recipe.seed * seg}}

    study = lambda: find_study(Store(tracker.uri), "cheap", [tracker.experiment])
    finish(sweep_of(url, tracker, noisy, **SEG))
    assert "λseg 0.1 is best" in study().headline and "not confirmed" in study().headline
    for _ in range(3):
        finish(sweep_of(url, tracker, noisy, **SEG), seeds=(1, 2, 3))
    again = sorted(each for each in measured if each[1])
    assert again == sorted([(0.1, 3), *product((0.1, 1.0), (1, 2, 3))]), "seed 3 failed once"
    assert "on fresh seeds it is better (+1.7" in study().headline
    assert study_frame(study())["trial"].tolist()[3:] == ["again: λseg 0.1", "again: base"]


def test_a_changed_study_is_refused_with_its_differences(url):
    study = create_study("cheap", storage_url(url))
    fix_identity(study, {"recipe": {"lr": 1.0, "experts": ("seg",)}, "search": "linear"})
    fix_identity(study, {"recipe": {"lr": 1.0, "experts": ["seg"]}})
    fix_identity(study, {"labels": "a"})
    with pytest.raises(UserError, match=r"recipe\.lr: 1.0 → 2.0") as caught:
        fix_identity(study, {"recipe": {"lr": 2.0}, "labels": "b"})
    assert 'labels: "a" → "b"' in str(caught.value) and "--study NAME" in str(caught.value)


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("sweeps.db", "cannot use the storage"),
        ("mysql://host/db", "cannot use the storage"),
        ("sqlite:////no/such/folder/sweeps.db", "cannot use the storage"),
        ("sqlite:///text", "cannot use the storage"),
        ("postgresql://someone:secret@127.0.0.1:9/db", r"someone:\*\*\*@127.0.0.1:9/db"),
        ("lost", "same command again"),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_line(
    storage, message, url, tracker, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("not a database\n" * 100)
    if storage == "lost":  # in the middle
        sweep, storage = sweep_of(url, tracker), url
        with closing(sqlite3.connect(tmp_path / "sweeps.db")) as connection:
            connection.execute("drop table trials")
        use = lambda address: finish(sweep)
    else:
        use = lambda address: create_study("cheap", address)
    address = storage_url(storage)
    with pytest.raises(UserError, match=message) as caught, storage_errors(address):
        use(address)
    assert "\n" not in str(caught.value)


def test_a_study_is_found_by_its_name_or_because_it_is_the_only_one(url, tmp_path):
    address = storage_url(url)
    assert load_study(None, address) is None and not list(tmp_path.iterdir()), "creates nothing"
    create_study("one", address)
    assert load_study(None, address).study_name == "one" and load_study("two", address) is None
    create_study("two", address)
    with pytest.raises(UserError, match="one, two; select one with --study"):
        load_study(None, address)


@pytest.mark.parametrize("directions", [["maximize"], ["minimize"], ["maximize", "maximize"]])
def test_a_study_of_another_program_is_refused(directions, url):
    """Also by ``sweep launch``, which would add its trials."""
    address = storage_url(url)
    other = optuna.create_study(study_name="other", storage=address, directions=directions)
    other.add_trial(optuna.create_trial(values=[1.0 for _ in directions]))
    for look_up in (load_study, create_study):
        with pytest.raises(UserError, match="study 'other' is not one of `sweep launch`"):
            look_up("other", address)


def test_several_processes_may_create_a_storage_at_once(storage):
    create = lambda name: create_study(name, storage_url(storage)).study_name
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(create, "abcd")) == [*"abcd"]
