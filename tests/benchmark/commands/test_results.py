"""``results export``, ``check`` and ``page``, and ``report --with``, as a user types them."""

from __future__ import annotations

import pytest

from probes.registry import PROBES
from reports.tracking import Tracker
from tests.benchmark.run_command import run_command
from tests.reports.synthetic import write_run

pytestmark = pytest.mark.integration

TASKS = dict.fromkeys(("voc/linear", "imagenet/linear"), 0.5)
PROBE = {task: {"probe": "linear"} for task in TASKS}


def test_the_list_says_what_runs_ran_with(workdir, capsys):
    tags = {task: {"changed": f"lr={lr} instead of 0.001"} for lr, task in enumerate(TASKS)}
    write_run(Tracker("paper"), "clip", 0, TASKS, task_tags=tags)
    assert run_command("results list --experiment paper") == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert "voc/linear, imagenet/linear · lr=0 instead of 0.001 · lr=1 instead" in line


def test_the_list_says_which_experiment_it_is_of_and_that_others_exist(workdir, capsys):
    for name in ("own", "paper", "reproduce"):
        write_run(Tracker(name), "clip", 0, {"voc/linear": 0.5})
    assert run_command("results list") == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "experiment reproduce"
    assert sorted(second.removeprefix("others, by --experiment: ").split(", ")) == ["own", "paper"]
    assert run_command("results list --experiment own") == 0
    assert "others" not in capsys.readouterr().out


def test_results_that_readers_cannot_check_are_not_exported(workdir, refused, monkeypatch):
    write_run(Tracker("paper"), "clip", 0, {"voc/linear": 0.5}, task_tags=PROBE)
    monkeypatch.delitem(PROBES.data, "segmentation/linear")  # as if it were of a plugin
    refused("results export --experiment paper", "give the plugin that it ran with (--plugin FILE)")


def test_from_one_home_to_another(workdir, capsys, refused):
    tracker = Tracker("paper")
    write_run(tracker, "clip", 0, TASKS, task_tags=PROBE)
    assert run_command("results export --experiment paper --source lab --out shared/clip.zip") == 0
    assert "2 results of clip: shared/clip.zip" in capsys.readouterr().out
    assert run_command("results check shared") == 0
    assert "clip: 2 results of 1 backbone agree" in capsys.readouterr().out

    other = Tracker("mine")
    write_run(other, "my-net", 0, dict.fromkeys(TASKS, 0.6))
    assert run_command("report --experiment mine --with shared --format html,md") == 0
    assert "Shared results, not made here: clip (from lab)." in capsys.readouterr().out
    assert "clip (shared: lab)" in (workdir / "report/report.md").read_text()

    assert run_command("results page shared --out site") == 0
    assert "1 backbone, 2 tasks, 1 file: site/index.html" in capsys.readouterr().out
    content = bytearray((workdir / "shared/clip.zip").read_bytes())
    content[len(content) // 2] ^= 1
    (workdir / "shared/clip.zip").write_bytes(content)
    refused("results check shared", "clip")
    refused("results page shared --out other", "clip")
    refused("report --experiment mine --with nowhere.zip", "no shared results at nowhere.zip")
    assert not (workdir / "other").exists()
