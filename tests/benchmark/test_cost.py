"""What a backbone costs: counted right, at the protocol's resolution, measured once a machine."""

from __future__ import annotations

import pytest
import torch

import backbones
from backbones.cliptex.cost import count_flops
from benchmark.probing import cost as efficiency
from probes.dense.settings import SegmentationSettings
from probes.detection.settings import MaskRCNNSettings
from probes.image_level.settings import LinearSettings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vit():
    return backbones.create("random/timm/test_vit")


def test_resolutions_are_those_of_the_protocols(vit):
    def seen(settings):
        return efficiency.input_resolution(settings, vit)

    assert vit.divisor == 16
    assert seen(SegmentationSettings(size=100)) == ((112, 112), "fp32")
    assert seen(SegmentationSettings(size=100, crop=(32, 60), precision="bf16")) == (
        (32, 64),
        "bf16",
    )
    assert seen(MaskRCNNSettings(short_side=60, long_side=100)) == ((64, 112), "fp32")
    assert seen(LinearSettings()) == (tuple(vit.data.size), "fp32")


def test_measured_once_a_machine(vit, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path))
    settings = [SegmentationSettings(size=32), SegmentationSettings(size=32, lr=1.0)]
    costs = efficiency.backbone_costs(vit, settings, CPU)
    assert costs["parameters"] == sum(each.numel() for each in vit.model.state_dict().values())
    with torch.inference_mode():
        assert costs["32x32-fp32/flops_per_image"] == count_flops(
            lambda: vit(torch.zeros(1, 3, 32, 32))
        )
    assert costs["flops_per_image"] > 20 * costs["32x32-fp32/flops_per_image"]  # 160 px
    assert costs["images_per_second"] > 0 and costs["memory_mb"] > 10
    monkeypatch.setattr(efficiency, "_measure", lambda *_: pytest.fail("measured again"))
    second = backbones.create("random/timm/test_vit", seed=5)  # other weights cost the same
    assert efficiency.backbone_costs(second, settings, CPU) == costs
    monkeypatch.setattr(efficiency, "device_kind", lambda device: "another")
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        efficiency.backbone_costs(vit, settings, CPU)


def test_what_cannot_be_measured_is_left_out(vit, tmp_path, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path))
    monkeypatch.setattr(efficiency, "_measure", fail)
    costs = efficiency.backbone_costs(vit, [SegmentationSettings(size=32)], CPU)
    assert costs.keys() == {"parameters"} and not (tmp_path / "efficiency").exists()
