"""What breaks is a missing value with its reason and the others go on; what is wrong from the start
costs no work."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import benchmark.catalog  # noqa: F401
from backbones.backbone import DataConfig
from benchmark import evaluate, executor
from benchmark.executor import EXECUTORS, make_executor
from benchmark.local import LocalExecutor
from benchmark.run import Row, log_backbone
from benchmark.suites import Suite, register_suite
from cliptex_common.errors import NonFiniteLoss
from probes.base import Metric, Probe, TaskResult
from probes.registry import register_probe
from tests.benchmark.fake_pipeline import register_trained
from tests.benchmark.other_package import installed, registries
from tests.benchmark.run_command import read_json, run_command, runs_of
from tests.probes.datasets.make import make_camvid

pytestmark = pytest.mark.integration

FAST = "--data-root . --num-workers 0 --device cpu --set encode_batch_size=4 --set epochs=2"
FAST += " --set size=32"


@dataclass(frozen=True)
class NoSettings:
    """None."""


class Buggy(Probe):
    """A probe that raises."""

    name, kind, version, settings_type, metrics = (
        "buggy",
        "classification",
        1,
        NoSettings,
        {"top1": Metric()},
    )
    splits = ("val",)

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def config(self, context) -> str:
        return ""

    def run(self, context) -> TaskResult:
        if self.error is None:
            return TaskResult({"top1": 1.0})
        raise self.error


async def mistake():
    raise ZeroDivisionError("a bug in a training")


@pytest.fixture
def here(workdir, imagefolder):
    with registries():
        yield workdir


def test_what_breaks_is_missing_with_its_reason_and_the_others_go_on(here, capsys):
    """A training that diverges, one with a bug, and a probe with a bug."""

    async def diverge():
        raise NonFiniteLoss("the loss is not finite at step 3")

    register_probe(Buggy(KeyError("no such key")))
    tasks = {"imagefolder/linear": {}, "imagefolder/buggy": {}}
    makers = {"clip": mistake, "cliptex": diverge}
    register_trained("breaking", tasks, ("clip", "random", "cliptex"), makers)
    assert run_command(f"run --suite breaking {FAST} --report --json out.json") == 1
    document = read_json("out.json")
    assert set(document["backbones"]["random"]) == {"imagefolder/linear"}
    assert document["backbones"]["clip"] == document["backbones"]["cliptex"] == {}
    assert set(document["mlflow"]["run_ids"]) == {"random"}
    holes = [entry for entry in document["holes"] if entry["metrics"] != ["top5"]]  # of two classes
    prefix = "could not load its weights or write its parent run: "
    reasons = {
        "clip": f"{prefix}ZeroDivisionError: a bug in a training",
        "cliptex": f"{prefix}NonFiniteLoss: the loss is not finite at step 3",
    }
    assert {(entry["backbone"], entry["task"]): entry["reason"] for entry in holes} == {
        ("random", "imagefolder/buggy"): "KeyError: 'no such key'",
        **{(name, task): reason for name, reason in reasons.items() for task in tasks},
    }
    assert {entry["status"] for entry in holes} == {"failed"}
    shown = capsys.readouterr().out
    assert "raise self.error" in shown and 'raise ZeroDivisionError("a bug in a training")' in shown
    assert "raise NonFiniteLoss" not in shown, "that one's reason says it all"
    assert f"imagefolder/linear · cliptex · seed 0: failed, {reasons['cliptex']}" in shown
    (page,) = [
        line.removeprefix("report: ") for line in shown.splitlines() if line.startswith("report: ")
    ]
    assert "imagefolder/linear" in Path(page).read_text()
    status = {run.data.tags.get("task", "parent"): run.info.status for run in runs_of("breaking")}
    assert status == {
        "parent": "FAILED",
        "imagefolder/linear": "FINISHED",
        "imagefolder/buggy": "FAILED",
    }


@pytest.mark.parametrize("metrics", [{}, {"top1": float("nan")}])
def test_a_probe_without_a_number_fails(here, metrics):
    probe = Buggy(None)
    probe.run = lambda context: TaskResult(metrics)
    register_probe(probe)
    register_suite(Suite("numberless", "for tests", {"imagefolder/buggy": {}}, ("random",)))
    assert run_command("run --suite numberless --data-root . --device cpu --json out.json") == 1
    (hole,) = read_json("out.json")["holes"]
    assert hole["reason"].endswith("no finite top1")


def test_a_picture_of_features_that_cannot_be_drawn_fails_nothing(here, capsys):
    register_probe(Buggy(None))
    module = torch.nn.Conv2d(3, 4, 16, 16)
    torch.nn.init.constant_(module.weight[0], torch.nan)
    images = DataConfig((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    results = evaluate(module, "imagefolder/buggy", images=images, data_root=".", device="cpu")
    assert results.frame.status.unique().tolist() == ["done"]
    assert "no picture of features" in capsys.readouterr().out


def test_a_training_that_several_backbones_wait_for_is_shown_once(here, capsys):
    names = ("clip", "random", "cliptex")
    register_trained("waiting", {"imagefolder/linear": {}}, names, dict.fromkeys(names, mistake))
    assert run_command(f"run --suite waiting {FAST}") == 1
    shown = capsys.readouterr().out
    assert shown.count("Traceback") == 1 and shown.count("its parent run: ZeroDivisionError") == 3


def test_a_parent_run_that_breaks_fails_its_tasks(here, monkeypatch):
    def break_parent(*_):
        raise ZeroDivisionError("a bug in a parent run")

    register_suite(Suite("broken-parent", "for tests", {"imagefolder/linear": {}}, ("random",)))
    monkeypatch.setattr(Row, "log_cells", break_parent)
    assert run_command(f"run --suite broken-parent {FAST} --json out.json") == 1
    document = read_json("out.json")
    (entry,) = document["holes"]
    assert entry["reason"].endswith("its parent run: ZeroDivisionError: a bug in a parent run")
    (parent,) = [run for run in runs_of("broken-parent") if "task" not in run.data.tags]
    assert parent.info.status == "FAILED"


def test_the_progress_counts_a_row_that_breaks_once(here, monkeypatch):
    """Its cells are finished, and then its model cannot be logged; the other seed's unit runs."""
    register_suite(Suite("counted", "for tests", {"imagefolder/linear": {}}, ("random",)))
    assert run_command(f"run --suite counted {FAST}") == 0
    executors = []

    def keep(*arguments):
        executors.append(make_executor(*arguments))
        return executors[-1]

    def break_first(tracker, backbone, *arguments):
        if backbone.create_arguments["seed"] == 0:
            raise ZeroDivisionError
        return log_backbone(tracker, backbone, *arguments)

    monkeypatch.setattr("benchmark.run.make_executor", keep)
    monkeypatch.setattr("benchmark.run.log_backbone", break_first)
    assert run_command(f"run --suite counted {FAST} --seeds 2") == 1
    assert executors[0].overview.expected["probe"] == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--backbone random --task imagefolder/zero-shot", "no text tower"),
        (
            "--backbone random/timm/hiera_tiny_224 --task imagefolder/knn --set size=256",
            "takes images of 224×224 only; set size=224",
        ),
    ],
)
def test_tasks_that_apply_to_no_backbone_are_wrong_input(here, capsys, options, reason):
    assert run_command(f"run {options} --data-root . --num-workers 0 --device cpu") == 2
    captured = capsys.readouterr()
    assert f"not applicable, {reason}" in captured.out
    assert "none of these tasks applies to these backbones; choose others" in captured.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file", "/a.jpg"), 1),
        (OSError(errno.ENOSPC, "No space", "/w"), 2),
    ],
)
def test_a_file_that_is_missing_is_a_missing_value_and_a_full_disk_the_users_to_mend(
    here, capsys, error, code
):
    register_probe(Buggy(error))
    register_suite(
        Suite(
            "files", "for tests", {"imagefolder/buggy": {}, "imagefolder/linear": {}}, ("random",)
        )
    )
    assert run_command(f"run --suite files {FAST} --json out.json") == code
    statuses = {run.data.tags.get("task", "parent"): run.info.status for run in runs_of("files")}
    assert statuses["parent"] == statuses["imagefolder/buggy"] == "FAILED"
    if code == 1:
        assert "imagefolder/linear" in read_json("out.json")["backbones"]["random"]
    else:
        assert "cannot write /w: No space; free some space" in capsys.readouterr().err
        assert statuses.get("imagefolder/linear") in (None, "KILLED")
        assert not Path("out.json").exists()


