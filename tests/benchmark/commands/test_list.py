"""``list``: a line for each name, all or those with a word."""

from __future__ import annotations

import json

import pytest

from tests.benchmark.run_command import run_command


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
    assert run_command(f"list {kind} {name}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(name in line for line in lines)
    assert run_command(f"list {kind} {name} --json --limit 1") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert set(row) == {"name", "about"} and lines[0].startswith(row["name"])


def test_protocols_show_their_source_and_settings(capsys):
    assert run_command("list protocols") == 0
    output = capsys.readouterr().out
    for text in ("facebookresearch/dinov3", "slide=512,341", "onedl-mmsegmentation"):
        assert text in output
    assert "radio, not here" in output


def test_every_task_names_the_suites_that_have_it(capsys):
    assert run_command("list tasks") == 0
    output = capsys.readouterr().out
    assert "[]" not in output
