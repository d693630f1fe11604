"""What the user typed wrong is said in one line, before any work, with exit code 2."""

from __future__ import annotations

import os

import pytest
import torch

from backbones import Checkpoint, UserError, save_checkpoint
from backbones.cliptex.training.distributed import first_process
from benchmark.__main__ import main
from benchmark.execution import EXECUTORS
from benchmark.execution.local import LocalExecutor
from tests.backbones.mini import CONFIG, DATA
from tests.benchmark.other_package import registries

LABEL = "labels predict --pairs pairs --experts dpt=there --out labels"
TRAIN = "train --init random --pairs pairs --out w.safetensors"
EXPERT = "experts train unet --data-root there --out expert"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (f"{LABEL} --batch-size 0", "argument --batch-size: 0: must be at least 1"),
        (f"{LABEL} --num-workers -1", "argument --num-workers: -1: must be at least 0"),
        (f"{LABEL} --set label_side=-1", "must not be negative"),
        (f"{TRAIN} --num-workers -1", "argument --num-workers: -1: must be at least 0"),
        (f"{TRAIN} --save-every nan", "argument --save-every: nan: must be at least 0"),
        (f"{TRAIN} --set beta2=1", "beta2=1: must be less than 1"),
        ("train --init random --pairs pairs --out .", "--out . is a folder"),
        (f"{EXPERT} --seed -1", "argument --seed: -1: must be at least 0"),
        (f"{EXPERT} --set size=0", "size of an expert must be at least 1"),
        ("labels draw labels --pairs pairs --limit 0", "argument --limit: 0: must be at least 1"),
        (f"{TRAIN} --executor-arg gpu=1", "--executor-arg gpu: local has no such setting"),
        ("run --seed -1", "argument --seed: -1: must be at least 0"),
        (
            "run --seed 1180591620717411303424",
            "argument --seed: 1180591620717411303424: must be at most 2147483647",
        ),
        ("run --seed 2147483647 --seeds 2", "the last seed must be at most 2147483647"),
        ("run --seeds 1000000000", "argument --seeds: 1000000000: must be at most 10000"),
        ("run --jobs nan", "argument --jobs: invalid whole number value: 'nan'"),
        ("run --backbone ,", "',' names nothing"),
        ("run --task ,,", "',,' names nothing"),
        (f"run --experiment {'x' * 600}", "must be a name of 1 to 200 printable characters"),
        (
            "run --executor-arg cpus=99999999999",
            "--executor-arg cpus=99999999999: give a whole number",
        ),
        (
            "run --suite own --task camvid/linear --data-root . --executor-arg cpus=0",
            "cpus=0: give a whole number",
        ),
        (f"{LABEL} --out /dev/null", "/dev/null is a file; name a folder"),
        (f"{EXPERT} --out /dev/null", "/dev/null is a file; name a folder"),
        ("report --out /dev/null", "/dev/null is a file; name a folder"),
        ("ui --port 99999", "argument --port: 99999: must be at most 65535"),
        ("sweep launch --task ,", "argument --task: ',' names nothing"),
        ("sweep launch --zero-shot-loss nan", "argument --zero-shot-loss: nan: must be at least 0"),
        ("sweep launch --seed -1", "argument --seed: -1: must be at least 0"),
        ("cache rm --older-than -1", "argument --older-than: -1: must be at least 0"),
        ("cache rm --older-than nan", "argument --older-than: nan: must be at least 0"),
        (
            "data check --data-root . --num-workers -3",
            "argument --num-workers: -3: must be at least 0",
        ),
    ],
)
def test_one_line(command, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize("command", [LABEL, TRAIN, EXPERT, "sweep launch --suite smoke"])
def test_a_database_file_is_no_store_for_several_machines(command, tmp_path, monkeypatch, capsys):
    class Far(LocalExecutor):
        several_nodes = True

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))
    with registries():
        EXECUTORS.register("far", Far)
        assert main([*command.split(), "--executor", "far"]) == 2
    error = capsys.readouterr().err
    assert "start `mlflow server` and give --tracking-uri" in error and error.count("\n") == 1
    assert not list(tmp_path.glob("*.safetensors")) and not list(tmp_path.glob("home/*/*"))


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE"])
def test_what_is_no_number_of_torchrun(name, monkeypatch):
    monkeypatch.setenv(name, "abc")
    with pytest.raises(UserError, match=f"{name}='abc' in the environment"):
        first_process()


@pytest.mark.parametrize(
    "content", [b"", b"notes of mine", b"\x02" + bytes(7) + b"{}", b"\xff" * 20]
)
def test_a_training_writes_over_no_file_of_the_users(content, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").write_bytes(content)
    for more in ([], ["--dry-run"]):
        assert main([*TRAIN.split(), *more]) == 2
        error = capsys.readouterr().err
        assert (
            "--out w.safetensors is there, and no weights of this suite" in error
            and error.count("\n") == 1
        )
    assert (tmp_path / "w.safetensors").read_bytes() == content


def test_a_training_writes_over_weights_but_not_over_those_it_starts_from(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(
        Checkpoint(
            tmp_path / "w.safetensors", {"a": torch.zeros(9)}, "open_clip/Mini", CONFIG, DATA
        )
    )
    os.truncate(
        "w.safetensors", (tmp_path / "w.safetensors").stat().st_size - 9
    )  # damaged: made again
    (tmp_path / "link.safetensors").symlink_to("w.safetensors")
    command = ["train", "--pairs", "pairs", "--init"]
    for out in ("w.safetensors", "link.safetensors"):
        assert main([*command, "w.safetensors", "--out", out]) == 2
        assert f"--out {out} is the file that --init starts from" in capsys.readouterr().err
    assert main([*command, "random", "--out", "w.safetensors", "--recipe", "nothing"]) == 2
    assert "no recipe 'nothing'" in capsys.readouterr().err  # and not a word of --out
