"""Workers with MLflow: one killed in mid-trial on SQLite and PostgreSQL, failures, interruption, pruning."""

from __future__ import annotations

import os
import signal

import pytest
from optuna.trial import TrialState

from reports.tracking import Tracker
from sweeps.cells import next_trial, progress
from sweeps.processes import machine
from sweeps.summary import best_recipe, best_trial, pareto_front, summary, trial_rows
from sweeps.worker import Evaluation, work
from tests.sweeps.cheap import completed, fork, measure, start, track, wait_for


@pytest.fixture
def tracker(tmp_path):
    return Tracker("sweep", f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'sweeps.db'}"


def with_parent(sweep, tracker):
    """The study's own run, as `sweep launch` makes it."""
    parent = tracker.client.create_run(tracker.experiment_id, run_name="sweep").info.run_id
    sweep.note("mlflow", {"uri": tracker.uri, "experiment": "sweep", "run": parent})
    return parent


def runs_of(tracker, parent):
    found = tracker.search(f"tags.`mlflow.parentRunId` = '{parent}'")
    return {run.info.run_id: run for run in found}


@pytest.mark.slow
@pytest.mark.parametrize("server", ["sqlite", "postgres"])
def test_one_of_three_workers_killed_in_mid_trial(server, url, request, tmp_path, tracker):
    """Its heartbeat lapses, its cell is run again, every cell is finished exactly once, and MLflow shows it as KILLED."""
    storage = url if server == "sqlite" else request.getfixturevalue("postgres_database")
    sweep = start(storage, grace=3)
    parent = with_parent(sweep, tracker)
    victim = fork(track, storage, tracker.uri, 0, tmp_path, True)
    wait_for((tmp_path / "worker-0").exists)
    others = [fork(track, storage, tracker.uri, number, tmp_path, False) for number in (1, 2)]
    wait_for(lambda: progress(sweep).done >= 2)
    assert progress(sweep).running >= 1
    os.kill(victim.pid, signal.SIGKILL)
    for worker in others:
        worker.join(90)
    assert [worker.exitcode for worker in others] == [0, 0]

    assert completed(sweep) == sorted(cell.key for cell in sweep.space.cells())
    lost = [trial for trial in sweep.trials() if trial.state == TrialState.FAIL]
    assert len(lost) == 1 and len(sweep.trials()) == 10
    again = [t for t in sweep.trials() if t.user_attrs["cell"] == lost[0].user_attrs["cell"]]
    assert [t.state for t in again] == [TrialState.FAIL, TrialState.COMPLETE]
    runs = runs_of(tracker, parent)
    assert len(runs) == 10
    trainings = [run for one in runs for run in runs_of(tracker, one).values()]
    # what the killed one had begun, too
    assert sorted(run.info.status for run in trainings) == ["FINISHED"] * 9 + ["KILLED"]
    for trial in sweep.trials():
        run = runs[trial.user_attrs["mlflow.run"]]
        assert run.data.tags["trial"] == str(trial.number), "Optuna and MLflow name each other"
        assert run.data.tags["study"] == "cheap"
        assert run.info.status == ("KILLED" if trial.state == TrialState.FAIL else "FINISHED")
        if trial.state == TrialState.COMPLETE:
            assert run.data.metrics["objective/gain"] == pytest.approx(trial.value)
            gain = 100 * (run.data.metrics["seg/linear/mIoU"] - 28) / 28
            assert run.data.metrics["gain/seg/linear"] == pytest.approx(gain)
            assert run.data.metrics["seg/linear/mIoU"] == measure(trial.params)["seg/linear"]["mIoU"]
            assert {name: float(value) for name, value in run.data.params.items()} == trial.params


