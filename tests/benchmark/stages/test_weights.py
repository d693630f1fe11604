"""``train`` from the command line: killed and started again, and in two processes, with MLflow
beside."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest
import torch

import backbones
from backbones.checkpoint import load_checkpoint
from backbones.cliptex.labelling import Labeller, LabelSettings, finish_labels, labels_writer
from backbones.cliptex.pairs import open_pairs
from cliptex_common.progress import Silent
from tests.backbones.cliptex import toy
from tests.backbones.cliptex.experts import toy_experts
from tests.benchmark.run_command import assert_same_weights, listing, run_command, runs_of, store
from tests.forks import Fork, command

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]
TRAIN = "train --init random --pairs pairs --device cpu --set model=tiny --set batch_size=16"
CLIPTEX = f"{TRAIN} --recipe cliptex --labels labels --set epochs=8 --set lr=1e-3"


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with 48 pairs in two shards, labels of three experts with random weights, and
    weights trained on them."""
    folder = tmp_path_factory.mktemp("stages")
    source, experts = (
        open_pairs(toy.write_pairs(folder / "pairs", 48, 2)),
        toy_experts.all_experts(),
    )
    writer = labels_writer(source, experts, LabelSettings(), folder / "labels")
    labeller = Labeller(source, experts, writer, LabelSettings(), batch_size=8)
    for shard in source.shards:
        labeller.label(shard, Silent())
    finish_labels(source, writer)
    with chdir(folder):
        assert run_command(f"{CLIPTEX} --out whole.safetensors --experiment whole") == 0
    return folder


@pytest.fixture(autouse=True)
def inside(here, monkeypatch):
    monkeypatch.chdir(here)


