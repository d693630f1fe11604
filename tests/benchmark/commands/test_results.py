"""``results export``, ``check`` and ``page``, and ``report --with``, as a user types them."""

from __future__ import annotations

import json
import re
import sqlite3
import zipfile
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.store.artifact.artifact_repository_registry import (
    _artifact_repository_registry as repositories,
)
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from torch import nn

from benchmark import InLoop, evaluate
from benchmark.parser import main
from cliptex_common.errors import UserError
from probes.registry import PROBES
from reports.records import PARENT
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


def test_files_that_a_server_keeps_are_not_called_damaged(imagefolder, workdir, refused, capsys):
    """A store that an MLflow server wrote, opened by its file."""
    write_run(Tracker("paper"), "clip", 0, TASKS, task_tags=PROBE)
    with closing(sqlite3.connect("mlflow.db")) as store, store:
        store.execute("update experiments set artifact_location = 'mlflow-artifacts:/1'")
        store.execute("update runs set artifact_uri = 'mlflow-artifacts:/1/' || run_uuid")
    words = "--suite own --task imagefolder/knn --data-root . --device cpu --backbone random"
    for command in ("report", "results export", f"run {words} --experiment paper --jobs 1"):
        refused(command, "start the server and give its address")
    assert run_command("doctor --json") == 1
    (finding,) = [
        each
        for each in json.loads(capsys.readouterr().out)["findings"]
        if each["name"] == "artifacts"
    ]
    assert "start the server and give its address" in finding["remedy"]


@pytest.fixture
def elsewhere(workdir, monkeypatch):
    """An experiment whose artifacts are fetched before they are read, as from a server."""

    class Elsewhere(LocalArtifactRepository):
        def __init__(self, artifact_uri: str, *args, **kwargs) -> None:
            super().__init__(artifact_uri.removeprefix("elsewhere:"), *args, **kwargs)

    monkeypatch.setitem(repositories._registry, "elsewhere", Elsewhere)
    tracker = Tracker("paper")
    with closing(sqlite3.connect("mlflow.db")) as store, store:
        folder = f"elsewhere:{workdir}/elsewhere"
        store.execute("update experiments set artifact_location = ?", [folder])
    return tracker


def test_what_a_finished_run_was_changed_to_is_fetched_again(elsewhere, workdir, capsys):
    """Its artifacts are cached; another row of a suite resumes a run, and a label is changed."""

    def exported(name: str) -> tuple[dict, dict]:
        """The tags of the parent run, and its python in run.json."""
        assert run_command(f"results export --experiment paper --out {name}.zip") == 0
        with zipfile.ZipFile(f"{name}.zip") as file:
            (parent,) = [run for run in json.loads(file.read("runs.json")) if not run["parent"]]
            described = json.loads(file.read(f"{parent['id']}/{PARENT}"))
        return parent["tags"], described["environment"]["python"]

    parent = write_run(elsewhere, "clip", 0, TASKS, task_tags=PROBE)
    described = elsewhere.client.download_artifacts(parent, PARENT, str(workdir))
    content = json.loads(Path(described).read_text())
    versions = []
    for version in ("3.11", "3.12"):
        content["environment"] = {"python": version}
        with elsewhere.run("clip", resume=parent) as run:
            run.log_json(content, PARENT)
        versions.append(exported(version)[1])
    assert versions == ["3.11", "3.12"]
    assert run_command("results label clip other") == 0
    assert exported("labelled")[0]["label"] == "other"


def columns(capsys) -> list[str]:
    """The names of columns, as `results list` says them."""
    capsys.readouterr()
    assert run_command("results list --experiment paper") == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    return [re.split(r"  +", line)[0] for line in lines]


def test_a_label_is_taken_back_by_an_empty_one(workdir, capsys):
    write_run(Tracker("paper"), "clip", 0, TASKS)
    assert run_command("results label clip", "of the paper") == 0
    assert columns(capsys) == ["of the paper"]
    assert run_command("results label", "of the paper", "") == 0
    assert "of the paper is clip now" in capsys.readouterr().out
    assert columns(capsys) == ["clip"]


def test_a_label_that_no_command_could_name_is_refused(imagefolder, workdir, capsys):
    write_run(Tracker("paper"), "clip", 0, TASKS)
    suite = {"tasks": "imagefolder/knn", "suite": "own", "data_root": ".", "device": "cpu"}
    words = "run --suite own --task imagefolder/knn --data-root . --device cpu --backbone random"
    for label in ("a,b", "net(a),b", " a", ","):
        for command in ([*words.split(), "--name", label], ["results", "label", "clip", label]):
            assert main(command) == 2
            error = capsys.readouterr().err
            assert repr(label) in error and "commas" in error and error.count("\n") == 1
        for backbone, name in (({label: "random"}, None), (nn.Identity(), label)):
            with pytest.raises(UserError, match=re.escape(repr(label))):
                evaluate(backbone, name=name, **suite)
        with pytest.raises(UserError, match=re.escape(repr(label))):
            InLoop(every=1, name=label, **suite)
    assert columns(capsys) == ["clip"]
    assert run_command("results label clip", "net (a, b)") == 0
    assert columns(capsys) == ["net (a, b)"]
    assert run_command("results export --experiment paper --backbone", "net (a, b),net (a, b)") == 0
