"""Wrong input is one line, before any work, with exit code 2."""

from __future__ import annotations

import pytest
import torch

from backbones import Checkpoint, save_checkpoint
from benchmark.__main__ import main
from benchmark.execution import EXECUTORS
from benchmark.execution.local import LocalExecutor
from tests.backbones.mini import CONFIG, DATA
from tests.benchmark.other_package import registries

LABEL = "labels predict --pairs pairs --experts dpt=there --out labels"
TRAIN = "train --init random --pairs pairs --out w.safetensors"
EXPERT = "experts train unet --data-root there --out expert"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{LABEL} --batch-size 0", "argument --batch-size: 0: must be at least 1"),
        (f"{LABEL} --out file", "argument --out: file is a file; give a folder"),
        (f"{TRAIN} --num-workers -1", "argument --num-workers: -1: must be at least 0"),
        (f"{TRAIN} --save-every nan", "argument --save-every: nan: must be at least 0"),
        ("train --init random --pairs pairs --out .", "--out . is a folder"),
        (f"{TRAIN} --executor-arg gpu=1", "--executor-arg gpu: local has no such setting"),
        ("run --seed 2147483648", "argument --seed: 2147483648: must be at most 2147483647"),
        ("run --jobs two", "argument --jobs: invalid integer value: 'two'"),
        ("run --task ,", "argument --task: ',' has no name; separate names by commas"),
        ("run --data coco", "--data 'coco' is not of the form NAME=DIR"),
        (
            "run --suite own --task camvid/linear --data-root . --executor-arg cpus=0",
            "cpus=0: give",
        ),
        ("sweep launch --values 1,b", "argument --values: 1,b: give numbers separated by commas"),
    ],
)
def test_one_line(command, message, here, capsys):
    (here / "file").touch()
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("command", [LABEL, TRAIN, EXPERT, "sweep launch --suite smoke"])
def test_a_database_file_is_no_store_for_several_machines(command, here, capsys):
    class Remote(LocalExecutor):
        several_nodes = True

    with registries():
        EXECUTORS.register("remote", Remote)
        assert main([*command.split(), "--executor", "remote"]) == 2
    error = capsys.readouterr().err
    assert "start `mlflow server` and give --tracking-uri" in error and error.count("\n") == 1
    assert not list(here.glob("*.safetensors")) and not list(here.glob("home/*/*"))


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_training_overwrites_no_foreign_file(options, here, capsys):
    (here / "w.safetensors").write_bytes(b"my notes")
    assert main([*TRAIN.split(), *options]) == 2
    error = capsys.readouterr().err
    message = "--out w.safetensors exists and has no weights of this suite"
    assert message in error and error.count("\n") == 1
    assert (here / "w.safetensors").read_bytes() == b"my notes"


def test_a_training_overwrites_weights_but_not_its_initial_ones(here, capsys):
    file = here / "w.safetensors"
    save_checkpoint(Checkpoint(file, {"a": torch.zeros(9)}, "open_clip/Mini", CONFIG, DATA))
    command = ["train", "--pairs", "pairs", "--out", "w.safetensors", "--init"]
    assert main([*command, "w.safetensors"]) == 2
    assert "--out w.safetensors is the file of --init" in capsys.readouterr().err
    assert main([*command, "random", "--recipe", "nothing"]) == 2
    assert "no recipe 'nothing'" in capsys.readouterr().err  # and nothing about --out
