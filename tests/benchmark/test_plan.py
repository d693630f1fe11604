"""What a run will do is decided and checked before any work."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import benchmark.catalog  # noqa: F401
from backbones import UserError
from benchmark.plan import plan_tasks, split_names
from benchmark.run import RunOptions, _chosen, make_plan
from benchmark.suites.registry import SUITES, find_suite, settings_in
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
        assert {metric.direction for metric in task.probe.metrics.values()} <= {1, -1}


def test_suite_and_user_settings_come_together():
    (task,) = plan_tasks(find_suite("paper"), ["voc/linear"], {"max_iters": "7", "lr": "0.5"})
    assert (task.settings.max_iters, task.settings.lr) == (7, 0.5)


def test_a_protocol_stands_between_the_suites_settings_and_the_users(tmp_path):
    suite = dataclasses.replace(
        find_suite("paper"), tasks={"nyu-depth/linear": {"lr": 0.5, "precision": "bf16"}}
    )
    (task,) = plan_tasks(suite, [], {"protocol": "dinov3", "max_iters": "100"})
    chosen = task.settings
    assert (chosen.protocol, chosen.lr, chosen.bins) == (
        "dinov3",
        3e-4,
        256,
    )  # the protocol's, over the suite's
    assert chosen.precision == "bf16"  # which the protocol leaves open
    assert chosen.max_iters == 100  # the user's, over the protocol's
    data = PreparedDataset(DATASETS["nyu-depth"], tmp_path, {})
    (line,) = task.deviations(data)
    assert line.startswith("differs from dinov3: max_iters=100 instead of 38400")
    (own,) = plan_tasks(suite, [], {"max_iters": "100"})
    assert own.settings.protocol == "own" and own.settings.lr == 0.5 and own.deviations(data) == []
    assert own.protocol(data) != task.protocol(data)
    named = dataclasses.replace(
        suite, tasks={"nyu-depth/linear": {"protocol": "dinov3"}}
    )  # a suite may name one too
    assert plan_tasks(named, [], {})[0].settings.bins == 256


@pytest.mark.parametrize(
    ("chosen", "changes", "message"),
    [
        (["voc/lineer"], {}, "did you mean voc/linear"),
        (["camvid/linear"], {}, "suite 'paper' has no task 'camvid/linear'"),
        (["voc/linear"], {"max_itres": "3"}, "did you mean max_iters"),
        (["voc/linear"], {"max_iters": "many"}, "valid integer"),
        (
            ["voc/linear", "ade20k/linear"],
            {"protocol": "dinov3"},
            "does not apply to voc/linear; it does to ade20k/linear",
        ),
        (["voc/linear"], {"protocol": "dino"}, "no protocol 'dino'"),
        (["voc/linear"], {"protocol": ""}, "no protocol ''"),
        (
            ["nyu-depth/dpt-probe3d"],
            {"protocol": "probe3d", "max_iters": "9"},
            "whose length is epochs=10; set epochs=0 as well",
        ),
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


@pytest.mark.parametrize(
    ("tasks", "suite"),
    [
        ([], "mini"),
        (["mini-seg/linear"], "mini"),
        (["mini-seg/pspnet"], "smoke"),
        (["camvid/linear"], "own"),
        (["nyu-depth/dpt", "voc/linear"], "paper"),
        (["mini-depth/dpt"], "mini"),
    ],
)
def test_without_a_suite_the_tasks_say_which(tasks, suite):
    assert make_plan(RunOptions(backbones=["random"], tasks=tasks)).suite.name == suite


def test_a_task_that_no_suite_lists_takes_what_its_dataset_s_tasks_share():
    (dpt,) = plan_tasks(find_suite("paper"), ["nyu-depth/dpt-probe3d"], {"protocol": "probe3d"})
    assert dpt.settings.precision == "bf16" and dpt.settings.bins == 256
    (ssd,) = plan_tasks(find_suite("mini"), ["mini-det/ssd"], {"augment": "false"})
    assert ssd.settings.out_channels == 64  # and nothing that only mask-rcnn has
    differing = {"voc/linear": {"size": 64, "lr": 0.5}, "voc/pspnet": {"size": 64, "lr": 0.1}}
    assert settings_in(
        dataclasses.replace(find_suite("paper"), tasks=differing), "voc/deeplabv3"
    ) == {"size": 64}


def test_a_dataset_that_no_suite_has_needs_none(monkeypatch):
    monkeypatch.setitem(
        DATASETS._things, "streets", dataclasses.replace(DATASETS["camvid"], name="streets")
    )
    plan = make_plan(RunOptions(backbones=["random"], tasks=["streets/linear,camvid/linear"]))
    assert plan.suite.name == "own" and {task.name for task in plan.tasks} == {
        "camvid/linear",
        "streets/linear",
    }
    with pytest.raises(UserError, match="suite 'paper' has no task"):
        plan_tasks(find_suite("paper"), ["streets/linear"], {})


def test_tasks_of_two_suites_are_said():
    with pytest.raises(
        UserError,
        match=r"camvid/linear: own; voc/linear: paper, companion, dense\); run those of one suite",
    ):
        make_plan(RunOptions(tasks=["camvid/linear,voc/linear"]))


def test_a_backbone_brings_its_baselines_and_a_group_its_members():
    mini, paper = find_suite("mini"), find_suite("paper")
    assert _chosen(mini, RunOptions())[0] == ["clip", "clip-ft", "cliptex"]
    beside = ["cliptex runs beside its baselines clip, clip-ft (--only: without them)"]
    assert _chosen(mini, RunOptions(backbones=["cliptex"])) == (
        ["clip", "clip-ft", "cliptex"],
        beside,
    )
    assert _chosen(mini, RunOptions(backbones=["cliptex"], only=True))[0] == ["cliptex"]
    assert _chosen(mini, RunOptions(backbones=["cliptex"], weights=Path("w.safetensors")))[0] == [
        "cliptex"
    ]
    assert _chosen(mini, RunOptions(backbones=["cliptex,clip-ft"]))[0] == ["cliptex", "clip-ft"]
    assert _chosen(paper, RunOptions(backbones=["cliptex"]))[0] == ["cliptex"]
    ablation, said = _chosen(mini, RunOptions(backbones=["ablation"], only=True))
    assert ablation[0] == "clip-ft" and ablation[-1] == "cliptex" and len(ablation) == 8
    assert said == [f"ablation stands for {', '.join(ablation)}"]


def test_the_last_seed_is_one_that_every_library_takes():
    with pytest.raises(UserError, match="the last seed must be at most 2147483647"):
        make_plan(RunOptions(seed=2**31 - 1, seeds=2))
    assert make_plan(RunOptions(seed=2**31 - 2, seeds=2)).seeds[-1] == 2**31 - 1


def test_variants_of_a_task():
    """A share of train or a number of shots is a task of its own, which a unit of work is told by
    its name alone."""
    wanted = {"train_share": "0.01,0.1,1", "shots": "1, 10"}
    names = ["imagefolder/linear", "imagefolder/few-shot", "imagefolder/knn:0.5"]
    found = {task.name: task for task in plan_tasks(find_suite("own"), names, wanted)}
    assert list(found) == [
        "imagefolder/linear:0.01",
        "imagefolder/linear:0.1",
        "imagefolder/linear",
        "imagefolder/few-shot:1",
        "imagefolder/few-shot",
        "imagefolder/knn:0.5",
    ]
    assert (
        found["imagefolder/few-shot:1"].settings.shots == 1
        and found["imagefolder/linear:0.1"].train_share == 0.1
    )
    assert {task.name: task for task in plan_tasks(find_suite("own"), list(found), {})} == found
    data = PreparedDataset(DATASETS["imagefolder"], Path("/"), {}, fingerprint="a")
    plain = plan_tasks(find_suite("own"), ["imagefolder/linear"], {})[0].protocol(data)
    assert found["imagefolder/linear"].protocol(data) == plain and "train_share" not in plain
    assert found["imagefolder/linear:0.1"].protocol(data)["train_share"] == 0.1


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("imagefolder/linear:0", {}, "train_share=0 is not possible"),
        ("imagefolder/linear", {"train_share": "nan"}, "finite number"),
        ("imagefolder/linear:much", {}, "valid number"),
        ("imagefolder/few-shot:0.5", {}, "valid integer"),
        ("imagefolder/zero-shot:0.5", {}, "imagefolder/zero-shot trains on nothing"),
        ("imagefolder/zero-shot", {"train_share": "0.5"}, "no chosen task has this setting"),
    ],
)
def test_variants_that_cannot_be(task, changes, message):
    with pytest.raises(UserError, match=message):
        plan_tasks(find_suite("own"), [task], changes)


def test_probes_without_training_lend_their_settings_to_none_that_train():
    linear, dpt, knn = plan_tasks(
        find_suite("mini"), ["mini-seg/linear", "mini-seg/dpt", "mini-seg/patch-knn"], {}
    )
    assert dpt.settings == linear.settings and (knn.settings.size, knn.settings.feature_stride) == (
        64,
        8,
    )
