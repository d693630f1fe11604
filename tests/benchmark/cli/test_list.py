"""``list``: one line a name, all or those that contain a word."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.__main__ import main
from benchmark.cli.list import THINGS
from probes.registry import DATASETS


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("backbones", "cliptex"),
        ("tasks", "coco/mask-rcnn"),
        ("suites", "paper"),
        ("datasets", "nyu-depth"),
        ("probes", "pspnet"),
        ("protocols", "dinov3"),
        ("data", "nyu-depth"),
        ("recipes", "cliptex-seg"),
        ("experts", "nll-angmf"),
        ("executors", "slurm"),
    ],
)
def test_list(what, name, capsys):
    assert main(["list", what]) == 0
    assert name in capsys.readouterr().out
    assert main(["list", what, name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(name in line for line in lines)
    assert main(["list", what, name, "--json", "--limit", "1"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert set(row) == {"name", "about"} and lines[0].startswith(row["name"])


def test_no_recipe_is_named_twice():
    names = [name for name, _ in THINGS["recipes"]()]
    assert len(names) == len(set(names)) and names[:3] == ["clip", "clip-ft", "cliptex"]


def test_protocols_say_where_they_are_from_and_what_they_fix(capsys):
    assert main(["list", "protocols"]) == 0
    said = capsys.readouterr().out
    assert (
        "facebookresearch/dinov3" in said and "slide=512,341" in said and "betas=0.9,0.99 " in said
    )
    assert "open-mmlab/mmsegmentation" in said and "mbanani/probe3d" in said and "epochs=10" in said


def test_protocols_are_listed_without_what_computes():
    script = (
        "import sys; from benchmark.__main__ import main; main(['list', 'protocols'])\n"
        "assert not {'torch', 'mmengine', 'mmseg', 'mlflow'} & set(sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60).returncode
        == 0
    )


def test_readme_has_the_table_of_what_there_is(monkeypatch, capsys):
    for name, spec in list(DATASETS.items()):  # those of tests that ran before in this process
        if spec.module.startswith("tests."):
            monkeypatch.delitem(DATASETS._things, name)
    assert main(["list", "table"]) == 0
    assert capsys.readouterr().out in (Path(__file__).parents[3] / "README.md").read_text(
        encoding="utf-8"
    )
