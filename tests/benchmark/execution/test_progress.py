"""The overview of a run: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import io
import math
import time

import pytest
from rich.console import Console

from benchmark.execution import progress, status_file
from benchmark.execution.progress import Bar, Overview
from cliptex_common.files import read_json_object


@pytest.fixture
def overview():
    """Of one rendering and two probes of a run with six."""
    overview = Overview(Bar(interval=math.inf))
    overview.expected["probe"] += 6
    for kind in ("render", "probe", "probe"):
        overview.add_submitted(kind)
    return overview


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
    overview.add_ended("render", 12.0)
    overview.add_ended("probe", 90.0)
    overview.tick([(render, "probe", 20.0)])
    assert capsys.readouterr().out.startswith("  units of work  2/3, 1:10 left; ")


def test_the_time_left_is_known_when_each_kind_has_a_finished_unit(overview):
    assert overview.seconds_left([("render", 3.0), ("probe", 3.0)], slots=2) is None
    overview.add_ended("render", 10.0)
    overview.add_ended("probe")  # it has failed
    assert overview.seconds_left([("probe", 3.0)], slots=2) is None
    overview.add_ended("probe", 20.0)
    assert overview.seconds_left([], slots=2) == pytest.approx(4 * 20 / 2)
    assert overview.seconds_left([("probe", 5.0), ("probe", 99.0)], 2) == pytest.approx(55 / 2)
    overview.add_submitted("train")
    assert overview.seconds_left([], slots=2) is None


def test_one_bar_for_all_units_in_a_terminal(monkeypatch):
    terminal = Console(force_terminal=True, width=100, file=io.StringIO())
    monkeypatch.setattr(progress, "console", terminal)
    with Bar() as bar:
        overview = Overview(bar)
        for _ in range(2):
            overview.add_submitted("probe")
        overview.add_ended("probe", 65.0)
        overview.tick([])
        (task,) = bar.progress.tasks
        assert (task.description, task.completed, task.total) == ("units of work, 1:05 left", 1, 2)
        overview.end()
        assert not bar.progress.tasks


def test_a_status_file_is_rewritten_with_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(status_file, "EVERY", 0.05)
    path = tmp_path / "unit" / "status.json"
    with status_file.StatusFile(path, name="unit") as status:
        assert read_json_object(path) == {"name": "unit"}
        status.update(done=3)
        while read_json_object(path) != {"name": "unit", "done": 3}:
            time.sleep(0.02)
    assert list(path.parent.iterdir()) == [path]
