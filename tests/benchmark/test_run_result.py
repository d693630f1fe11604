"""The average of a suite is over all its tasks, or there is none; tasks without data are named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmark.options import RunOptions, run_options
from benchmark.plan import make_plan
from benchmark.result import as_json, show
from benchmark.run import run
from benchmark.suites import SUITES, Suite, register_suite
from cliptex_common.errors import UserError
from reports.report import ReportRequest, build_report
from tests.probes.datasets.make import make_wds

pytestmark = pytest.mark.integration

NAMES = ["cifar10/few-shot", "vtab-pets/few-shot", "vtab-dtd/few-shot"]


def test_tasks_of_zeroshot38_that_have_data_run(tmp_path):
    for name in ("cifar10", "vtab-pets_test"):
        make_wds(tmp_path / f"wds_{name}", 0, 2)
    plan = make_plan(RunOptions(backbones=["random/clip"], suite="zeroshot38", data_root=tmp_path))
    assert [task.name for task in plan.tasks] == ["cifar10/zero-shot", "vtab-pets/zero-shot"]
    assert len(plan.absent) == 36 and "imagenet1k/zero-shot" in {task.name for task in plan.absent}
    with pytest.raises(UserError, match=r"none of its 38 datasets is in .*wds_vtab-caltech101"):
        make_plan(RunOptions(suite="zeroshot38", data_root=tmp_path / "empty"))
    with pytest.raises(UserError, match="no dataset 'cifar11'"):
        run_options(RunOptions(suite="zeroshot38"), data={"cifar11": tmp_path})


def test_the_average_is_over_all_tasks(tmp_path, monkeypatch, capsys, request):
    """A suite of three tasks, one of which has no data at first."""
    monkeypatch.chdir(tmp_path)
    tasks = {task: {"shots": 2} for task in NAMES}
    title = "average of three"
    suite = Suite("three", "for tests", tasks, ("random",), skips_absent_data=True, average=title)
    request.addfinalizer(lambda: SUITES.pop("three", None))
    register_suite(suite)
    for name in ("cifar10", "vtab-pets"):
        make_wds(tmp_path / f"data/wds_{name}", 3, 2, size=(32, 32))
    options = RunOptions(
        suite="three",
        overrides={"size": "32"},
        data_root=tmp_path / "data",
        device="cpu",
        num_workers=0,
    )
    result = run(options)
    show(result)
    shown = capsys.readouterr().out
    assert "1 of 3 tasks of three have no data: wds_vtab-dtd" in shown
    assert "missing · vtab-dtd/few-shot: no data" in shown and title not in shown
    document = as_json(result)
    assert document["average"] == {
        "title": title,
        "tasks": 3,
        "backbones": {"random": None},
        "absent": ["vtab-dtd/few-shot"],
    }
    assert build_report(ReportRequest(["three"])).averages == []
    make_wds(tmp_path / "data/wds_vtab-dtd", 3, 2, size=(32, 32))
    result = run(options)
    average = result.averages("random", 0)[""]["average"]
    main_metrics = [result.tasks[i].main_metric for i in range(3)]
    values = [cell.metrics[main] for cell, main in zip(result.cells, main_metrics, strict=True)]
    assert average == pytest.approx(sum(values) / 3)
    show(result)
    assert f"average of three · random · seed 0: {average:.2f}" in capsys.readouterr().out
    (line,) = build_report(ReportRequest(["three"])).averages
    assert line.startswith(f"average of three: random {average:.2f} [")
    second = run(replace(options, backbones=["efficientnet-lite0"]))
    lines = build_report(ReportRequest(["three"], baseline="random")).averages
    gain = f"{second.averages('efficientnet-lite0', 0)['']['average'] - average:+.2f} [".replace(
        "-", "−"
    )
    assert len(lines) == 2 and gain in lines[1] and " over random" in lines[1]
