"""Many results: a report that can be sent, a leaderboard that fits a phone, and MLflow's own UI."""

from __future__ import annotations

import json
import signal
from contextlib import contextmanager
from itertools import cycle, islice, product
from pathlib import Path

import pytest
import requests

from reports.records import PARENT, Record, read_record
from reports.sharing import NOT_IDENTITY, shared_id, write_archive
from reports.tracking import Tracker
from tests.benchmark.run_command import run_command
from tests.forks import Fork, command
from tests.kit.waiting import is_soon
from tests.reports import synthetic
from tests.servers import free_port

pytestmark = pytest.mark.cluster

BACKBONES, TASKS, SEEDS = 40, 20, 3


class Collector:
    """As far as ``write_run`` uses it, a ``Tracker``; writes a file of shared results, since an
    MLflow store takes minutes for so many."""

    experiment = "paper"

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.members: dict[str, bytes] = {}

    @contextmanager
    def run(self, name, *, tags, params=None, parent=None):
        fields = {"parent": parent.id if parent else "", "name": name}
        run = CollectedRun(shared_id(read_record(tags, {}, {}, **fields)), self.members)
        yield run
        record = read_record(tags, params or {}, run.metrics, run_id=run.id, **fields)
        self.records.append(record)


class CollectedRun:
    def __init__(self, run_id: str, members: dict[str, bytes]) -> None:
        self.id, self.members = run_id, members
        self.metrics: dict[str, float] = {}

    def log_metrics(self, metrics, step=0) -> None:
        self.metrics |= metrics

    def log_file(self, path: Path) -> None:
        self.members[f"{self.id}/{path.name}"] = path.read_bytes()

    def log_json(self, value, name: str) -> None:
        if name == PARENT:
            identity = value["backbone"].items()
            value = {"backbone": {key: each for key, each in identity if key not in NOT_IDENTITY}}
        self.members[f"{self.id}/{name}"] = json.dumps(value).encode()


def test_forty_backbones_fit_a_report_and_a_phone(workdir, browser, monkeypatch):
    kinds = islice(cycle(synthetic.TASKS.items()), TASKS)
    tasks = {f"set-{n}/{name.split('/')[1]}": kind for n, (name, kind) in enumerate(kinds)}
    monkeypatch.setattr(synthetic, "TASKS", tasks)
    tags = {task: {"probe": task.split("/")[1]} for task in tasks}
    collector = Collector()
    for number, seed in product(range(BACKBONES), range(SEEDS)):
        target = collector if number else Tracker("paper")
        qualities = dict.fromkeys(tasks, 0.3 + 0.01 * number)
        synthetic.write_run(target, f"net-{number}", seed, qualities, task_tags=tags)
    write_archive(Path("shared.zip"), "lab", "1", collector.records, collector.members)
    assert run_command("report --experiment paper --with shared.zip") == 0
    report = Path("report/index.html")
    assert report.stat().st_size < 8e6
    assert f"net-{BACKBONES - 1}" in report.read_text()

    assert run_command("results page shared.zip --out site") == 0
    page = browser.new_page(viewport={"width": 400, "height": 800})
    page.set_default_timeout(120_000)
    page.goto(Path("site/index.html").absolute().as_uri())
    page.locator("html[data-figures=drawn]").wait_for(state="attached")
    assert page.locator("#rows tr").count() == BACKBONES - 1
    assert page.evaluate("document.documentElement.scrollWidth") == 400


def test_the_ui_answers_with_the_results(workdir):
    synthetic.write_run(Tracker("paper"), "clip", 0, {"voc/linear": 0.5})
    port = free_port()
    fork = Fork(command, "ui", "--port", str(port), output=workdir / "output")
    api = f"http://127.0.0.1:{port}/ajax-api/2.0/mlflow"

    def answers() -> bool:
        assert fork.process.is_alive(), fork.text()
        try:
            return requests.get(f"http://127.0.0.1:{port}/health").ok
        except requests.ConnectionError:
            return False

    assert is_soon(answers), fork.text()
    experiment = {"experiment_name": "paper"}
    reply = requests.get(f"{api}/experiments/get-by-name", experiment).json()["experiment"]
    assert f"open http://127.0.0.1:{port}/#/experiments/{reply['experiment_id']}" in fork.text()
    runs = requests.post(f"{api}/runs/search", json={"experiment_ids": [reply["experiment_id"]]})
    assert len(runs.json()["runs"]) == 2, "parent and cell"
    assert "<html" in requests.get(f"http://127.0.0.1:{port}").text
    fork.signal(signal.SIGINT)
    assert fork.end() == 0
