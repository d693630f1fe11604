"""The suite ``vtab``: 1,000 training images, tiers apart, averages by groups; a protocol that tunes
the backbone names the tier."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from benchmark.options import RunOptions
from benchmark.plan import make_plan
from benchmark.result import as_json, show
from benchmark.run import run
from benchmark.suites import SUITES, choose_suite, register_suite, settings_in
from benchmark.tasks import plan_tasks
from cliptex_common.errors import UserError
from reports.report import ReportRequest, build_report
from tests.probes.datasets.make import make_wds

GROUPS = {"natural": 7, "specialised": 4, "structured": 8}  # tasks, Zhai et al. 2019, section 3.1


def test_its_tiers_are_tasks_of_their_own_and_its_folders_are_named(tmp_path):
    suite = SUITES.find("vtab")
    assert {group: len(names) for group, names in suite.groups.items()} == GROUPS
    names = {task.name.partition("/")[2] for task in plan_tasks(suite, [], {})}
    assert names == {"linear", "linear:tune=all", "few-shot"}
    with pytest.raises(UserError, match=r"none of its 19 datasets is in .*wds_vtab-caltech101"):
        make_plan(RunOptions(suite="vtab", data_root=tmp_path))


def test_a_part_of_the_images_is_read_only_where_the_suite_is_named():
    suite = choose_suite(["vtab-dtd/linear"])
    assert suite.name == "zeroshot38" and settings_in(suite, "vtab-dtd/linear") == {}


@pytest.mark.parametrize(
    ("changes", "name"),
    [({}, ":tune=all"), ({"tune": "lora:4"}, ":tune=lora:4"), ({"tune": "frozen"}, "")],
)
def test_a_protocol_that_tunes_names_the_tier(changes, name):
    suite = SUITES.find("paper")
    (task,) = plan_tasks(suite, ["imagenet/linear"], {"protocol": "mae", **changes})
    assert task.name == f"imagenet/linear{name}"
    assert task.settings.layer_decay == 0.65
    assert task.settings.backbone_rates == ((2e-3,) if name else ()), "frozen has none"


@pytest.mark.integration
def test_its_average_is_the_mean_of_groups(tmp_path, monkeypatch, capsys, request):
    monkeypatch.chdir(tmp_path)
    suite = replace(SUITES.find("vtab"), name="small-vtab", train_images=9)
    request.addfinalizer(lambda: SUITES.pop("small-vtab", None))
    register_suite(suite)
    names = [name for datasets in suite.groups.values() for name in datasets]
    for number, name in enumerate(names):
        classes = [f"grey {index}" for index in range(2 + number % 4)]  # by chance
        make_wds(tmp_path / f"data/wds_{name}", 6, 3, size=(32, 32), classes=classes)
    options = RunOptions(
        backbones=["random"],
        suite="small-vtab",
        tasks=[f"{name}/few-shot" for name in names],
        overrides={"size": "32"},
        data_root=tmp_path / "data",
        device="cpu",
        num_workers=0,
    )
    result = run(options)
    top1 = [cell.metrics["top1"] for cell in result.cells]
    parts = np.split(top1, np.cumsum([*GROUPS.values()])[:-1])
    means = dict(zip(GROUPS, map(np.mean, parts), strict=True))
    expected = {"few-shot": {"average": np.mean([*means.values()]), **means}}
    assert expected["few-shot"]["average"] != pytest.approx(np.mean(top1))
    averages = as_json(result)["average"]["backbones"]["random"]
    assert averages.keys() == expected.keys()
    assert averages["few-shot"] == pytest.approx(expected["few-shot"])
    show(result)
    mean = f"{averages['few-shot']['average']:.2f}"
    assert f"VTAB-1k · few-shot · random · seed 0: {mean} (natural " in capsys.readouterr().out
    (line,) = build_report(ReportRequest(["small-vtab"])).averages
    assert line.startswith(f"VTAB-1k of few-shot: random {mean} [")
    assert f"specialised {means['specialised']:.2f}, structured" in line
    data = asyncio.run(make_plan(options).with_data(0)).data.values()
    assert {len(each.samples["train"]) for each in data} == {9}
