"""``list``: a line for each name, all or those with a word."""

from __future__ import annotations

import json

import pytest

from probes.registry import DATASETS
from tests.benchmark.run_command import run_command
from tests.probes.datasets.make import make_wds


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("backbones", "cliptex"),
        ("tasks", "coco/mask-rcnn"),
        ("suites", "paper"),
        ("datasets", "nyu-depth"),
        ("probes", "pspnet"),
        ("protocols", "dinov3"),
        ("recipes", "cliptex-seg"),
        ("experts", "nll-angmf"),
        ("executors", "slurm"),
    ],
)
def test_list(kind, name, capsys):
    assert run_command(f"list {kind} {name}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(name in line for line in lines)
    assert run_command(f"list {kind} {name} --json --limit 1") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert set(row) == {"name", "about"} and lines[0].startswith(row["name"])


def test_settings_of_a_task_have_default_type_range_and_meaning(capsys):
    assert run_command("list settings camvid/linear --json") == 0
    rows = {row["name"]: row["about"] for row in json.loads(capsys.readouterr().out)}
    assert rows["lr"].endswith("(number > 0) learning rate of the optimizer.")
    assert "(adamw or sgd) " in rows["optimizer"]
    assert rows["flip"].startswith("0.5 (number ≥ 0 ≤ 1) probability")
    assert not [name for name, about in rows.items() if about.endswith(") ")]
    assert rows["crop"].startswith("none (none or list of integer ≥ 16) ")
    assert run_command("list settings") == 2


@pytest.mark.parametrize("subject", ["cliptex", "unet-seg", "imagenet/linear"])
def test_every_setting_of_a_recipe_or_an_expert_has_a_meaning_of_its_own(subject, capsys):
    assert run_command(f"list settings {subject} --json") == 0
    about = {row["name"]: row["about"] for row in json.loads(capsys.readouterr().out)}
    meanings = {name: text.partition(") ")[2] for name, text in about.items() if name != "beta2"}
    assert all(meanings.values()) and len({*meanings.values()}) == len(meanings)


def test_an_expert_that_is_not_trained_here_has_no_settings(capsys):
    assert run_command("list settings nll-angmf") == 2
    assert "is not trained here and has no settings" in capsys.readouterr().err


def test_webdatasets_of_a_folder_are_listed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(DATASETS, "data", dict(DATASETS.data))
    make_wds(tmp_path / "wds_my-set")
    assert run_command(f"list tasks my-set/knn --data-root {tmp_path}") == 0
    assert "my-set/knn" in capsys.readouterr().out


def test_protocols_show_their_source_and_settings(capsys):
    assert run_command("list protocols") == 0
    output = capsys.readouterr().out
    for text in ("facebookresearch/dinov3", "slide=512,341", "onedl-mmsegmentation"):
        assert text in output
    assert "radio, not here" in output


def test_every_task_names_the_suites_that_have_it(capsys):
    assert run_command("list tasks") == 0
    output = capsys.readouterr().out
    assert "[]" not in output
