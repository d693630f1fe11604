"""``list``: a line for each name, all or those with a word."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmark.__main__ import main
from benchmark.cli.list import recipes


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("backbones", "cliptex"),
        ("tasks", "coco/mask-rcnn"),
        ("suites", "paper"),
        ("datasets", "nyu-depth"),
        ("probes", "pspnet"),
        ("protocols", "dinov3"),
        ("recipes", "cliptex-seg"),
        ("experts", "nll-angmf"),
        ("executors", "slurm"),
    ],
)
def test_list(kind, name, capsys):
    assert main(["list", kind]) == 0
    assert name in capsys.readouterr().out
    assert main(["list", kind, name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(name in line for line in lines)
    assert main(["list", kind, name, "--json", "--limit", "1"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert set(row) == {"name", "about"} and lines[0].startswith(row["name"])


def test_recipes_are_listed_once():
    names = [name for name, _ in recipes()]
    assert len(names) == len(set(names)) and names[:3] == ["clip", "clip-ft", "cliptex"]


def test_protocols_show_their_source_and_settings(capsys):
    assert main(["list", "protocols"]) == 0
    output = capsys.readouterr().out
    for text in ("facebookresearch/dinov3", "slide=512,341", "open-mmlab/mmsegmentation"):
        assert text in output


def test_protocols_are_listed_without_heavy_imports():
    script = (
        "import sys; from benchmark.__main__ import main; main(['list', 'protocols'])\n"
        "assert not {'torch', 'mmengine', 'mmseg', 'mlflow'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
