"""What a run says of itself as a whole: in a log a line now and then, and nothing of single
steps."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from benchmark.execution import overview as overviews
from benchmark.execution import progress
from benchmark.execution.overview import Overview
from benchmark.execution.progress import Bar


def test_a_line_now_and_then_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(overviews, "EVERY", 0.0)
    bar = Bar(every=math.inf)
    overview, render, train = Overview(bar), bar.line(), bar.line()
    overview.tick([])
    assert capsys.readouterr().out == ""
    overview.expect("probe", 6)
    for kind in ("render", "train", "probe"):
        overview.submitted(kind)
    render.start("rendering", 400)
    render.advance(100)
    overview.tick([render, train])
    assert capsys.readouterr().out.startswith(
        "  0 of 8 units of work done in 0:00: rendering  100/400 "
    )
    overview.expect("probe", -4)  # finished before
    for _ in range(3):
        overview.ended()
    overview.tick([render, train])
    assert capsys.readouterr().out.startswith(
        "  3 of 4 units of work done in 0:00, about 0:00 left: rendering"
    )


def test_one_bar_for_all_in_a_terminal(monkeypatch):
    terminal = Console(force_terminal=True, width=100, file=io.StringIO())
    monkeypatch.setattr(progress, "console", terminal)
    with Bar() as bar:
        overview = Overview(bar)
        overview.submitted("probe")
        overview.submitted("probe")
        overview.ended()
        overview.tick([])
        (task,) = bar._progress.tasks
        assert (task.description, task.completed, task.total) == ("all units of work", 1, 2)
        overview.close()
        assert not bar._progress.tasks


@pytest.mark.parametrize("seconds", [0, 59.9, 61, 3600])
def test_clock(seconds):
    minutes, rest = overviews._clock(seconds).split(":")
    assert abs(int(minutes) * 60 + int(rest) - seconds) <= 1 and len(rest) == 2 and int(rest) < 60


@pytest.mark.parametrize("columns", ["0", "1", "200"])
def test_lines_whatever_the_terminal_says_of_its_width(columns, monkeypatch):
    said = io.StringIO()
    console = progress._Console(file=said, _environ={"COLUMNS": columns})
    console.print("a line of words")
    assert said.getvalue() == "a line of words\n"
