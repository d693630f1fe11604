"""Published protocols: what is built for each kind of backbone is what its table says."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import backbones.named  # noqa: F401  registers the families of names
import probes.catalog  # noqa: F401
from cliptex_common.errors import UserError
from cliptex_common.settings import field_names, with_changes
from probes.protocols.base import (
    OWN,
    PROTOCOLS,
    check_required,
    find_preset,
    preset_deviations,
)
from probes.registry import PROBES, find_task
from probes.runner.bridge import FrozenBackbone
from tests.probes import tiny_coco, tiny_dense
from tests.probes.tiny_mmlab import context

# isort: split
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

BACKBONES = {"plain ViT": "random/timm/vit_tiny_patch16_224", "CNN": "random/timm/resnet18"}


def built(task, settings, backbone, data, folder) -> Config:
    """The config of a probe on a kind of backbone, as plain values."""
    text = find_task(task)[1].config(context(folder, data, settings, BACKBONES[backbone]))
    return Config.fromstring(text, ".py")


def check_rates(config: Config, shares: dict[int, float], **tolerance: float) -> None:
    """Compare the learning rate of some iterations with shares of the highest."""
    peak = config.optim_wrapper.optimizer.lr
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    schedulers = [
        PARAM_SCHEDULERS.build({**part, "optimizer": OptimWrapper(optimizer)})
        for part in config.param_scheduler
    ]
    rates = []
    for _ in range(config.train_cfg.max_iters):
        rates.append(optimizer.param_groups[0]["lr"] / peak)
        for scheduler in schedulers:
            scheduler.step()
    assert max(rates) == pytest.approx(1.0, abs=1e-3)
    for iteration, share in shares.items():
        assert rates[iteration] == pytest.approx(share, **tolerance), iteration


@pytest.mark.parametrize("backbone", BACKBONES)
def test_mask_rcnn_of_mmdet(backbone, tmp_path):
    spec, probe = find_task("coco/mask-rcnn")
    settings = with_changes(probe.settings_type(), find_preset("mmdet1x", spec, probe).settings)
    data = tiny_coco.prepared(tiny_coco.write(tmp_path / "data"))
    config = built("coco/mask-rcnn", settings, backbone, data, tmp_path / "work")
    length = 12 * 7330
    assert config.train_cfg.max_iters == length and config.train_dataloader.batch_size == 16
    sgd = {"type": "SGD", "lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4}
    assert config.optim_wrapper.to_dict() == {"type": "OptimWrapper", "optimizer": sgd}
    images = config.train_dataloader.dataset.dataset
    assert (images.min_size, images.drop_empty, images.aspect_groups) == (32, True, 16)
    (resize,) = (part for part in images.pipeline if part["type"] == "Resize")
    assert tuple(resize["scale"]) == (1333, 800) and resize["keep_ratio"]
    eight, eleven = 8 * length // 12, 11 * length // 12
    shares = {0: 1e-3, 250: 0.5, 500: 1.0, eight - 9: 1.0, eight + 9: 0.1, eleven + 9: 0.01}
    check_rates(config, shares, rel=5e-3)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda protocol: protocol.name)
def test_every_preset_has_settings_of_its_probe_and_a_source(protocol):
    assert protocol.source
    for preset in protocol.presets:
        probe = PROBES[preset.probe]
        assert set(preset.settings) <= field_names(probe.settings_type) - {"protocol"}
        settings = with_changes(probe.settings_type(), preset.settings)
        without_data = dataclasses.replace(preset, data={})
        assert preset_deviations(without_data, settings, tiny_dense.SPECS["depth"]) == []


def test_deviations_are_listed_and_a_task_without_a_preset_is_refused():
    spec, probe = find_task("nyu-depth/linear")
    preset = find_preset("dinov3", spec, probe)
    settings = with_changes(probe.settings_type(), {**preset.settings, "max_iters": 100})
    assert preset_deviations(preset, settings, spec) == [
        "max_iters=100 instead of 38400",
        "split=official 795/654 instead of 24k/654",
    ]
    with pytest.raises(UserError, match=r"it applies to ade20k/linear, nyu-depth/linear$"):
        find_preset("dinov3", *find_task("voc/linear"))
    with pytest.raises(UserError, match="no protocol 'dinov4'; did you mean dinov3"):
        find_preset("dinov4", spec, probe)
    assert find_preset("own", spec, probe).settings == {} and not OWN.presets


@pytest.mark.parametrize("name", ["random/timm/vit_tiny_patch16_224", "random/open_clip/ViT-B-32"])
def test_the_last_layer_has_passed_the_backbones_own_final_norm(name):
    frozen = FrozenBackbone(name=name, seed=0, out_indices=[-1])
    images, model = torch.randn(1, 3, 224, 224), frozen.backbone.model
    (features,) = frozen(images)
    if "timm" in name:
        tokens = model.forward_features(images)
    else:
        visual = model.visual
        tokens = visual.ln_post(visual.transformer(visual._embeds(images)))
    patches = features.flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches, tokens[:, 1:], rtol=1e-4, atol=1e-4)


def test_a_copy_without_the_list_that_a_preset_trains_on_is_refused(tmp_path) -> None:
    spec, probe = find_task("voc/deeplabv3")
    with pytest.raises(UserError, match="needs voc with train_list=trainaug, and this copy has"):
        check_required("mmseg", spec.at(tmp_path), probe)
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "trainaug.txt").touch()
    (tmp_path / "SegmentationClassAug").mkdir()
    check_required("mmseg", spec.at(tmp_path), probe)
    check_required("own", spec, probe)
