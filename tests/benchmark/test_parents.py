"""The parent run of a backbone: taken up again by another command, it forgets nothing and counts
nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import benchmark.catalog  # noqa: F401
from benchmark.__main__ import main
from benchmark.suites.registry import MadeBackbone, Suite, SuiteArtifacts, register_suite
from reports.mlflow.client import Client
from tests.benchmark.other_package import registries
from tests.probes.datasets.make import make_camvid, make_imagefolder

FAST = ["--data-root", ".", "--num-workers", "0", "--device", "cpu", "--json", "out.json"]


def test_another_task_joins_the_run_and_nothing_of_the_first_is_lost(tmp_path, monkeypatch):
    async def artifacts(stages, names, seeds):
        async def make():
            return MadeBackbone(
                {"name": "random", "seed": 0}, run="abc", cost={"train_seconds": 5.0}
            )

        return SuiteArtifacts(makes={("random", 0): make})

    make_camvid(tmp_path / "camvid", n_train=4, n_val=3)
    make_imagefolder(tmp_path / "imagefolder", n_train=8, n_val=4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))
    settings = {"max_iters": 2, "batch_size": 2, "size": 32}
    tasks = {"camvid/linear": settings, "imagefolder/linear": {"epochs": 2}}
    with registries():
        register_suite(Suite("pair", "for tests", tasks, ("random",), artifacts=artifacts))
        ids = []
        for task in tasks:
            assert main(["run", "--suite", "pair", "--task", task, *FAST]) == 0
            ids.append(json.loads(Path("out.json").read_text())["mlflow"]["run_ids"]["random"])
    assert ids[0] == ids[1]
    client = Client(f"sqlite:///{tmp_path}/mlflow.db")
    parent = client.get_run(ids[0])
    assert {"camvid/linear/mIoU", "imagefolder/linear/top1"} <= set(parent.data.metrics)
    for cost in ("cost/train_seconds", "cost/parameters", "cost/flops_per_image"):
        assert len(client.get_metric_history(ids[0], cost)) == 1
    assert (
        parent.data.metrics["cost/parameters"] > 3e6
        and parent.data.metrics["cost/images_per_second"] > 0
    )
    assert (
        parent.data.metrics["cost/32x32-fp32/flops_per_image"]
        < parent.data.metrics["cost/flops_per_image"]
    )
    about = json.loads(
        Path(client.download_artifacts(ids[0], "run.json", str(tmp_path))).read_text()
    )
    assert list(about["tasks"]) == list(tasks)
    assert {name: about_task["task"] for name, about_task in about["tasks"].items()} == {
        name: name for name in tasks
    }
    note = parent.data.tags["mlflow.note.content"]
    assert "| camvid/linear | mIoU " in note and "| imagefolder/linear | top1 " in note
    assert {"protocol.camvid.linear", "protocol.imagefolder.linear"} <= set(parent.data.tags)
