"""The progress of a run: bars in a terminal, a line now and then in a log."""

from __future__ import annotations

import io
import math
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from rich.console import Console

from benchmark import progress
from benchmark.progress import Bar, Overview, ProgressLine, subject


@pytest.fixture
def overview():
    """Of a run with six probes, of which two are submitted beside a rendering."""
    overview = Overview(Bar(interval=0.0))
    overview.expected["probe"] = 6
    overview.submitted.update({"render": 1, "probe": 2})
    return overview


def end(overview, kind, seconds=None):
    overview.running[Path(kind)] = kind, time.monotonic() - (seconds or 0)
    overview.end(Path(kind), kind, seconds is not None)


def test_a_line_now_and_then_without_a_terminal(overview, capsys):
    render = overview.bar.line()
    render.start("rendering", 400)
    render.advance(100)
    overview.show(slots=1)
    line = capsys.readouterr().out
    assert "rendering  100/400" in line and "; units of work  0/7" in line
    overview.show(slots=1)
    assert not capsys.readouterr().out, "nothing has changed"
    overview.expected["probe"] -= 4  # cached
    end(overview, "render", 12.0)
    end(overview, "probe", 90.0)
    overview.show(slots=1)
    assert "units of work  2/3  1:30 left" in capsys.readouterr().out


@pytest.mark.parametrize("elsewhere", [False, True])
def test_slow_work_has_an_estimate_from_its_first_part_on(tmp_path, elsewhere):
    """Also work that resumes, in this process or another."""
    bar, line, file = Bar(interval=math.inf), ProgressLine(), tmp_path / "status.json"
    bar.progress.get_time = clock = Mock()
    work = line if elsewhere else bar
    work.start("training", 1000)
    for clock.return_value, done in ((0.0, 400), (90.0, 1)):
        work.advance(done)
        if elsewhere:
            line.write(file)
            bar.follow(file)
    assert bar.text() == "training  401/1000  90 s each  14:58:30 left"


def test_the_time_left_is_known_when_each_kind_has_a_finished_unit(overview):
    assert overview.seconds_left(slots=2) is None
    end(overview, "render", 10.0)
    end(overview, "probe")  # it has failed
    assert overview.seconds_left(slots=2) is None
    end(overview, "probe", 20.0)
    assert overview.seconds_left(slots=2) == pytest.approx(4 * 20 / 2, abs=0.1)
    now = time.monotonic()
    overview.running = {Path("a"): ("probe", now - 5), Path("b"): ("probe", now - 99)}
    assert overview.seconds_left(slots=2) == pytest.approx(55 / 2, abs=0.1)
    overview.submitted["train"] += 1
    assert overview.seconds_left(slots=2) is None


def test_one_bar_for_all_units_in_a_terminal(monkeypatch):
    terminal = Console(force_terminal=True, width=100, file=io.StringIO())
    monkeypatch.setattr(progress, "console", terminal)
    with Bar() as bar:
        overview = Overview(bar)
        overview.submitted["probe"] = 2
        end(overview, "probe", 65.0)
        overview.show(slots=1)
        bar.progress.refresh()
        overview.hide()
        assert not bar.progress.tasks
    drawn = terminal.file.getvalue()
    assert "units of work" in drawn and "1/2" in drawn and "1:05 left" in drawn


def test_a_step_is_one_line_of_a_narrow_terminal_and_begins_with_its_subject(monkeypatch):
    terminal = Console(force_terminal=True, width=80, file=io.StringIO())
    monkeypatch.setattr(progress, "console", terminal)
    bar = Bar()
    token = subject.set("trial 7 · ")
    of_worker = bar.line()
    bar.start("rendering", 4)
    subject.reset(token)
    of_worker.start("cliptex · seed 0 · camvid/linear + voc/linear + ade20k/linear · train", 900)
    terminal.print(bar.progress.get_renderable())
    here, worker = terminal.file.getvalue().splitlines()
    assert "trial 7 · rendering" in here
    assert "trial 7 · cliptex · seed 0 · c" in worker and "0/900" in worker and "…" in worker


def test_progress_in_another_process_is_followed(tmp_path):
    bar, line, file = Bar(interval=math.inf), ProgressLine(), tmp_path / "status.json"
    line.write(file)
    bar.follow(file)
    assert bar.text() == ""
    line.prefix = "clip · "
    line.start("encoding", 8)
    for _ in range(2):
        line.advance(3)
        line.write(file)
        bar.follow(file)
    assert bar.text().startswith("clip · encoding  6/8")
    line.start("training", 5)
    line.write(file)
    bar.follow(file)
    assert bar.text() == "clip · training  0/5"
