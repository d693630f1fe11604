"""``labels make``, ``check`` and ``draw`` from the command line, and a training with manual labels
alone and beside others."""

from __future__ import annotations

import pytest

from benchmark.__main__ import main
from tests.backbones.cliptex import toy
from tests.backbones.cliptex.labels.test_make import write_files

TINY = [
    "--set",
    "model=tiny",
    "--set",
    "batch_size=8",
    "--set",
    "epochs=0.5",
    "--device",
    "cpu",
    "--jobs",
    "1",
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    toy.write_pairs(tmp_path / "pairs", 12, 2)
    write_files(tmp_path / "mine", [f"{i:09d}" for i in range(6)])
    write_files(tmp_path / "others", [f"{i:09d}" for i in range(12)])
    (tmp_path / "classes.txt").write_text("background\ndisc\nsquare\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def make(folder: str, out: str, *more: str, classes: str = "classes.txt") -> int:
    folders = [f"--from={name}={folder}/{name}" for name in ("seg", "depth", "normal")]
    return main(
        ["labels", "make", "--pairs", "pairs", *folders, "--classes", classes, "--out", out, *more]
    )


def test_manual_labels_are_made_checked_drawn_and_trained_on(here, capsys):
    assert make("mine", "manual") == 0
    assert (
        "labels of 6 pairs made (6 of seg, 6 of depth, 6 of normal), 0 failed: manual"
        in capsys.readouterr().out
    )
    assert make("others", "pseudo", classes="manual") == 0, "the classes of another store"
    assert main(["labels", "check", "manual"]) == 0
    assert main(["labels", "draw", "manual", "--pairs", "pairs", "--out", "new/picture.png"]) == 0
    assert (here / "new" / "picture.png").is_file()
    train = ["train", "--recipe", "cliptex", "--init", "random", "--pairs", "pairs", *TINY]
    for name, labels in {
        "manual": ["--manual-labels", "manual"],
        "both": ["--manual-labels", "manual", "--labels", "pseudo"],
    }.items():
        assert main([*train, *labels, "--out", f"{name}.safetensors"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert ("has no labels, and counts for the contrast alone" in said) == (name == "manual")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["labels", "draw", "manual", "--pairs", "pairs", "--out", "p.xyz"], "no picture's name"),
        (
            ["labels", "make", "--pairs", "pairs", "--from", "seg", "--out", "x"],
            "--from 'seg' is not of the form",
        ),
        (
            ["labels", "make", "--pairs", "pairs", "--from", "seg=mine/seg", "--out", "x"],
            "--classes FILE",
        ),
        (["labels", "check", "none"], "no labels in none"),
    ],
)
def test_wrong_input_is_one_line(here, capsys, words, message):
    assert main(words) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
