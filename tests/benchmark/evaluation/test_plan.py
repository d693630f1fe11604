"""What a run will do is decided and checked before any work."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import benchmark.catalog  # noqa: F401
from backbones import UserError
from benchmark.evaluation.plan import plan_tasks, split_names
from benchmark.evaluation.runner import RunOptions, _chosen
from benchmark.suites.registry import SUITES, find_suite
from probes.datasets.base import PreparedDataset
from probes.registry import DATASETS, find_task


def test_names_are_repeatable_and_comma_separated():
    assert split_names(["a,b", "c", "b, d"]) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("name", sorted(SUITES))
def test_every_task_of_every_suite_can_be_planned(name):
    tasks = plan_tasks(find_suite(name), [], {})
    assert [task.name for task in tasks] == list(SUITES[name].tasks)
    for task in tasks:
        assert task.probe.metrics, f"{task.name} has a main metric"
        assert set(task.probe.metrics.values()) <= {1, -1}


def test_suite_and_user_settings_come_together():
    (task,) = plan_tasks(find_suite("paper"), ["voc/linear"], {"max_iters": "7", "lr": "0.5"})
    assert (task.settings.max_iters, task.settings.lr) == (7, 0.5)


@pytest.mark.parametrize(
    ("chosen", "changes", "message"),
    [
        (["voc/lineer"], {}, "did you mean voc/linear"),
        (["camvid/linear"], {}, "suite 'paper' has no task 'camvid/linear'"),
        (["voc/linear"], {"max_itres": "3"}, "did you mean max_iters"),
        (["voc/linear"], {"max_iters": "many"}, "a whole number"),
    ],
)
def test_wrong_requests_are_said(chosen, changes, message):
    with pytest.raises(UserError, match=message):
        plan_tasks(find_suite("paper"), chosen, changes)
    with pytest.raises(UserError, match="did you mean paper"):
        find_suite("papre")
    with pytest.raises(UserError, match="voc/linear"):
        find_task("vocc/linear")


def test_protocol_changes_with_everything_a_number_depends_on(tmp_path):
    (task,) = plan_tasks(find_suite("paper"), ["voc/linear"], {})
    data = PreparedDataset(DATASETS["voc"], tmp_path, {"train": [], "val": []}, fingerprint="a")
    base = task.protocol(data)
    others = [
        plan_tasks(find_suite("paper"), ["voc/linear"], {"lr": "0.5"})[0].protocol(data),
        plan_tasks(find_suite("paper"), ["voc/pspnet"], {})[0].protocol(data),
        task.protocol(dataclasses.replace(data, fingerprint="b")),
        task.protocol(dataclasses.replace(data, partial=True)),
    ]
    assert all(other != base for other in others)
    assert task.protocol(data) == base


def test_a_backbone_brings_its_baselines_and_a_group_its_members():
    mini, paper = find_suite("mini"), find_suite("paper")
    assert _chosen(mini, RunOptions()) == ["clip", "clip-ft", "cliptex"]
    assert _chosen(mini, RunOptions(backbones=["cliptex"])) == ["clip", "clip-ft", "cliptex"]
    assert _chosen(mini, RunOptions(backbones=["cliptex"], alone=True)) == ["cliptex"]
    assert _chosen(mini, RunOptions(backbones=["cliptex"], weights=Path("w.safetensors"))) == ["cliptex"]
    assert _chosen(mini, RunOptions(backbones=["cliptex,clip-ft"])) == ["cliptex", "clip-ft"]
    assert _chosen(paper, RunOptions(backbones=["cliptex"])) == ["cliptex"]
    ablation = _chosen(mini, RunOptions(backbones=["ablation"], alone=True))
    assert ablation[0] == "clip-ft" and ablation[-1] == "cliptex" and len(ablation) == 8
