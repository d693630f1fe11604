"""A training on an accelerator, whose dropout draws from the accelerator's generator, is the same
with probes inside it."""

from __future__ import annotations

import torch

from tests.accelerator.cases.loops import in_loop_probe
from tests.benchmark.test_in_loop import read, train


def test_a_training_is_the_same_with_it(device, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def on_device(model):
        model.register_forward_pre_hook(lambda _, inputs: tuple(each.to(device) for each in inputs))
        return model.to(device)

    probe = in_loop_probe(tmp_path, device, every=3)
    plain, probed = train(6, None, on_device), train(6, probe, on_device)
    assert {each.device.type for each in probed.values()} == {device.type}
    assert all(torch.equal(plain[name], probed[name]) for name in plain)
    assert {row["step"] for row in read()} == {"3", "6"}
