"""``train`` on two nodes of a real SLURM, in a process on each: interrupted and queued again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file

from common.files import home
from reports.mlflow.client import Client
from tests.backbones.cliptex import toy
from tests.benchmark.commands import run_command
from tests.cluster import slurm, slurm_config
from tests.servers import mlflow_server

__all__ = ["slurm", "slurm_config"]
ROOT = Path(__file__).parents[3]
TRAIN = "train --recipe clip --init random --device cpu --num-workers 0 --set model=tiny"
TRAIN += " --set batch_size=16 --set epochs=40 --set lr=1e-3"
ON_TWO_NODES = "--executor slurm --executor-arg nodes=2"


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with 48 pairs and the weights that one process trains on them."""
    folder = tmp_path_factory.mktemp("nodes")
    toy.write_pairs(folder / "pairs", 48, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert run_command(f"{TRAIN} --pairs pairs --out one.safetensors") == 0
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with mlflow_server(tmp_path_factory.mktemp("server")) as uri:
        yield uri


@pytest.fixture(autouse=True)
def inside(here, server, slurm, monkeypatch):
    monkeypatch.chdir(here)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@contextmanager
def training(name: str):
    """The command on two nodes, in a process of its own; yields it."""
    words = f"{TRAIN} {ON_TWO_NODES} --pairs pairs --out {name}.safetensors --experiment {name}"
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmark", *words.split(), "--save-every", "0.2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def runs_of(experiment: str) -> list:
    client = Client(os.environ["MLFLOW_TRACKING_URI"])
    experiment_info = client.get_experiment_by_name(experiment)
    return client.search_runs([experiment_info.experiment_id]) if experiment_info else []


def first_step(run) -> int:
    """The step that a run began with."""
    client = Client(os.environ["MLFLOW_TRACKING_URI"])
    return client.get_metric_history(run.info.run_id, "train/lambda_clip")[0].step


def assert_close_to_one_process(name: str) -> None:
    """Weights of one process up to the order of sums."""
    two, single = load_file(f"{name}.safetensors"), load_file("one.safetensors")
    far = sum(((two[key] - single[key]).abs() > 1e-2).sum().item() for key in single)
    assert far / sum(value.numel() for value in single.values()) < 1e-2


@pytest.mark.slow
def test_two_nodes_train_what_one_process_does():
    before = set((home() / "tasks").glob("[!.]*"))
    with training("two") as process:
        output = process.communicate(timeout=480)[0]
    assert process.returncode == 0, output
    assert output.count("clip trained: two.safetensors") == 1, output
    (run,) = runs_of("two")
    assert (
        run.info.status == "FINISHED"
        and run.data.tags["stage"] == "train"
        and run.data.metrics["cost/steps"] == 120
    )
    assert_close_to_one_process("two")
    assert set((home() / "tasks").glob("[!.]*")) <= before, "folders of this training go with it"
    with training("two") as process:
        output = process.communicate(timeout=480)[0]
    assert "clip found in the cache (same recipe" in output and len(runs_of("two")) == 1, output


@pytest.mark.slow
def test_a_job_that_is_to_stop_saves_and_is_queued_again():
    with training("cut") as process:
        end = time.monotonic() + 120
        while not list(Path("cut.safetensors.resume").glob("state-*.pt")):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end, "no state was saved"
            time.sleep(0.05)
        (job,) = subprocess.run(
            ["squeue", "-h", "-o", "%i"], capture_output=True, text=True, check=True
        ).stdout.split()
        subprocess.run(["scancel", "--signal=USR2", job], check=True)
        output = process.communicate(timeout=480)[0]
    assert process.returncode == 0, output
    jobs = re.findall(
        r"^JobId=(\d+) .*? Restarts=(\d+)",
        subprocess.run(
            ["scontrol", "-o", "show", "job"], capture_output=True, text=True, check=True
        ).stdout,
        re.MULTILINE,
    )
    assert (job, "1") in jobs and max(int(number) for number, _ in jobs) == int(job), (
        "the same job, queued again"
    )
    runs = {run.info.status: run for run in runs_of("cut")}
    assert set(runs) == {"KILLED", "FINISHED"} and len(runs_of("cut")) == 2
    assert first_step(runs["KILLED"]) == 0 < first_step(runs["FINISHED"]), (
        "it went on from what was saved"
    )
    assert_close_to_one_process("cut")


@pytest.mark.slow
def test_a_users_error_in_the_first_process_is_the_commands(here):
    (here / "pairs.csv").write_text("image,caption\n" + "nowhere.jpg,a disc\n" * 40)
    words = f"{TRAIN} {ON_TWO_NODES} --pairs pairs.csv --out none.safetensors --experiment none"
    done = subprocess.run(
        [sys.executable, "-m", "benchmark", *words.split(), "--save-every", "0.2"],
        capture_output=True,
        text=True,
        timeout=480,
    )
    assert (
        done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    ), done


@pytest.mark.parametrize(
    "command",
    [
        "run --backbone clip --suite smoke",
        "labels predict --pairs pairs --experts dpt=x --out labels",
    ],
)
def test_only_training_takes_several_nodes(command, refused):
    refused(f"{command} {ON_TWO_NODES}", "--executor-arg nodes=2: only `train`")
    assert not runs_of("smoke")
