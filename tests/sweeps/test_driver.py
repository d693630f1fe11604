"""One driver: every cell ends once, whatever breaks, is killed, or is started twice."""

from __future__ import annotations

import asyncio
import errno
import pickle
import random
import signal
import time
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from cliptex_common.errors import UserError
from reports.mlflow.heartbeat import LIMIT, LOCK_TAG, MACHINE_TAG, TIME_TAG
from sweeps.driver import FAILURES, Evaluation
from sweeps.study import load_sweep
from sweeps.summary import progress
from tests.forks import Fork
from tests.sweeps.cheap import (
    cells,
    completed,
    drive_slowly,
    evaluate,
    finish,
    hold,
    measure,
    start,
)

pytestmark = pytest.mark.integration


def trial_runs(sweep, tracker):
    parent = sweep.metadata["mlflow"]["run"]
    return {
        run.info.run_id: run for run in tracker.search(f"tags.`mlflow.parentRunId` = '{parent}'")
    }


def check_complete(sweep, tracker):
    """Every cell is finished once with its value; Optuna and MLflow agree."""
    assert completed(sweep) == cells(sweep)
    assert {trial.state for trial in sweep.trials()} == {TrialState.COMPLETE}
    runs = trial_runs(sweep, tracker)
    finished = [run for run in runs.values() if run.info.status == "FINISHED"]
    assert len(finished) == len(cells(sweep))
    for trial in sweep.trials():
        run = runs[trial.user_attrs["mlflow.run"]]
        assert run.info.status == "FINISHED" and "failure" not in run.data.tags
        assert (run.data.tags["trial"], run.data.tags["study"]) == (str(trial.number), "cheap")
        assert run.data.metrics["objective/gain"] == pytest.approx(trial.value)
        assert run.data.metrics["gain/seg/linear"] == pytest.approx(
            100 * (measure(trial.params)["seg/linear"]["mIoU"] - 28) / 28
        )
        assert {name: float(value) for name, value in run.data.params.items()} == trial.params
        assert trial.user_attrs["metrics"] == measure(trial.params)


def test_every_cell_is_finished_once_and_at_most_width_at_a_time(storage, tracker):
    sweep = start(storage)
    under_way, most = set(), []

    async def watched(params, run, pruning):
        under_way.add(run)
        most.append(len(under_way))
        await asyncio.sleep(0.02)
        under_way.remove(run)
        return await evaluate(params, run, pruning)

    lines = []
    assert finish(sweep, tracker, watched, lines=lines) == 9
    assert max(most) == 3 and len(lines) == 9
    check_complete(sweep, tracker)
    assert finish(sweep, tracker, watched) == 0, "all is done"
    assert len(sweep.trials()) == len(trial_runs(sweep, tracker)) == 9
    plain = optuna.load_study(study_name="cheap", storage=sweep.study._storage)
    assert plain.best_params["lambda_seg"] == 0.1


@pytest.mark.parametrize("search", ["random", "tpe", "cmaes"])
def test_samplers_get_their_trials_and_may_get_more(search, storage, tracker):
    sweep = start(storage, search=search, trials=5)
    assert finish(sweep, tracker) == 5
    more = start(storage, search=search, trials=8)
    assert finish(more, tracker) == 3
    assert completed(more) == cells(more) and len(more.trials()) == 8
    assert len({trial.params["lambda_seg"] for trial in more.trials()}) == 8, "none is drawn twice"


