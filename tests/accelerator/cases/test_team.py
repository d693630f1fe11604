"""A batch whose parts are computed on an accelerator and on another device gives the weights of
one."""

from __future__ import annotations

from dataclasses import replace

import torch

from probes import team
from probes.dense.config import dense_config
from probes.train import loop
from tests.probes import tiny_dense
from tests.probes.train import test_tuned as dense


def test_parts_on_two_devices(tmp_path, pretended, monkeypatch):
    monkeypatch.setattr(loop, "prefers_bf16", lambda _: False)  # which a CPU does not
    data = tiny_dense.make(tmp_path / "data", "segmentation", train=8)
    weights = []
    for name, devices in {"one": [pretended], "two": [pretended, torch.device("cpu")]}.items():
        monkeypatch.setattr(team, "devices_for", lambda _, devices=devices: devices)
        options = {"accumulate": 2, "max_iters": 2, "drop_path": 0.0, "tune_rates": (1e-3,)}
        options["linear_norm"] = False  # whose bias before has no gradient but rounding
        probe, task = dense.prepare(tmp_path / name, data, "all", **options)
        task = replace(task, device=pretended, backbone=task.backbone.to(pretended))
        weights.append(loop.run_training(dense_config(probe, task), task, "toy").model.state_dict())
    one, two = ({name: each.cpu() for name, each in state.items()} for state in weights)
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
