"""A study knows what it was started with; storages that cannot be used are said in one line; plots stand alone."""

from __future__ import annotations

import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from sweeps.cells import next_trial
from sweeps.errors import SweepError
from sweeps.plots import write_plots
from sweeps.storage import storage_url
from sweeps.study import differences, load_sweep
from tests.sweeps.cheap import drain, start


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'sweeps.db'}"


def test_going_on_with_the_same_is_fine_and_a_sampler_may_get_more_trials(url):
    start(url)
    assert len(start(url).space.cells()) == 9
    start(url, "more", search="tpe", trials=4)
    assert len(start(url, "more", search="tpe", trials=9).space.cells()) == 9
    assert len(start(url, "more", search="tpe", trials=2).space.cells()) == 9, (
        "what was asked for once is not taken back"
    )


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"values": (0.1, 1.0)}, r"space.settings.lambda_clip.values: \[0.1, 1.0, 10.0\] → \[0.1, 1.0\]"),
        ({"search": "grid"}, 'space.search: "linear" → "grid"'),
        ({"objectives": ("dense",)}, r'objectives: \["gain"\] → \["dense"\]'),
        ({"prune": "val/i2t_R@1"}, 'prune: "" → "val/i2t_R@1"'),
    ],
)
def test_a_changed_study_is_refused_with_what_differs(url, changed, says):
    start(url)
    with pytest.raises(SweepError, match=says) as caught:
        start(url, **changed)
    assert "--study NAME" in str(caught.value)


def test_differences_name_every_leaf():
    old, new = {"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 2, "c": [1]}, "e": 3}
    assert differences(old, new) == ["a.b: 1 → 2", "d: 2 → (absent)", "e: (absent) → 3"]


def test_storages_that_cannot_be_used(tmp_path, url):
    with pytest.raises(SweepError, match="no sweeps at"):
        load_sweep(None, url)
    assert not list(tmp_path.iterdir()), "asking must not make a database"
    with pytest.raises(SweepError, match="is no database address"):
        storage_url("sweeps.db")
    with pytest.raises(SweepError, match="needs a file"):
        storage_url("sqlite://")
    with pytest.raises(SweepError, match="only sqlite"):
        storage_url("mysql://host/db")
    with pytest.raises(SweepError, match="no folder"):
        start(f"sqlite:///{tmp_path}/absent/sweeps.db")
    with pytest.raises(SweepError, match=r"cannot use the storage postgresql\+psycopg://someone:\*\*\*@127.0.0.1:9/db"):
        start("postgresql+psycopg://someone:secret@127.0.0.1:9/db")
    (tmp_path / "text.db").write_text("not a database, but long enough to be looked at as if it were one\n" * 20)
    with pytest.raises(SweepError, match="cannot use the storage"):
        start(f"sqlite:///{tmp_path / 'text.db'}")
    start(url)
    with pytest.raises(SweepError, match=r"no study 'other' .* there: cheap"):
        load_sweep("other", url)
    start(url, "second")
    with pytest.raises(SweepError, match="cheap, second; say which"):
        load_sweep(None, url)


def test_a_storage_that_is_lost_in_the_middle_is_one_line(url, tmp_path):
    sweep = start(url)
    with closing(sqlite3.connect(tmp_path / "sweeps.db")) as connection:
        connection.execute("drop table trials")
    with pytest.raises(SweepError, match=r"lost the storage sqlite.*the same command goes on") as caught:
        next_trial(sweep, None, lambda lost: None)
    assert "\n" not in str(caught.value)


def test_sqlite_is_safe_for_several_processes(url, tmp_path):
    start(url)
    with closing(sqlite3.connect(tmp_path / "sweeps.db")) as connection:
        assert connection.execute("pragma journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("server", ["sqlite", "postgres"])
def test_a_new_storage_is_made_once_however_many_come_first(server, url, request):
    storage = url if server == "sqlite" else request.getfixturevalue("postgres_database")
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda number: start(storage, f"study-{number}").name, range(4)))
    assert made == [f"study-{number}" for number in range(4)]


def test_plots_are_one_page_that_needs_nothing_else(url, tmp_path):
    sweep = start(url)
    assert write_plots(sweep, tmp_path) is None
    drain(url, "/dev/null")
    text = write_plots(sweep, tmp_path).read_text()
    names = re.findall(r'<section id="([^"]+)">', text)
    assert names == ["history", "parallel_coordinates", "slice", "contour", "importances"]
    assert text.count("Plotly.newPlot(") >= len(names) and 'src="http' not in text
    assert len(text) < 6_000_000, "plotly's script is there once, not once a plot"
    assert "mean gain over clip-ft" in text
