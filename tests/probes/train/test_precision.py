"""On a GPU heads compute in bf16 and lose in fp32: here on a CPU."""

from __future__ import annotations

import pytest

import probes.dense.probe  # noqa: F401 – registers the probes
from probes.dense.config import dense_config
from probes.registry import PROBES
from probes.train import loop as head_trainer
from probes.train.loop import run_training
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
    check_and_save = head_trainer.HeadTrainer.check_and_save

    def record_dtypes(self, saves: bool) -> None:
        seen.update(
            str(value.dtype) for _, _, values in self._unchecked for value in values.values()
        )
        seen.add(f"weights {next(self.model.parameters()).dtype}")
        check_and_save(self, saves)

    monkeypatch.setattr(head_trainer.HeadTrainer, "check_and_save", record_dtypes)
    for autocast in (False, True):
        monkeypatch.setattr(
            head_trainer, "prefers_bf16", lambda device, autocast=autocast: autocast
        )
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
    monkeypatch.setattr(head_trainer, "prefers_bf16", lambda device: True)
    assert run_training(config, task, "toy").resumed_at == 0
