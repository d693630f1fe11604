"""``labels make``, ``check`` and ``draw``, and trainings with manual labels."""

from __future__ import annotations

import pytest

from benchmark.parser import main
from tests.backbones.cliptex import toy
from tests.backbones.cliptex.test_manual import write_files

pytestmark = pytest.mark.integration

TRAIN = (
    "train --recipe cliptex --init random --pairs pairs --set model=tiny --set batch_size=8"
    " --set epochs=0.5 --device cpu --jobs 1"
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    toy.write_pairs(tmp_path / "pairs", 12, 2)
    write_files(tmp_path / "mine", [f"{i:09d}" for i in range(6)])
    write_files(tmp_path / "others", [f"{i:09d}" for i in range(12)])
    (tmp_path / "classes.txt").write_text("background\ndisc\nsquare\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(folder: str, out: str) -> int:
    folders = [f"--from={name}={folder}/{name}" for name in ("seg", "depth", "normal")]
    classes = "--classes", "classes.txt"
    return main(["labels", "make", "--pairs", "pairs", *folders, *classes, "--out", out])


def test_manual_labels_are_made_checked_drawn_and_trained_on(here, capsys):
    assert make("mine", "manual") == 0
    counts = "6 pairs labelled (6 of seg, 6 of depth, 6 of normal), 0 failed: manual"
    assert counts in capsys.readouterr().out
    assert make("others", "pseudo") == 0
    assert main(["labels", "check", "manual"]) == 0
    assert main(["labels", "draw", "manual", "--pairs", "pairs", "--out", "new/picture.png"]) == 0
    assert (here / "new" / "picture.png").is_file()
    manual = ["--manual-labels", "manual"]
    for name, labels in {"manual": manual, "both": [*manual, "--labels", "pseudo"]}.items():
        assert main([*TRAIN.split(), *labels, "--out", f"{name}.safetensors"]) == 0
        output = " ".join(capsys.readouterr().out.split())
        assert ("have no labels; only the contrast uses them" in output) == (name == "manual")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("draw manual --pairs pairs --out p.xyz", "no picture's name"),
        ("make --pairs pairs --from seg=mine/seg --out x", "--classes FILE"),
        ("check none", "no labels in none"),
    ],
)
def test_wrong_input_is_one_line(here, refused, command, message):
    refused(f"labels {command}", message)
