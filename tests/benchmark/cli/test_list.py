"""``list``: one line a name, all or those that contain a word."""

from __future__ import annotations

import pytest

from benchmark.__main__ import main


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("backbones", "cliptex"),
        ("tasks", "coco/mask-rcnn"),
        ("suites", "paper"),
        ("datasets", "nyu-depth"),
        ("probes", "pspnet"),
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