VANISH = """
import os, signal
from dataclasses import dataclass
from benchmark.suites import Suite
from probes.base import Metric, Probe

@dataclass(frozen=True)
class NoSettings:
    pass

class Vanishing(Probe):
    name, kind, version, settings_type, metrics = "vanish", "classification", 1, NoSettings, {"top1": Metric()}
    splits = ("val",)
    def config(self, context):
        return ""
    def run(self, context):
        os.kill(os.getpid(), signal.SIGKILL)

PROBE = Vanishing()
SUITE = Suite("vanishing", "for tests", {"camvid/linear": {}, "imagefolder/vanish": {}}, ("random",))
"""  # noqa: E501
POINTS = """
[cliptex_benchmark.probes]
classification/vanish = other_package:PROBE
[cliptex_benchmark.suites]
vanishing = other_package:SUITE
"""


@pytest.mark.slow
def test_a_unit_that_kills_its_workers_is_missing_and_the_others_go_on(here, monkeypatch, capsys):
    """In real processes, which find the probe by its entry point."""
    make_camvid(here / "camvid", n_train=4, n_val=3)
    monkeypatch.setattr("benchmark.local.cores", lambda: 2)
    monkeypatch.setattr(executor, "MAX_LOST", 1)
    with installed(here / "site", VANISH, POINTS):
        command = "run --suite vanishing --data-root . --num-workers 0 --device cpu --json out.json"
        assert run_command(f"{command} --set max_iters=2 --set batch_size=2 --set size=32") == 1
    document = read_json("out.json")
    assert set(document["backbones"]["random"]) == {"camvid/linear"}
    (entry,) = document["holes"]
    assert entry["task"] == "imagefolder/vanish" and entry["reason"].startswith(
        "WorkerLost: its worker died 2 times"
    )
    shown = capsys.readouterr().out
    assert "running it again, 1 of 1" in shown and "report: " in shown and "Traceback" not in shown
    statuses = [
        (run.data.tags.get("task", "parent"), run.info.status) for run in runs_of("vanishing")
    ]
    killed = ("imagefolder/vanish", "KILLED")  # both times, in one run
    assert sorted(statuses) == [("camvid/linear", "FINISHED"), killed, ("parent", "FAILED")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data imagefolder=/no/where", "/no/where"),
        ("--weights missing.safetensors --backbone clip", "missing.safetensors"),
        ("--executor far", "start `mlflow server` and give --tracking-uri http://HOST:PORT"),
    ],
)
def test_inputs_are_checked_before_anything_is_trained(here, refused, options, message):
    class Far(LocalExecutor):
        is_remote = True

    EXECUTORS.register("far", Far)
    trained = []

    async def train():
        trained.append("clip")

    register_trained("careful", {"imagefolder/linear": {}}, ("clip",), {"clip": train})
    refused(f"run --suite careful {FAST} {options}", message)
    assert not trained and runs_of("careful") == []
