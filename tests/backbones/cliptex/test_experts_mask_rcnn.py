"""The ``mask-rcnn`` expert: instances to one map, MMDetection's configs and checkpoints, training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import probes.experts  # noqa: F401  (registers it)
from backbones.cliptex.experts import find_expert, load_experts, train_expert
from backbones.cliptex.protocols import Silent
from backbones.errors import UserError
from probes.experts.mask_rcnn import MaskRCNN, find_config, merge
from tests.backbones.cliptex import toy_experts

SMALL = {
    "size": 64, "encoder": "resnet10t", "pretrained": False, "out_channels": 16, "fc_out_channels": 32,
    "anchor_scale": 4.0, "rois_per_image": 16, "proposals": 50, "mask_convs": 1,
    "batch_size": 8, "color_jitter": 0.1, "crop_scale": (0.9, 1.0),
}  # fmt: skip


def make() -> MaskRCNN:
    torch.manual_seed(0)
    kind = find_expert("mask-rcnn")
    return kind.create(kind.settings_type(**SMALL), ("background", "cup", "chair")).freeze()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 6))
def test_merge_gives_each_pixel_to_its_surest_instance(seed, count):
    random = np.random.default_rng(seed)
    masks = random.random((count, 5, 6)) < 0.4
    scores, classes = random.random(count), random.integers(1, 4, count)
    merged = merge(masks, scores, classes, (5, 6), 0.5, 0.2)
    for y in range(5):
        for x in range(6):
            covering = [(scores[i], classes[i]) for i in range(count) if masks[i, y, x]]
            best, label = max(covering, default=(0, 0))
            assert merged[y, x] == (label if best >= 0.5 else 255 if best >= 0.2 else 0)


def test_configs_by_name():
    assert find_config("mask-rcnn_r50_fpn_1x_coco").is_file()
    assert find_config("mask_rcnn_r50_fpn_1x_coco") == find_config("mask-rcnn_r50_fpn_1x_coco")
    with pytest.raises(
        UserError, match="no MMDetection config 'mask-rcnn_r50_fnp_1x_coco'; did you mean mask-rcnn_r50"
    ):
        find_config("mask-rcnn_r50_fnp_1x_coco")


def test_missing_weights_say_which_file_to_bring(tmp_path):
    with pytest.raises(UserError, match=r"needs the weights of mask-rcnn_r50_fpn_1x_coco: fetch its \.pth"):
        load_experts(["mask-rcnn=mask_rcnn_r50_fpn_1x_coco"])
    with pytest.raises(UserError, match="no weights file"):
        load_experts([f"mask-rcnn=mask-rcnn_r50_fpn_1x_coco:{tmp_path / 'absent.pth'}"])


def test_predictions_and_a_saved_copy(tmp_path):
    expert = make()
    images = torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8)
    seg = expert.predict(images)["seg"]
    assert seg.shape == (2, 40, 56)
    assert seg.dtype == np.uint8
    assert set(np.unique(seg)) <= {0, 1, 2, 255}
    expert.save(tmp_path / "e")
    (back,) = load_experts([f"mask-rcnn={tmp_path / 'e'}"])
    assert back.identity() == expert.identity()
    np.testing.assert_array_equal(back.predict(images)["seg"], seg)


def test_any_config_with_a_checkpoint(tmp_path):
    """A config file as MMDetection's users write it, and a checkpoint as its Runner writes it."""
    config = """
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'
model = dict(
    backbone=dict(depth=18, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        mask_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=16, num_classes=3),
        mask_head=dict(in_channels=16, conv_out_channels=16, num_classes=3)))
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(128, 96), keep_ratio=True)]
test_dataloader = dict(dataset=dict(metainfo=dict(classes=('mug', 'stool', 'torch'))))
"""
    (tmp_path / "small.py").write_text(config)
    source = f"{tmp_path / 'small.py'}:{tmp_path / 'small.pth'}"
    torch.save({"state_dict": {"backbone.conv1.weight": torch.zeros(1)}, "meta": {}}, tmp_path / "small.pth")
    with pytest.raises(UserError, match="does not hold the weights of small"):
        MaskRCNN.load(source)
    from mmdet.registry import MODELS
    from mmengine.config import Config

    model = Config.fromfile(tmp_path / "small.py").model
    model.backbone.init_cfg = None
    torch.manual_seed(0)
    state = MODELS.build(model).state_dict()
    torch.save({"state_dict": state, "meta": {"epoch": 1}}, tmp_path / "small.pth")
    (expert,) = load_experts([f"mask-rcnn={source}"])
    assert expert.classes == ("background", "mug", "stool", "torch")
    assert expert.settings.size == 96
    seg = expert.predict(torch.randint(0, 256, (1, 3, 60, 80), dtype=torch.uint8))["seg"]
    assert seg.shape == (1, 60, 80)
    expert.save(tmp_path / "ours")
    assert load_experts([f"mask-rcnn={tmp_path / 'ours'}"])[0].identity() == expert.identity()


@pytest.mark.slow
def test_training_learns(tmp_path):
    root = toy_experts.write_truth(tmp_path / "data", train=48, val=8, side=64)
    settings = {**SMALL, "epochs": 12.0, "lr": 3e-3}
    quiet = {"log": Silent(), "progress": Silent()}
    found = train_expert("mask-rcnn", root, tmp_path / "out", settings=settings, **quiet)
    assert found["accuracy"]["object_acc"] > 40, found["accuracy"]
    assert found["classes"] == ["background", "cup", "chair"]
