"""``train`` on two nodes of a real SLURM, in a process on each: interrupted and queued again."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import chdir, contextmanager
from pathlib import Path

import pytest

from cliptex_common.files import home
from reports.store import open_mlflow
from tests.backbones.cliptex import toy
from tests.benchmark.run_command import assert_same_weights, run_command, runs_of
from tests.cluster import slurm, slurm_config
from tests.kit.waiting import is_soon
from tests.servers import mlflow_server

pytestmark = pytest.mark.cluster

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
    with chdir(folder):
        assert run_command(f"{TRAIN} --pairs pairs --out one.safetensors") == 0
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with mlflow_server(tmp_path_factory.mktemp("server")) as uri:
        yield uri


@pytest.fixture
def client(server):
    return open_mlflow(server)


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


def test_two_nodes_train_what_one_process_does(client):
    before = set((home() / "tasks").glob("[!.]*"))
    with training("two") as process:
        output = process.communicate(timeout=900)[0]
    assert process.returncode == 0, output
    assert output.count("clip trained: two.safetensors") == 1, output
    (run,) = runs_of("two", client)
    assert (run.info.status, run.data.tags["stage"]) == ("FINISHED", "train")
    assert run.data.metrics["cost/steps"] == 120
    assert_same_weights("two.safetensors", "one.safetensors")
    assert set((home() / "tasks").glob("[!.]*")) <= before, "folders of this training go with it"
    with training("two") as process:
        output = process.communicate(timeout=900)[0]
    assert "clip found in the cache (same recipe" in output, output
    assert len(runs_of("two", client)) == 1


def test_a_job_that_is_to_stop_saves_and_is_queued_again(client):
    with training("cut") as process:
        saved = Path("cut.safetensors.resume").glob
        assert is_soon(lambda: list(saved("state-*.pt")) or process.poll() is not None)
        assert process.poll() is None, process.communicate()[0]
        (job,) = subprocess.run(
            ["squeue", "-h", "-o", "%i"], capture_output=True, text=True, check=True
        ).stdout.split()
        subprocess.run(["scancel", "--signal=USR2", job], check=True)
        output = process.communicate(timeout=900)[0]
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
    runs = sorted(runs_of("cut", client), key=lambda run: run.info.start_time)
    assert [run.info.status for run in runs] == ["KILLED", "FINISHED"]
    curves = [client.get_metric_history(run.info.run_id, "train/lambda_clip") for run in runs]
    assert curves[0][0].step == 0 < curves[1][0].step, "it resumed from what was saved"
    assert_same_weights("cut.safetensors", "one.safetensors")


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
def test_only_training_takes_several_nodes(command, refused, client):
    refused(f"{command} {ON_TWO_NODES}", "--executor-arg nodes=2: only `train`")
    assert not runs_of("smoke", client)
