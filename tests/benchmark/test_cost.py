"""What a backbone costs: counted right, measured once for an architecture and kind of device."""

from __future__ import annotations

import pytest
import torch

import backbones
from benchmark import cell
from cliptex_common.device import count_flops


def test_measured_once_for_an_architecture_and_device(own_home, monkeypatch):
    cpu = torch.device("cpu")
    vit = backbones.create("random/timm/test_vit")
    costs = cell.backbone_costs(vit, cpu)
    assert costs["parameters"] == sum(each.numel() for each in vit.model.state_dict().values())
    images = torch.zeros(1, 3, *vit.data.size)
    with torch.inference_mode():
        assert costs["flops_per_image"] == count_flops(lambda: vit(images))
    assert costs["images_per_second"] > 0 and costs["memory_mb"] > 10
    assert costs["latency_ms"] == pytest.approx(1000 / costs["images_per_second"])  # on a CPU
    monkeypatch.setattr(cell, "_measure", lambda *_: pytest.fail("measured again"))
    second = backbones.create("random/timm/test_vit", seed=5)  # other weights cost the same
    assert cell.backbone_costs(second, cpu) == costs
    monkeypatch.setattr(cell, "device_name", lambda device: "another")
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        cell.backbone_costs(vit, cpu)


def test_unknown_where_a_batch_does_not_fit(own_home, monkeypatch):

    def measure(*_):
        raise error

    monkeypatch.setattr(cell, "_measure", measure)
    vit, cpu = backbones.create("random/timm/test_vit"), torch.device("cpu")
    error = RuntimeError("MPS backend out of memory")
    assert cell.backbone_costs(vit, cpu) == {}
    error = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        cell.backbone_costs(vit, cpu)
