"""``results export``, ``check`` and ``page``, and ``report --with``, as a user types them."""

from __future__ import annotations

import pytest

from reports.tracking import Tracker
from tests.benchmark.run_command import run_command
from tests.reports.synthetic import write_run

pytestmark = pytest.mark.integration

TASKS = dict.fromkeys(("voc/linear", "imagenet/linear"), 0.5)
PROBE = {task: {"probe": "linear"} for task in TASKS}


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
