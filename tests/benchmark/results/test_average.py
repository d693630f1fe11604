"""The average of a suite is over all its tasks, or it is not called so; what has no data is
named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmark.execution import ExecutorSpec
from benchmark.options import RunOptions
from benchmark.plan import make_plan
from benchmark.records import Cell
from benchmark.results.average import Average
from benchmark.results.outcome import as_json
from benchmark.results.table import show
from benchmark.run import run
from benchmark.suites.registry import SUITES, Suite, register_suite
from common.errors import UserError
from reports.report import Request, build
from tests.probes.datasets.make import make_wds

NAMES = ["cifar10/few-shot", "vtab-pets/few-shot", "vtab-dtd/few-shot"]


def cells(*values: float, name: str = "clip") -> list[Cell]:
    metrics = ("top1", "mean_per_class_recall", "top1")
    rows = zip(NAMES, metrics, values, strict=False)
    return [
        Cell(name, task, 0, "done", {metric: value, "other": 0.0}) for task, metric, value in rows
    ]


def test_the_average_is_over_all_tasks():
    main_metrics = dict(zip(NAMES, ("top1", "mean_per_class_recall", "top1"), strict=True))
    average = Average("average of the 3 tasks", NAMES, main_metrics, partial=["vtab-dtd/few-shot"])
    assert average.mean(cells(10, 20, 60)) == 30
    assert average.lines(cells(10, 20, 60)) == [
        "average of the 3 tasks · clip · seed 0: 30.00 (1 of them on partial data)"
    ]
    assert average.mean(cells(10, 20)) is None
    assert average.mean(cells(10, 20, float("nan"))) is None
    assert average.lines(cells(10, 20)) == [
        "mean of 2 of 3 tasks (not the average) · clip · seed 0: 15.00"
    ]
    assert average.lines([]) == []


def test_of_zeroshot38_what_is_there_runs(tmp_path):
    for name in ("cifar10", "vtab-pets_test"):
        make_wds(tmp_path / f"wds_{name}", 0, 2)
    plan = make_plan(RunOptions(backbones=["random/clip"], suite="zeroshot38", data_root=tmp_path))
    assert [task.name for task in plan.tasks] == ["cifar10/zero-shot", "vtab-pets/zero-shot"]
    assert len(plan.absent) == 36 and "imagenet1k/zero-shot" in {task.name for task in plan.absent}
    with pytest.raises(UserError, match=r"none of its 38 datasets is in .*wds_vtab-caltech101"):
        make_plan(RunOptions(suite="zeroshot38", data_root=tmp_path / "empty"))
    with pytest.raises(UserError, match="no dataset 'cifar11'"):
        make_plan(RunOptions(suite="zeroshot38", data_root=tmp_path, data={"cifar11": tmp_path}))


def test_a_run_says_it(tmp_path, monkeypatch, capsys, request):
    """A suite of three tasks, one of which has no data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tasks = {task: {"shots": 2} for task in NAMES}
    title = "average of three"
    suite = Suite("three", "for tests", tasks, ("random",), skips_absent_data=True, average=title)
    request.addfinalizer(lambda: SUITES.unregister("three"))
    register_suite(suite)
    for name in ("cifar10", "vtab-pets"):
        make_wds(tmp_path / f"data/wds_{name}", 3, 2, size=(32, 32))
    options = RunOptions(
        suite="three",
        overrides=["size=32"],
        data_root=tmp_path / "data",
        executor=ExecutorSpec(device="cpu", num_workers=0),
    )
    result = run(options)
    show(result.tasks, result.cells, result.average)
    shown = capsys.readouterr().out
    assert "1 of 3 tasks of three have no data: wds_vtab-dtd" in shown
    assert "mean of 2 of 3 tasks (not the average) · random · seed 0:" in shown
    assert (
        "missing · no data of 1 tasks: vtab-dtd/few-shot" in shown
        and "average of three" not in shown
    )
    document = as_json(result)
    assert document["average"] == {
        "title": "average of three",
        "tasks": 3,
        "backbones": {"random": None},
        "absent": ["vtab-dtd/few-shot"],
    }
    assert build(Request(["three"])).averages == []
    make_wds(tmp_path / "data/wds_vtab-dtd", 3, 2, size=(32, 32))
    result = run(options)
    average = result.average.mean(result.cells)
    (line,) = build(Request(["three"])).averages
    assert line.startswith(f"average of three: random {average:.2f} [")
    second = run(replace(options, backbones=["efficientnet-lite0"]))
    lines = build(Request(["three"], baseline="random")).averages
    gain = second.average.mean(second.cells) - average
    assert (
        len(lines) == 2
        and f"{gain:+.2f} [".replace("-", "−") in lines[1]
        and " over random" in lines[1]
    )
