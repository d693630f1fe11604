"""``label`` and ``train`` from the command line: killed and started again, and in two processes, with MLflow beside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from backbones.checkpoint import read_checkpoint
from backbones.cliptex.labels import LabelStore, check_labels
from benchmark.__main__ import main
from tests.backbones.cliptex import toy, toy_experts

ROOT = Path(__file__).parents[2]
TRAIN = ["--recipe", "cliptex", "--init", "random", "--pairs", "pairs", "--labels", "labels", "--device", "cpu"]
TRAIN += ["--set", "model=tiny", "--set", "batch_size=16", "--set", "epochs=30", "--set", "lr=1e-3"]
BATCH = 8


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with 48 pairs in two shards, three experts with random weights, their labels, and weights trained on them."""
    folder = tmp_path_factory.mktemp("stages")
    toy.write_pairs(folder / "pairs", 48, 2)
    for expert in toy_experts.all_experts():
        expert.save(folder / "experts" / expert.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert main(label_command("labels", "whole")) == 0
        assert main(["train", *TRAIN, "--out", "whole.safetensors", "--experiment", "whole"]) == 0
    return folder


@pytest.fixture(autouse=True)
def inside(here, monkeypatch):
    monkeypatch.chdir(here)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def label_command(out: str, experiment: str) -> list[str]:
    experts = ",".join(f"{name}=experts/{name}" for name in ("unet", "dpt", "nll-angmf"))
    options = ["--out", out, "--experiment", experiment, "--device", "cpu", "--batch-size", str(BATCH)]
    return ["label", "--pairs", "pairs", "--experts", experts, *options]


def start(launcher: list[str], arguments: list[str]) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, "-m", "benchmark", *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_when(process: subprocess.Popen, there: Path, pattern: str) -> None:
    """kill -9 as soon as a file like ``pattern`` is in the folder ``there``."""
    while not list(there.glob(pattern)):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def runs_of(experiment: str) -> list:
    client = MlflowClient(
        f"sqlite:///{Path('mlflow.db').resolve()}"
    )  # MLflow keeps stores by URI, and other tests have this name
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


@pytest.mark.slow
def test_training_killed_and_started_again(here):
    command = ["train", *TRAIN, "--out", "cut.safetensors", "--experiment", "cut"]
    kill_when(start([], [*command, "--save-every", "0"]), here / "cut.safetensors.resume", "state.pt")
    assert not Path("cut.safetensors").exists()
    assert main(command) == 0
    assert read_checkpoint(Path("cut.safetensors")).sha256 == read_checkpoint(Path("whole.safetensors")).sha256
    assert not Path("cut.safetensors.resume").exists()
    runs = {run.info.status: run for run in runs_of("cut")}
    assert set(runs) == {"KILLED", "FINISHED"} and len(runs_of("cut")) == 2
    (whole,) = [run for run in runs_of("whole") if run.data.tags["stage"] == "train"]
    done = runs["FINISHED"].data
    assert done.tags["weights.sha256"] == whole.data.tags["weights.sha256"]
    assert done.tags["experts"] == "seg,depth,normal"
    assert done.metrics["cost/train_flops"] == whole.data.metrics["cost/train_flops"] > 0
    assert main(command) == 0 and len(runs_of("cut")) == 2  # nothing twice


@pytest.mark.slow
def test_labelling_killed_and_started_again(here, capsys):
    command = label_command("cut-labels", "cut-labels")
    kill_when(start([], command), here / "cut-labels", "*.labels")
    assert not Path("cut-labels/manifest.json").exists()
    assert main(command) == 0
    assert "48 pairs in, 48 labelled, 0 failed" in capsys.readouterr().out
    assert check_labels("cut-labels") == [] and LabelStore("cut-labels").identity == LabelStore("labels").identity
    assert sorted(run.info.status for run in runs_of("cut-labels")) == ["FINISHED", "KILLED"]
    (done,) = [run.data for run in runs_of("cut-labels") if run.info.status == "FINISHED"]
    assert done.metrics["cost/label_flops"] == LabelStore("labels").manifest["cost"]["flops"] > 0
    assert done.metrics["cost/label_seconds"] > done.metrics["cost/label_seconds/dpt"] > 0


@pytest.mark.slow
def test_two_processes_from_the_command_line():
    """One run in MLflow, one voice, the labels of one process to the byte, and its weights up to the order of sums."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    label = start(torchrun, label_command("two-labels", "two"))
    told = label.communicate(timeout=900)[0]
    assert label.returncode == 0, told
    assert told.count("48 pairs in, 48 labelled, 0 failed") == 1
    assert LabelStore("two-labels").identity == LabelStore("labels").identity
    train = start(torchrun, ["train", *TRAIN, "--out", "two.safetensors", "--experiment", "two"])
    told = train.communicate(timeout=900)[0]
    assert train.returncode == 0, told
    assert told.count("cliptex trained: two.safetensors") == 1
    assert [run.info.status for run in runs_of("two")] == ["FINISHED"] * 2
    two, one = load_file("two.safetensors"), load_file("whole.safetensors")
    far = sum(((two[name] - one[name]).abs() > 1e-2).sum().item() for name in one)
    assert far / sum(value.numel() for value in one.values()) < 1e-2
