"""MLflow runs of somebody else in an experiment of ours: no command changes them."""

from __future__ import annotations

import itertools
import os
import signal

import mlflow
import pytest
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient

from benchmark import InLoop, evaluate
from reports.tracking import MACHINE_TAG, TIME_TAG, Run, machine
from tests.benchmark.run_command import read_json, run_command
from tests.benchmark.test_in_loop import IMAGES, Encoder
from tests.forks import Fork, command

pytestmark = pytest.mark.integration

TASK = "--suite own --task imagefolder/knn --data-root . --set size=32 --set k=3"
RUN = f"run --backbone random --json out.json --device cpu --jobs 1 --num-workers 0 {TASK}"
ENDED = ("FINISHED", "FAILED", "KILLED")
STATES = ("RUNNING", *ENDED, "SCHEDULED", "deleted")
# of a training that logs beside our tasks; the last ones have a part of what our runs have
TAGS = ({}, {"owner": "me"}, {MACHINE_TAG: machine()}, {TIME_TAG: "0"})


def write_others_runs(client: MlflowClient, experiment: str, parents: list[str]) -> None:
    """Runs of each state with each of ``TAGS``, and nested in each of ``parents``."""
    nested = [{"mlflow.parentRunId": parent} for parent in parents]
    for tags, state in itertools.product([*TAGS, *nested], STATES):
        run_id = client.create_run(experiment, tags=tags).info.run_id
        client.log_metric(run_id, "loss", 0.5)
        if state in ENDED:
            client.set_terminated(run_id, state)
        elif state == "SCHEDULED":
            client.update_run(run_id, status=state)
        elif state == "deleted":
            client.delete_run(run_id)


def others_runs(client: MlflowClient, experiment: str) -> dict:
    runs = client.search_runs([experiment], "metrics.loss > 0", ViewType.ALL)
    return {run.info.run_id: run.to_dictionary() for run in runs}


def killed_command(*words: str) -> None:
    """A command whose process is killed when it has the number of a task."""
    flush = Run.flush

    def kill(run: Run) -> None:
        if "/" in run.name:  # not a parent run
            os.kill(os.getpid(), signal.SIGKILL)
        flush(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "flush", kill)
        command(*words)


def test_no_command_changes_a_run_that_is_not_ours(imagefolder, workdir, monkeypatch):
    assert run_command(RUN) == 0
    (parent,) = read_json("out.json")["mlflow"]["run_ids"].values()
    uri = f"sqlite:///{workdir}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("own").experiment_id
    training = client.create_run(experiment).info.run_id
    write_others_runs(client, experiment, [training, parent])
    before = others_runs(client, experiment)
    assert len(before) == (len(TAGS) + 2) * len(STATES)

    words = [*RUN.split(), "--seed", "1"]
    victim = Fork(killed_command, *words, output=workdir / "killed.log")
    assert victim.end() == -signal.SIGKILL, victim.text()
    ours = client.search_runs([experiment], "tags.cliptex.seed = '1'")
    assert [run.info.status for run in ours] == ["RUNNING", "RUNNING"]
    for again in (RUN, f"{RUN} --force", f"{RUN} --seed 1"):  # cached, new, resumed
        assert run_command(again) == 0
        assert others_runs(client, experiment) == before
    resumed = client.search_runs([experiment], "tags.cliptex.seed = '1'")
    assert [run.info.status for run in resumed] == ["FINISHED", "FINISHED"]
    assert {run.info.run_id for run in resumed} == {run.info.run_id for run in ours}

    options = {"suite": "own", "data_root": ".", "num_workers": 0, "device": "cpu"}
    options |= {"settings": {"size": 32, "k": 3}, "experiment": "own"}
    evaluate({"mine": "random"}, "imagefolder/knn", seed=2, **options)
    mlflow.set_experiment("own")
    probe = InLoop(
        "imagefolder/knn", every=1, images=IMAGES, name="net", on_error="raise", **options
    )
    with mlflow.start_run() as own:
        probe(Encoder(), 1)
        assert client.get_run(own.info.run_id).info.status == "RUNNING"
    assert run_command("results label mine other") == 0
    run_command("doctor --repair")
    assert client.get_run(training).info.status == "RUNNING"
    assert others_runs(client, experiment) == before