def in_a_new_python(*arguments: str) -> str:
    """What ``python ARGUMENTS`` prints; it must end well."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_training_that_diverges_ends_with_its_reason_in_one_line(capsys):
    words = f"{TRAIN} --recipe clip --set lr=1e3 --set warmup=0 --set epochs=8"
    assert run_command(f"{words} --out diverged.safetensors --experiment diverged") == 1
    error = capsys.readouterr().err
    assert "became NaN or infinite" in error and "lower lr" in error and error.count("\n") == 1
    (run,) = runs_of("diverged")
    assert run.info.status == "FAILED"


def test_training_killed_and_started_again(here, tmp_path):
    words = f"{CLIPTEX} --out cut.safetensors --experiment cut"
    victim = Fork(command, *words.split(), "--save-every", "0", output=tmp_path / "output")
    victim.wait_for(here / "cut.safetensors.resume", "state-*.pt")
    victim.signal(signal.SIGKILL)
    assert victim.end() == -signal.SIGKILL
    assert not Path("cut.safetensors").exists()
    assert run_command(words) == 0
    assert (
        load_checkpoint(Path("cut.safetensors")).sha256
        == load_checkpoint(Path("whole.safetensors")).sha256
    )
    assert not Path("cut.safetensors.resume").exists()
    runs = {run.info.status: run for run in runs_of("cut")}
    assert set(runs) == {"KILLED", "FINISHED"} and len(runs_of("cut")) == 2
    (finished,) = [run for run in runs_of("whole") if run.data.tags["stage"] == "train"]
    done = runs["FINISHED"].data
    assert done.tags["weights.sha256"] == finished.data.tags["weights.sha256"]
    assert done.tags["experts"] == "seg,depth,normal"
    threads = load_checkpoint(Path("cut.safetensors")).extra["threads"]
    assert done.tags["threads"] == str(threads) == "1"
    assert done.metrics["cost/train_flops"] == finished.data.metrics["cost/train_flops"] > 0
    assert run_command(words) == 0 and len(runs_of("cut")) == 2  # nothing twice


def test_dry_run_says_what_is_done_and_creates_nothing(here, capsys):
    def dry_run(out: str, *more: str) -> str:
        before = listing(here)
        assert run_command(f"{CLIPTEX} --dry-run --out", out, *more) == 0
        assert listing(here) == before
        return capsys.readouterr().out.rstrip("\n")

    size = "cliptex: 48 of 48 pairs in 2 shards × 8 epochs = 24 steps of 16"
    weights = here / "whole.safetensors"
    done = f"{size}; {weights} holds these weights: nothing is to do"
    assert dry_run("whole.safetensors") == done
    other = dry_run("new/other.safetensors", "--set", "seed=1")
    assert other.startswith(f"{size}\n  1 job of 0 GPUs and ")
    held_out = dry_run("other.safetensors", "--set", "val_pairs=16")
    assert "cliptex: 32 of 48 pairs in 2 shards × 8 epochs = 16 steps of 16\n" in held_out
    Path("begun.safetensors.resume").mkdir()
    Path("begun.safetensors.resume/state-000000016.pt").touch()
    assert "; it resumes from step 16" in dry_run("begun.safetensors")
    assert run_command(f"{CLIPTEX} --out x.st --dry-run --set val_pairs=40") == 2
    assert "more than half of 48 pairs" in capsys.readouterr().err


@pytest.mark.cluster
def test_two_processes_from_the_command_line(here):
    """One run in MLflow, one voice, and the weights of one process up to the order of sums."""
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node 2 -m benchmark"
    words = f"{torchrun} {CLIPTEX} --out two.safetensors --experiment two"
    output = in_a_new_python(*words.split())
    assert output.count("cliptex trained: two.safetensors") == 1
    assert [run.info.status for run in runs_of("two")] == ["FINISHED"]
    assert_same_weights("two.safetensors", "whole.safetensors")


def test_weights_are_loaded_from_mlflow_alone_as_their_run_says(here, tmp_path, monkeypatch):
    """The two commands of a training run's description, in another folder: the
    registry's features."""
    from mlflow.cli import cli

    (run,) = [run for run in runs_of("whole") if run.data.tags["stage"] == "train"]
    lines = run.data.tags["mlflow.note.content"].splitlines()
    (download,) = [shlex.split(line) for line in lines if " mlflow artifacts download " in line]
    (load,) = [shlex.split(line) for line in lines if line.startswith("python -c ")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(*download[0].split("=", 1))
    cli.main(download[2:], standalone_mode=False)
    assert sorted(path.name for path in Path("weights").iterdir()) == [
        "load.py",
        "whole.safetensors",
    ]

    backbone = backbones.create(
        "cliptex", weights=here / "whole.safetensors", any_architecture=True
    )
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    names: dict = {}
    monkeypatch.syspath_prepend(tmp_path)
    exec(load[2], names)
    loaded = names["load"]()
    for name in ("weights.load", "weights"):
        sys.modules.pop(name, None)
    assert loaded.weights.sha256 == backbone.weights.sha256
    assert loaded.weights.source == str(tmp_path / "weights/whole.safetensors")
    expected, actual = (
        [*each(images), each.encode_image(images), each.encode_text(["a red disc"])]
        for each in (backbone, loaded)
    )
    for ours, theirs in zip(expected, actual, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("recipe", ["clip", "mine.json"])
def test_weights_of_any_recipe_have_a_loader_that_works(here, recipe, tmp_path):
    """Of a recipe file, whose name is no backbone's, and of clip, whose name stands for another
    architecture."""
    Path("mine.json").write_text('{"recipe": "clip-ft", "lr": 0.001}')
    words = f"{TRAIN} --recipe {recipe} --out {recipe}.st --set epochs=0.4 --experiment {recipe}"
    assert run_command(words) == 0
    (run,) = runs_of(recipe)
    note = run.data.tags["mlflow.note.content"]
    store().download_artifacts(run.info.run_id, "weights", str(tmp_path))
    namespaces: list[dict] = [{"__file__": str(tmp_path / "weights/load.py")}, {}]
    exec((tmp_path / "weights/load.py").read_text(), namespaces[0])
    exec(note.split("```python\n")[1].split("```")[0], namespaces[1])
    sums = {namespaces[0]["load"]().weights.sha256, namespaces[1]["backbone"].weights.sha256}
    assert len(sums) == 1 and sums == {
        backbones.create("cliptex", weights=f"{recipe}.st").weights.sha256
    }