@pytest.mark.parametrize("seed", range(2))
def test_a_driver_killed_anywhere_is_followed_by_one_that_finishes(
    seed, storage, tracker, tmp_path
):
    """kill -9 at random times; running trials are resumed in the same MLflow run."""
    chance = random.Random(f"{seed}{storage}")
    sweep = start(storage, lambdas=("seg", "clip"))
    for number in range(2):
        arguments = storage, tracker.uri, tracker.experiment, tmp_path
        fork = Fork(drive_slowly, *arguments, output=tmp_path / f"output-{number}")
        seen = len(list(tmp_path.glob("begun-*")))
        while fork.process.is_alive() and len(list(tmp_path.glob("begun-*"))) == seen:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.8))
        if fork.process.is_alive():
            fork.signal(signal.SIGKILL)
        assert fork.end() in (0, -9), fork.text()
    tracker.close_stale()
    finish(load_sweep("cheap", storage), tracker)
    check_complete(sweep, tracker)
    statuses = {run.info.status for run in trial_runs(sweep, tracker).values()}
    assert statuses <= {"FINISHED", "KILLED"}


def test_a_sampled_trial_keeps_its_params_when_its_driver_was_interrupted(storage, tracker):
    sweep = start(storage, search="random", trials=1)

    async def interrupted(params, run, pruning):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish(sweep, tracker, interrupted)
    (trial,) = sweep.trials()
    (run,) = trial_runs(sweep, tracker).values()
    assert trial.state == TrialState.RUNNING and run.info.status == "KILLED"
    assert progress(sweep).running == 0 and progress(sweep).pending == 1, "nobody drives it"
    assert finish(sweep, tracker) == 1
    (again,) = sweep.trials()
    assert again.state == TrialState.COMPLETE and again.params == trial.params
    (run,) = trial_runs(sweep, tracker).values()
    assert run.info.status == "FINISHED" and again.user_attrs["mlflow.run"] == run.info.run_id


def test_a_second_driver_is_refused_in_one_line(storage, tmp_path, tracker, monkeypatch):
    sweep = start(storage)
    fork = Fork(hold, storage, tmp_path, output=tmp_path / "output")
    fork.wait_for(tmp_path, "driving")
    try:
        with pytest.raises(UserError, match="is driven by another process") as caught:
            finish(sweep, tracker)
        assert "\n" not in str(caught.value)
        with monkeypatch.context() as patch:
            # no lock in common: the sign of life in the study decides
            patch.setenv("CLIPTEX_HOME", str(tmp_path / "another"))
            with pytest.raises(UserError, match="is driven by another process"):
                finish(sweep, tracker)
    finally:
        fork.signal(signal.SIGKILL)
        fork.end()
    assert finish(sweep, tracker) == 9, "it is gone, so the study is free at once"


def test_a_driver_on_another_machine_counts_by_its_time_stamp(url, tracker):
    sweep = start(url, lambdas=("seg",))
    driver = {MACHINE_TAG: "elsewhere/boot", LOCK_TAG: "lock"}
    sweep.store("driver", {**driver, TIME_TAG: str(time.time() - LIMIT + 60)})
    with pytest.raises(UserError, match="is driven by another process on elsewhere"):
        finish(sweep, tracker)
    sweep.store("driver", {**driver, TIME_TAG: str(time.time() - LIMIT - 1)})
    assert finish(sweep, tracker) == 3
    assert not sweep.metadata["driver"]


def test_a_cell_that_breaks_is_tried_again_then_given_up_and_the_others_go_on(storage, tracker):
    sweep = start(storage, lambdas=("seg",))
    tried = []

    async def breaks(params, run, pruning):
        tried.append(params["lambda_seg"])
        if params["lambda_seg"] == 10 or (params["lambda_seg"] == 0.1 and tried.count(0.1) == 1):
            raise RuntimeError("the loss became NaN\nat step 3")
        return await evaluate(params, run, pruning)

    assert finish(sweep, tracker, breaks) == 3 - 1
    now = progress(sweep)
    assert tried.count(10) == FAILURES == tried.count(0.1) and tried.count(1) == 1
    assert (now.done, now.pending, now.failures) == (2, 0, FAILURES + 1)
    assert list(now.given_up.values()) == ["RuntimeError: the loss became NaN"]
    statuses = sorted(run.info.status for run in trial_runs(sweep, tracker).values())
    assert statuses == ["FAILED"] * 3 + ["FINISHED"] * 2
    assert finish(sweep, tracker) == 1, "the next launch tries it again"
    assert completed(sweep) == cells(sweep) and progress(sweep).given_up == {}


