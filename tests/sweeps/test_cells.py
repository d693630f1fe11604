"""Every cell is finished exactly once: many workers, workers killed anywhere, workers that come back late."""

from __future__ import annotations

import random

import optuna
import pytest
from optuna.trial import TrialState

from sweeps.cells import FAILURES, LOSSES, end_trial, fill, next_trial, progress
from sweeps.storage import exclusive
from sweeps.study import load_sweep
from tests.sweeps.cheap import completed, drain, fork, start, take_and_die

OTHER = {"machine": "another", "process": "1:1"}


def keys(sweep):
    return sorted(cell.key for cell in sweep.space.cells())


def take(sweep, process=None):
    return next_trial(sweep, process, lambda lost: None)


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'sweeps.db'}"


@pytest.mark.parametrize("server", ["sqlite", "postgres"])
def test_many_workers_share_cells_without_running_one_twice(server, url, request, tmp_path):
    storage = url if server == "sqlite" else request.getfixturevalue("postgres_database")
    sweep = start(storage, search="random", trials=14)
    log = tmp_path / "ran"
    workers = [fork(drain, storage, log) for _ in range(4)]
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert completed(sweep) == keys(sweep)
    assert sorted(log.read_text().split("\n")[:-1]) == keys(sweep), "each was run once"
    assert len(sweep.trials()) == 14
    drawn = [trial.params["lambda_seg"] for trial in sweep.trials()]
    assert len(set(drawn)) == 14, "workers must not draw alike"


@pytest.mark.parametrize("seed", range(6))
def test_killed_anywhere_all_cells_finish_without_duplicates(seed, url, tmp_path):
    """Workers die by SIGKILL at a random SQL statement or commit; those that come after finish what is left."""
    chance = random.Random(seed)
    sweep = start(url, lambdas=("seg", "clip"), values=(0.1, 1.0, 10.0) if seed % 2 else (1.0, 10.0))
    log = tmp_path / "ran"
    for _ in range(2):
        workers = [fork(drain, url, log, chance.randint(1, 130)) for _ in range(2)]
        for worker in workers:
            worker.join(60)
        assert {worker.exitcode for worker in workers} <= {0, -9}
    with exclusive(sweep.storage, sweep.name):
        fill(sweep, again=True)  # what `sweep launch` does
    drain(url, log)
    assert completed(sweep) == keys(sweep)
    assert progress(sweep).left == 0
    assert not [t for t in sweep.trials() if t.state in (TrialState.RUNNING, TrialState.WAITING)], "none runs for ever"
    numbers = [trial.number for trial in sweep.trials()]
    assert numbers == list(range(len(numbers)))


def test_a_worker_given_up_for_lost_cannot_finish_its_cell_a_second_time(url):
    sweep = start(url, lambdas=("seg",))
    slept = take(sweep, OTHER)
    sweep.storage.set_trial_state_values(slept._trial_id, TrialState.FAIL)  # as when its heartbeat lapsed
    again = [take(sweep) for _ in range(3)]
    assert slept.user_attrs["cell"] in [trial.user_attrs["cell"] for trial in again]
    assert end_trial(sweep, slept, TrialState.COMPLETE, [1.0]) is False
    for trial in again:
        sweep.space.suggest(trial)
        assert end_trial(sweep, trial, TrialState.COMPLETE, [2.0])
    assert completed(sweep) == keys(sweep)
    assert take(sweep) is None


def test_other_machines_trials_are_left_alone_while_their_heart_beats(url):
    sweep = start(url, lambdas=("seg",), grace=60)
    taken = [take(sweep, OTHER) for _ in range(3)]
    assert all(taken) and take(sweep) is None
    assert progress(sweep).running == 3


def test_a_process_gone_from_this_machine_is_noticed_at_once(url):
    sweep = start(url, lambdas=("seg",), grace=3600)
    dead = fork(take_and_die, url)
    dead.join(60)
    assert dead.exitcode == -9
    assert [trial.state for trial in sweep.trials()].count(TrialState.RUNNING) == 1
    assert progress(sweep).running == 0, "status does not call it running"
    lost = []
    while (trial := next_trial(sweep, None, lost.append)) is not None:
        sweep.space.suggest(trial)
        end_trial(sweep, trial, TrialState.COMPLETE, [0.0])
    assert completed(sweep) == keys(sweep)
    assert len(lost) == progress(sweep).lost == 1


def test_what_was_queued_twice_is_run_once(url):
    sweep = start(url, lambdas=("seg",))
    first = take(sweep)
    key = first.user_attrs["cell"]
    sweep.study.enqueue_trial(dict(sweep.space.cells()[0].params), user_attrs={"cell": key})
    left = list(iter(lambda: take(sweep), None))
    assert sorted(t.user_attrs["cell"] for t in [first, *left]) == keys(sweep)
    assert [t.user_attrs.get("duplicate") for t in sweep.trials() if t.state == TrialState.FAIL] == [True]


def test_failed_cells_are_queued_again_a_few_times_and_by_the_next_launch(url):
    sweep = start(url, lambdas=("seg",), values=(1.0,))
    for _ in range(FAILURES):
        trial = take(sweep)
        sweep.space.suggest(trial)
        end_trial(sweep, trial, TrialState.FAIL, attrs={"failure": "NonFiniteLoss: it broke"})
    assert take(sweep) is None
    now = progress(sweep)
    assert list(now.given_up.values()) == ["NonFiniteLoss: it broke"] and now.left == 0
    with exclusive(sweep.storage, sweep.name):
        assert fill(sweep, again=True) == 1
    assert take(sweep) is not None


def test_a_cell_that_kills_its_worker_every_time_does_not_go_on_for_ever(url):
    sweep = start(url, lambdas=("seg",), values=(1.0,))
    for _ in range(LOSSES):
        sweep.storage.set_trial_state_values(take(sweep)._trial_id, TrialState.FAIL)
    assert take(sweep) is None
    assert "vanished" in next(iter(progress(sweep).given_up.values()))


def test_interruptions_do_not_count_against_a_cell(url):
    sweep = start(url, lambdas=("seg",), values=(1.0,))
    for _ in range(2 * LOSSES):
        end_trial(sweep, take(sweep), TrialState.FAIL, attrs={"interrupted": True})
    assert take(sweep) is not None


def test_a_lost_trial_of_a_sampler_keeps_its_params_and_one_that_broke_does_not(url):
    sweep = start(url, search="random", trials=1)
    lost = take(sweep)
    params = sweep.space.suggest(lost)
    sweep.storage.set_trial_state_values(lost._trial_id, TrialState.FAIL)
    again = take(sweep)
    assert sweep.space.suggest(again) == params, "its training goes on where it stopped"
    end_trial(sweep, again, TrialState.FAIL, attrs={"failure": "it broke"})
    assert sweep.space.suggest(take(sweep)) != params


def test_plain_optuna_reads_the_study(url):
    start(url)
    drain(url, "/dev/null")
    study = optuna.load_study(study_name="cheap", storage=url)
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) == 9
    assert set(study.best_params) == {"lambda_clip", "lambda_seg", "lambda_depth", "lambda_normal"}
    assert study.best_params["lambda_seg"] == 0.1
    assert load_sweep(None, url).name == "cheap"
