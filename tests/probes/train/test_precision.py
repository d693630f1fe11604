"""On a GPU heads compute in bf16 and lose in fp32: here on a CPU."""

import pytest
import torch

from probes.dense.config import dense_config
from probes.registry import PROBES
from probes.train.loop import run_training
from tests.probes import tiny_dense
from tests.probes.tiny_mmlab import context

pytestmark = pytest.mark.integration

SMALL = {
    "size": 48,
    "batch_size": 4,
    "channels": 8,
    "scale_range": (1.0, 1.0),
    "warmup": 0.0,
    "max_iters": 20,
    "lr": 0.03,
}


@pytest.fixture
def bf16(monkeypatch):
    """Whether heads compute in bf16: a list of one."""
    wanted = [False]
    monkeypatch.setattr("probes.train.loop.prefers_bf16", lambda device: wanted[0])
    return wanted


@pytest.mark.parametrize(
    ("name", "metric", "tolerance"),
    [
        ("segmentation/pspnet", "mIoU", 0.1),
        ("depth/linear", "abs_rel", 0.2),
        ("normals/linear", "normal_mean", 0.1),
    ],
)
def test_heads_in_bf16_learn_what_they_learn_in_fp32(tmp_path, bf16, name, metric, tolerance):
    probe, results, losses = PROBES[name], [], []
    data = tiny_dense.make(tmp_path / "data", probe.kind)
    for bf16[0] in (False, True):
        task = context(tmp_path / f"{bf16[0]}", data, probe.settings_type(**SMALL))
        results.append(probe.run(task))
        losses.append(task.log.curve("train/loss"))
    assert losses[0] != losses[1], "bf16 was used"
    exact, rounded = (result.metrics[metric] for result in results)
    assert rounded == pytest.approx(exact, rel=tolerance)
    weights = results[1].head.tensors.values()
    assert torch.bfloat16 not in {tensor.dtype for tensor in weights}


def test_a_state_of_another_precision_is_not_resumed(tmp_path, bf16):
    data, probe = tiny_dense.make(tmp_path / "data", "depth"), PROBES["depth/linear"]
    config = dense_config(probe, task := context(tmp_path, data, probe.settings_type(**SMALL)))
    assert run_training(config, task, "toy").resumed_at == 0
    assert run_training(config, task, "toy").resumed_at == 20
    bf16[0] = True
    assert run_training(config, task, "toy").resumed_at == 0
