"""The parent run of a backbone: taken up again by another command, it forgets nothing and counts
nothing twice."""

from __future__ import annotations

from collections import Counter

import pytest

import benchmark.catalog  # noqa: F401
from benchmark.suites import BackboneSource
from benchmark.tasks import PlannedTask, describe_backbone
from tests.benchmark.fake_pipeline import register_trained
from tests.benchmark.other_package import registries
from tests.benchmark.run_command import (
    read_json,
    run_command,
    runs_of,
    store,
    with_record_tags,
)

pytestmark = pytest.mark.integration

FAST = "--data-root . --num-workers 0 --device cpu --json out.json --experiment checks"


def test_another_task_joins_the_run_and_nothing_of_the_first_is_lost(camvid, imagefolder):
    async def make():
        return BackboneSource({"name": "random", "seed": 0}, "abc", cost={"train_seconds": 5.0})

    settings = {"max_iters": 2, "batch_size": 2, "size": 32}
    tasks = {"camvid/linear": settings, "imagefolder/linear": {"epochs": 2, "size": 32}}
    suite_tasks = {**tasks, "camvid/pspnet": settings}
    ids = set()
    with registries():
        register_trained("pair", suite_tasks, ("random",), {"random": make})
        for task in tasks:
            assert run_command(f"run --suite pair --task {task} {FAST}") == 0
            ids.add(read_json("out.json")["mlflow"]["run_ids"]["random"])
        # the same settings, but another parent: its cell is logged in the first parent as well
        assert run_command(f"run --suite pair --task camvid/pspnet --set max_iters=2 {FAST}") == 0
        other = read_json("out.json")["mlflow"]["run_ids"]["random"]
        assert run_command(f"run --suite pair --task camvid/pspnet {FAST}") == 0
        ids.add(read_json("out.json")["mlflow"]["run_ids"]["random"])
    (run_id,) = ids
    assert other != run_id
    client = store()
    data = with_record_tags(client.get_run(run_id)).data
    main_metrics = {"camvid/linear/mIoU", "imagefolder/linear/top1", "camvid/pspnet/mIoU"}
    assert main_metrics <= set(data.metrics)
    children = [run for run in runs_of("checks") if "task" in run.data.tags]
    assert {run.data.tags["suite"] for run in children} == {data.tags["suite"]} == {"pair"}
    for cost in ("cost/train_seconds", "cost/parameters", "cost/flops_per_image"):
        assert len(client.get_metric_history(run_id, cost)) == 1
    assert data.metrics["cost/parameters"] > 3e6 and data.metrics["cost/images_per_second"] > 0
    assert {"protocol.camvid.linear", "protocol.imagefolder.linear"} <= set(data.tags)


@pytest.mark.parametrize(("backbone", "described"), [("efficientnet-lite0", 1), ("random", 2)])
def test_conditions_are_computed_once_and_each_weights_are_described_once(
    imagefolder, monkeypatch, backbone, described
):
    """Of two seeds, which only random weights follow."""
    counts, conditions = Counter(), PlannedTask.conditions

    def count_conditions(*arguments):
        counts["conditions"] += 1
        return conditions(*arguments)

    def count_described(arguments):
        counts["described"] += 1
        return describe_backbone(arguments)

    monkeypatch.setattr(PlannedTask, "conditions", count_conditions)
    for module in ("plan", "run"):
        monkeypatch.setattr(f"benchmark.{module}.describe_backbone", count_described)
    words = f"run --suite own --task imagefolder/knn --set size=32 --only --jobs 1 --seeds 2 {FAST}"
    assert run_command(f"{words} --backbone {backbone}") == 0
    assert counts == {"conditions": 1, "described": described}
