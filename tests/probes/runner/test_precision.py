"""On a GPU heads compute in bf16 and lose in fp32, and what is loaded lies in pinned memory; here
what of it a CPU can show."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import probes.dense.probe  # noqa: F401 – registers the probes
from cliptex_common.device import current_device
from probes.base import TaskResult
from probes.dense.config import dense_config
from probes.registry import PROBES
from probes.runner import member
from probes.runner.training import run_training
from tests.probes import tiny_dense
from tests.probes.tiny_mmlab import context

pytestmark = pytest.mark.integration

MAIN = {"segmentation": ("mIoU", 0.1), "depth": ("abs_rel", 0.2), "normals": ("normal_mean", 0.1)}
SMALL = {
    "size": 48,
    "batch_size": 4,
    "channels": 8,
    "scale_range": (1.0, 1.0),
    "warmup": 0.0,
    "max_iters": 20,
    "lr": 0.03,
}


@pytest.mark.parametrize("kind", MAIN)
@pytest.mark.parametrize("name", ["linear", "pspnet"])
def test_heads_in_bf16_learn_what_they_learn_in_fp32(tmp_path, monkeypatch, kind, name):
    data, metrics, losses, seen = tiny_dense.make(tmp_path / "data", kind), {}, {}, set()
    settle = member.Member.settle

    def record_dtypes(self) -> None:
        seen.update(
            str(value.dtype) for _, _, values in self._unchecked for value in values.values()
        )
        seen.add(f"weights {next(self.model.parameters()).dtype}")
        settle(self)

    monkeypatch.setattr(member.Member, "settle", record_dtypes)
    for autocast in (False, True):
        monkeypatch.setattr(member, "prefers_bf16", lambda device, autocast=autocast: autocast)
        probe = PROBES[f"{kind}/{name}"]
        task = context(tmp_path / f"{autocast}", data, probe.settings_type(**SMALL))
        metrics[autocast] = probe.run(task).metrics
        losses[autocast] = task.log.curve("train/loss")
    main, tolerance = MAIN[kind]
    assert losses[True] != losses[False], "bf16 was used"
    assert metrics[True][main] == pytest.approx(metrics[False][main], rel=tolerance)
    assert seen == {"torch.float32", "weights torch.float32"}


def test_a_state_of_another_precision_is_not_resumed(tmp_path, monkeypatch):
    data, probe = tiny_dense.make(tmp_path / "data", "depth"), PROBES["depth/linear"]
    config = dense_config(probe, task := context(tmp_path, data, probe.settings_type(**SMALL)))
    assert run_training(config, task, "toy").resumed_at == 0
    assert run_training(config, task, "toy").resumed_at == 20
    monkeypatch.setattr(member, "prefers_bf16", lambda device: True)
    assert run_training(config, task, "toy").resumed_at == 0


@pytest.mark.gpu
@pytest.mark.parametrize(
    "change", [{}, {"fixed_crops": 2, "cache": "fp16"}], ids=["uncached", "kept"]
)
def test_a_group_on_a_gpu_scores_what_it_scores_on_a_cpu(tmp_path, change):
    data = tiny_dense.make(tmp_path / "data", "segmentation", train=8, val=4)
    metrics = {}
    for device in (torch.device("cpu"), current_device()):
        tasks = []
        for name in ("linear", "pspnet"):
            probe = PROBES[f"segmentation/{name}"]
            task = context(
                tmp_path / device.type / name,
                data,
                probe.settings_type(**SMALL, **change),
                workers=1,
            )
            backbone = task.backbone.to(device)
            tasks.append((probe, replace(task, device=device, backbone=backbone)))
        results = tasks[0][0].run_group(tasks)
        assert all(isinstance(result, TaskResult) for result in results), results
        metrics[device.type] = [result.metrics["mIoU"] for result in results]
    scores = metrics.pop("cpu")
    assert list(metrics.values()) == [pytest.approx(scores, rel=0.1)]


@pytest.mark.gpu
def test_training_on_a_gpu_waits_for_it_only_to_look(tmp_path, monkeypatch):
    data = tiny_dense.make(tmp_path / "data", "segmentation")
    probe = PROBES["segmentation/linear"]
    task = context(tmp_path / "work", data, probe.settings_type(**{**SMALL, "max_iters": 40}))
    task = replace(task, device=torch.device("cuda"), backbone=task.backbone.cuda())
    step = member.Member.step

    def strict(self, batch) -> None:
        torch.cuda.set_sync_debug_mode("error" if self.iteration > 2 else "default")
        try:
            step(self, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(member.Member, "step", strict)
    assert probe.run(task).metrics["mIoU"] > 0
