"""The overview of a run: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import io
import math

from rich.console import Console

from benchmark.execution import progress
from benchmark.execution.progress import Bar, Overview


def test_a_line_now_and_then_without_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "OVERVIEW_SECONDS", 0.0)
    bar = Bar(interval=math.inf)
    overview, render, train = Overview(bar), bar.line(), bar.line()
    overview.tick([])
    assert capsys.readouterr().out == ""
    names = [f"clip · seed {seed} · voc/linear" for seed in range(6)]
    overview.estimate.announce("probe", names)
    for name, type_ in (
        ("render 1/1", "render"),
        ("train clip", "train"),
        (names[0], "voc/linear"),
    ):
        overview.estimate.add_submitted(name, type_)
    render.start("rendering", 400)
    render.advance(100)
    overview.tick([render, train])
    line = capsys.readouterr().out
    assert line.startswith("  units of work  0/8; ") and "; rendering  100/400 " in line
    overview.estimate.withdraw(names[2:])  # cached
    overview.estimate.table = {"render": 10.0, "train": 20.0, "voc/linear": 5.0}
    overview.estimate.started -= 12.0
    overview.estimate.add_done("render", 12.0)
    overview.tick([render, train], [("train", 6.0)])
    # 1.2 times as slow as the table says: 18 s of the training and 12 s of two probes are left, and
    # 18 s were done in 12 s
    assert capsys.readouterr().out.startswith("  units of work  1/4, 0:20 left; ")


def test_one_bar_for_all_units_in_a_terminal(monkeypatch):
    terminal = Console(force_terminal=True, width=100, file=io.StringIO())
    monkeypatch.setattr(progress, "console", terminal)
    with Bar() as bar:
        overview = Overview(bar)
        for seed in range(2):
            overview.estimate.add_submitted(f"clip · seed {seed} · voc/linear", "voc/linear")
        overview.estimate.add_done("voc/linear", 1.0)
        overview.tick([])
        (task,) = bar.progress.tasks
        assert (task.description, task.completed, task.total) == ("units of work", 1, 2)
        overview.end()
        assert not bar.progress.tasks
