"""The overview of a run: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from benchmark.execution import progress
from benchmark.execution.progress import Bar, Overview, UnitProgress
from tests.benchmark.commands import read_json


@pytest.fixture
def overview():
    """Of a run with six probes, of which two are submitted beside a rendering."""
    overview = Overview(Bar(interval=math.inf))
    overview.expected["probe"] = 6
    overview.submitted.update({"render": 1, "probe": 2})
    return overview


def end(overview, kind, seconds=None):
    overview.ended[kind] += 1
    if seconds is not None:
        overview.seconds[kind].append(seconds)


def test_a_line_now_and_then_without_a_terminal(overview, capsys):
    overview.interval = 0.0
    render, train = Bar(interval=math.inf).line(), Bar(interval=math.inf).line()
    overview.tick([])
    assert capsys.readouterr().out == "", "nothing runs"
    render.start("rendering", 400)
    render.advance(100)
    overview.tick([(render, "render", 3.0), (train, "probe", 0.0)])
    line = capsys.readouterr().out
    assert line.startswith("  units of work  0/7; ") and "; rendering  100/400 " in line
    overview.expected["probe"] -= 4  # cached
    end(overview, "render", 12.0)
    end(overview, "probe", 90.0)
    overview.tick([(render, "probe", 20.0)])
    assert capsys.readouterr().out.startswith("  units of work  2/3, 1:10 left; ")


def test_the_time_left_is_known_when_each_kind_has_a_finished_unit(overview):
    assert overview.seconds_left([("render", 3.0), ("probe", 3.0)], slots=2) is None
    end(overview, "render", 10.0)
    end(overview, "probe")  # it has failed
    assert overview.seconds_left([("probe", 3.0)], slots=2) is None
    end(overview, "probe", 20.0)
    assert overview.seconds_left([], slots=2) == pytest.approx(4 * 20 / 2)
    assert overview.seconds_left([("probe", 5.0), ("probe", 99.0)], 2) == pytest.approx(55 / 2)
    overview.submitted["train"] += 1
    assert overview.seconds_left([], slots=2) is None


def test_one_bar_for_all_units_in_a_terminal(monkeypatch):
    terminal = Console(force_terminal=True, width=100, file=io.StringIO())
    monkeypatch.setattr(progress, "console", terminal)
    with Bar() as bar:
        overview = Overview(bar)
        overview.submitted["probe"] = 2
        end(overview, "probe", 65.0)
        overview.tick([])
        (task,) = bar.progress.tasks
        assert (task.description, task.completed, task.total) == ("units of work, 1:05 left", 1, 2)
        overview.end()
        assert not bar.progress.tasks


def test_progress_in_another_process_is_followed(tmp_path):
    bar, status = Bar(interval=math.inf), UnitProgress(tmp_path / "status.json")
    status.write()
    bar.follow(read_json(status.path))
    assert bar.text() == ""
    status.prefix = "clip · "
    status.start("encoding", 8)
    for _ in range(2):
        status.advance(3)
        status.write()
        bar.follow(read_json(status.path))
    assert bar.text().startswith("clip · encoding  6/8 ")
    status.start("training", 5)
    status.write()
    bar.follow(read_json(status.path))
    assert bar.text().startswith("clip · training  0/5 ")