def test_a_failed_sample_gets_new_params(url, tracker):
    sweep = start(url, search="random", trials=1)

    async def breaks_once(params, run, pruning):
        if len(sweep.trials()) == 1:
            raise RuntimeError("it broke")
        return await evaluate(params, run, pruning)

    assert finish(sweep, tracker, breaks_once) == 1
    first, second = sweep.trials()
    assert first.params != second.params and first.user_attrs["cell"] == second.user_attrs["cell"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), UserError("no such weights")]
)
def test_an_error_of_the_user_ends_the_sweep_and_does_not_count(error, url, tracker):
    sweep = start(url, lambdas=("seg",))

    async def fails(params, run, pruning):
        if params["lambda_seg"] == 1:
            raise RuntimeError("while saving") from error
        await asyncio.sleep(600)  # nobody waits for it

    with pytest.raises(RuntimeError, match="while saving"):
        finish(sweep, tracker, fails)
    assert progress(sweep).failures == 0
    statuses = [run.info.status for run in trial_runs(sweep, tracker).values()]
    assert sorted(statuses) == ["FAILED", "KILLED", "KILLED"]
    assert finish(sweep, tracker) == 3
    check_complete(sweep, tracker)


def test_a_metric_that_is_missing_fails_the_trial(url, tracker):
    sweep = start(url, lambdas=("seg",), values=(1.0,))

    async def incomplete(params, run, pruning):
        return Evaluation({**measure(params), "depth/linear": {}})

    assert finish(sweep, tracker, incomplete) == 0
    assert "no value for depth/linear/abs_rel" in next(iter(progress(sweep).given_up.values()))


@pytest.mark.parametrize("objective", ["gain", "depth/linear/abs_rel"])
def test_successive_halving_stops_the_worse_trials(objective, storage, tracker):
    """Trials are compared by a metric of which more is better, whatever the objective.

    Each training reports from its own process.
    """
    sweep = start(storage, search="random", trials=8, prune="val/i2t_R@1", objectives=(objective,))
    steps = {}

    def train(params, run, pruning):
        steps[run] = []
        log_metrics = lambda metrics, step: steps[run].append(step)
        log = pickle.loads(pruning).watched(SimpleNamespace(log_metrics=log_metrics), per_epoch=10)
        for step in range(5, 45, 5):
            log.log_metrics({"train/loss": 1.0}, step)
            if step % 10 == 0:
                log.log_metrics({"val/i2t_R@1": measure(params)["seg/linear"]["mIoU"] * step}, step)

    async def trained(params, run, pruning):
        assert "sweeps" not in repr(pruning), "an address may hold a password"
        await asyncio.to_thread(train, params, run, pickle.dumps(pruning))
        return await evaluate(params, run, pruning)

    assert finish(sweep, tracker, trained, width=2) == 8
    now = progress(sweep)
    assert now.done == 8 and 1 <= now.pruned <= 7
    for trial in sweep.trials():
        run = tracker.client.get_run(trial.user_attrs["mlflow.run"])
        pruned = trial.state == TrialState.PRUNED
        assert run.info.status == ("KILLED" if pruned else "FINISHED")
        assert run.data.tags.get("failure", "").startswith("pruned") == pruned
        last = steps[run.info.run_id][-1]
        assert last == 40 or pruned
        history = tracker.client.get_metric_history(run.info.run_id, "intermediate")
        assert (
            [metric.step for metric in history]
            == list(range(1, last // 10 + 1))
            == sorted(trial.intermediate_values)
        )
    best = max(sweep.trials(), key=lambda t: measure(t.params)["seg/linear"]["mIoU"])
    assert best.state == TrialState.COMPLETE, "the best one is never stopped"
