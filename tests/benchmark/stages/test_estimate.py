"""Hours, GPU-hours and disk from the speed of one device."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from benchmark.__main__ import main
from benchmark.stages.estimate import Work, duration


def test_work():
    work = Work(images=7200 * 10, speed=10)
    assert work.device_hours == 2 and work.seconds(8) == 900
    assert Work(10, None).device_hours is None and Work(10, None).seconds(8) is None


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(3, "3 s"), (89, "89 s"), (120, "2 min"), (5400, "1.5 h"), (360_000, "100.0 h")],
)
def test_duration(seconds, told):
    assert duration(seconds) == told


def test_the_table_of_the_command(capsys):
    words = [
        "estimate",
        "--pairs",
        "3.6e6",
        "--epochs",
        "2",
        "--label-speed",
        "100",
        "--train-speed",
        "500",
        "--gpus",
        "1,10",
    ]
    assert main([*words, "--label-bytes", "1000"]) == 0
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()[2:]
    ]
    assert rows == [
        ["1", "10.0 h", "4.0 h", "14.0 h", "10 + 4", "3.6 GB"],
        ["10", "60 min", "24 min", "84 min", "10 + 4", "3.6 GB"],
    ]


def test_the_table_in_the_documentation_is_what_its_command_prints(capsys):
    page = (Path(__file__).parents[3] / "docs/scale.md").read_text(encoding="utf-8")
    (command,) = [line for line in page.splitlines() if " benchmark estimate " in line]
    assert main(shlex.split(command)[3:]) == 0
    assert capsys.readouterr().out in page


@pytest.mark.parametrize(
    "wrong",
    [
        ["--gpus", "0,8"],
        ["--gpus", "x"],
        ["--label-speed", "0"],
        ["--train-speed", "nan"],
        ["--gpus", "9" * 400],
        ["--pairs", "1e308"],
    ],
)
def test_wrong_numbers_are_one_line(wrong, capsys):
    assert main(["estimate", "--label-speed", "1", "--train-speed", "1", *wrong]) == 2
    assert capsys.readouterr().err.count("\n") == 1