def test_failures_fail_the_trial_and_what_the_user_must_mend_ends_the_worker(url, tracker):
    sweep = start(url, lambdas=("seg",))
    parent = with_parent(sweep, tracker)

    def breaks_at_ten(params, run, report):
        if params["lambda_seg"] == 10:
            raise RuntimeError("the loss became NaN\nat step 3")
        return Evaluation(measure(params))

    assert work(sweep, breaks_at_ten, tracker) == 2
    now = progress(sweep)
    assert (now.done, now.failures) == (2, 2)
    assert list(now.given_up.values()) == ["RuntimeError: the loss became NaN"]
    assert sorted(run.info.status for run in runs_of(tracker, parent).values()) == ["FAILED"] * 2 + ["FINISHED"] * 2

    def full_disk(params, run, report):
        raise OSError(28, "No space left on device")

    other = start(url, "other", lambdas=("seg",))
    with_parent(other, tracker)
    with pytest.raises(OSError, match="No space"):
        work(other, full_disk, tracker)
    assert len(other.trials()) == 3 and progress(other).failures == 0, "it is not the cell's fault"

    def interrupted(params, run, report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(other, interrupted, tracker)
    assert work(other, lambda params, run, report: Evaluation(measure(params)), tracker) == 3
    assert completed(other) == sorted(cell.key for cell in other.space.cells())
    statuses = [run.info.status for run in runs_of(tracker, other.facts["mlflow"]["run"]).values()]
    assert sorted(statuses) == ["FAILED"] + ["FINISHED"] * 3 + ["KILLED"]


def test_a_metric_that_is_missing_fails_the_trial(url, tracker):
    sweep = start(url, lambdas=("seg",), values=(1.0,))
    with_parent(sweep, tracker)
    work(sweep, lambda params, run, report: Evaluation({**measure(params), "depth/linear": {}}), tracker)
    assert "no value for depth/linear/abs_rel" in next(iter(progress(sweep).given_up.values()))


@pytest.mark.parametrize("objective", ["gain", "depth/linear/abs_rel"])
def test_successive_halving_stops_the_worse_trials(objective, url, tracker):
    """By what is watched, of which more is better, whether the objective is a gain or an error."""
    sweep = start(url, search="random", trials=8, prune="val/i2t_R@1", objectives=(objective,))
    parent = with_parent(sweep, tracker)
    epochs = {}

    def evaluate(params, run, report):
        value = measure(params)["seg/linear"]["mIoU"]
        for epoch in range(1, 5):
            epochs[run.id] = epoch
            report(epoch, value * epoch)
        return Evaluation(measure(params))

    work(sweep, evaluate, tracker)
    now = progress(sweep)
    assert now.done == 8 and 1 <= now.pruned <= 7
    for trial in sweep.trials():
        run = tracker.client.get_run(trial.user_attrs["mlflow.run"])
        pruned = trial.state == TrialState.PRUNED
        assert run.info.status == ("KILLED" if pruned else "FINISHED")
        assert run.data.tags.get("failure", "").startswith("pruned") == pruned
        assert (epochs[run.info.run_id] < 4) == pruned or epochs[run.info.run_id] == 4
    best = max(sweep.trials(), key=lambda t: measure(t.params)["seg/linear"]["mIoU"])
    assert best.state == TrialState.COMPLETE, "the best by what is watched is never stopped"
    assert len(runs_of(tracker, parent)) == 8


def test_summary_names_the_best_lambda_of_each_task_with_noise(url, tracker):
    sweep = start(url)
    with_parent(sweep, tracker)
    work(sweep, lambda params, run, report: Evaluation(measure(params)), tracker)
    base = measure(sweep.space.base)
    for seed, shift in ((1, 0.2), (2, -0.2)):
        metrics = {**base, "seg/linear": {"mIoU": 29 + shift, "aAcc": 61.0}}
        sweep.note(f"noise.{seed}", {"params": sweep.space.base, "metrics": metrics})
    rows = {row.what: row for row in summary(sweep)}
    seg = rows["seg/linear"]
    assert (seg.best, seg.value, seg.base, seg.baseline) == ("λseg 0.1", 30.0, 29.0, 28.0)
    assert seg.noise == pytest.approx(0.2)
    assert seg.clear
    assert rows["depth/linear"].best == "base"
    assert not rows["depth/linear"].clear
    assert rows["mean gain over clip-ft (%)"].best == "λseg 0.1"
    assert best_recipe(sweep, best_trial(sweep)) == {
        **sweep.space.base,
        "recipe": "cliptex",
        "epochs": 2.0,
        "lambda_seg": 0.1,
    }


def test_several_objectives_give_a_pareto_front(url, tracker):
    sweep = start(url, search="grid", objectives=("dense", "zero-shot"), lambdas=("clip", "seg"))
    with_parent(sweep, tracker)

    def evaluate(params, run, report):
        metrics = measure(params)
        metrics["class/zero-shot"] = {"top1": 50.0 + params["lambda_clip"]}  # what helps it costs the dense tasks
        return Evaluation(metrics)

    work(sweep, evaluate, tracker)
    front = pareto_front(sweep)
    assert {(t.params["lambda_clip"], t.params["lambda_seg"]) for t in front} == {(1.0, 0.1), (10.0, 0.1)}
    assert {row["number"] for row in trial_rows(sweep) if row["pareto"]} == {trial.number for trial in front}


def test_a_lost_trial_whose_run_is_in_another_store_is_run_again_all_the_same(url, tracker):
    sweep = start(url, lambdas=("seg",), values=(1.0,))
    with_parent(sweep, tracker)
    dead = next_trial(sweep, {"machine": machine(), "process": "4194305:1"}, lambda lost: None)  # above any process id
    dead.set_user_attr("mlflow.run", "0" * 32)
    told = []
    assert work(sweep, lambda params, run, report: Evaluation(measure(params)), tracker, say=told.append) == 1
    assert any("stays as it is" in line for line in told)
    assert completed(sweep) == [sweep.space.cells()[0].key]
