"""The ``mask-rcnn`` expert: instances to one map, MMDetection's configs and checkpoints,
training."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import probes.experts  # noqa: F401  (registers it)
from backbones.cliptex.experts import find_expert, load_experts, train_expert
from backbones.cliptex.experts.fit import FitRun
from backbones.cliptex.protocols import Silent
from common.errors import UserError
from probes.experts.mask_rcnn import MaskRCNN, find_config, merge
from tests.backbones.cliptex.experts import toy_experts

SMALL = {
    "size": 64,
    "encoder": "resnet10t",
    "pretrained": False,
    "out_channels": 16,
    "fc_out_channels": 32,
    "anchor_scale": 4.0,
    "rois_per_image": 16,
    "proposals": 50,
    "mask_convs": 1,
    "batch_size": 8,
    "color_jitter": 0.1,
    "crop_scale": (0.9, 1.0),
}


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
        UserError,
        match="no MMDetection config 'mask-rcnn_r50_fnp_1x_coco'; did you mean mask-rcnn_r50",
    ):
        find_config("mask-rcnn_r50_fnp_1x_coco")


def test_missing_weights_say_which_file_to_bring(tmp_path):
    with pytest.raises(
        UserError, match=r"needs the weights of mask-rcnn_r50_fpn_1x_coco: fetch its \.pth"
    ):
        load_experts(["mask-rcnn=mask_rcnn_r50_fpn_1x_coco"])
    with pytest.raises(UserError, match="no weights file"):
        load_experts([f"mask-rcnn=mask-rcnn_r50_fpn_1x_coco:{tmp_path / 'absent.pth'}"])
    with pytest.raises(UserError, match="no weights file"):
        load_experts([f"mask-rcnn={tmp_path / 'absent.pth'}"])


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
"""  # noqa: E501
    (tmp_path / "small.py").write_text(config)
    source = f"{tmp_path / 'small.py'}:{tmp_path / 'small.pth'}"
    torch.save(
        {"state_dict": {"backbone.conv1.weight": torch.zeros(1)}, "meta": {}},
        tmp_path / "small.pth",
    )
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


# ---------------------------------------------------------------- published checkpoints


def resnet50(top: str, stages: str, counted: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a ResNet-50 without its classifier; ``counted``: norms count their
    batches."""

    def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
        vectors = {
            f"{name}.{kind}": (channels,)
            for kind in ("weight", "bias", "running_mean", "running_var")
        }
        return vectors | ({f"{name}.num_batches_tracked": ()} if counted else {})

    shapes = {f"{top}.conv1.weight": (64, 3, 7, 7), **norm(f"{top}.bn1", 64)}
    before = 64
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], 1):
        for block in range(blocks):
            name = f"{top}.{stages}{stage}.{block}"
            for number, shape in enumerate(
                [(width, before, 1), (width, width, 3), (4 * width, width, 1)], 1
            ):
                shapes[f"{name}.conv{number}.weight"] = (*shape, shape[2])
                shapes |= norm(f"{name}.bn{number}", shape[0])
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * width, before, 1, 1)
                shapes |= norm(f"{name}.downsample.1", 4 * width)
            before = 4 * width
    return shapes


def layer(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.weight": shape,
        f"{name}.bias": shape[-3:-2] if name.endswith("upsample") else shape[:1],
    }


def mmdet_r50() -> dict[str, tuple[int, ...]]:
    """``mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth``."""
    shapes = resnet50("backbone", "layer", True)
    for place, channels in enumerate((256, 512, 1024, 2048)):
        shapes |= layer(f"neck.lateral_convs.{place}.conv", 256, channels, 1, 1)
        shapes |= layer(f"neck.fpn_convs.{place}.conv", 256, 256, 3, 3)
        shapes |= layer(f"roi_head.mask_head.convs.{place}.conv", 256, 256, 3, 3)
    shapes |= layer("rpn_head.rpn_conv", 256, 256, 3, 3) | layer("rpn_head.rpn_cls", 3, 256, 1, 1)
    shapes |= layer("rpn_head.rpn_reg", 12, 256, 1, 1) | layer(
        "roi_head.bbox_head.shared_fcs.0", 1024, 256 * 49
    )
    shapes |= layer("roi_head.bbox_head.shared_fcs.1", 1024, 1024) | layer(
        "roi_head.bbox_head.fc_cls", 81, 1024
    )
    shapes |= layer("roi_head.bbox_head.fc_reg", 320, 1024) | layer(
        "roi_head.mask_head.upsample", 256, 256, 2, 2
    )
    return shapes | layer("roi_head.mask_head.conv_logits", 80, 256, 1, 1)


def torchvision_v1() -> dict[str, tuple[int, ...]]:
    """``maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth``, whose names are older than torchvision's
    modules."""
    shapes = resnet50("backbone.body", "layer", False)
    for place, channels in enumerate((256, 512, 1024, 2048)):
        shapes |= layer(f"backbone.fpn.inner_blocks.{place}", 256, channels, 1, 1)
        shapes |= layer(f"backbone.fpn.layer_blocks.{place}", 256, 256, 3, 3)
        shapes |= layer(f"roi_heads.mask_head.mask_fcn{place + 1}", 256, 256, 3, 3)
    shapes |= layer("rpn.head.conv", 256, 256, 3, 3) | layer("rpn.head.cls_logits", 3, 256, 1, 1)
    shapes |= layer("rpn.head.bbox_pred", 12, 256, 1, 1) | layer(
        "roi_heads.box_head.fc6", 1024, 256 * 49
    )
    shapes |= layer("roi_heads.box_head.fc7", 1024, 1024) | layer(
        "roi_heads.box_predictor.cls_score", 91, 1024
    )
    shapes |= layer("roi_heads.box_predictor.bbox_pred", 364, 1024)
    shapes |= layer("roi_heads.mask_predictor.conv5_mask", 256, 256, 2, 2)
    return shapes | layer("roi_heads.mask_predictor.mask_fcn_logits", 91, 256, 1, 1)


def random_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: 0.02 * torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def test_mmdetections_published_names_and_shapes(tmp_path):
    state = random_state(mmdet_r50())
    state = {name: t.long() if name.endswith("tracked") else t for name, t in state.items()}
    meta = {"CLASSES": ("person",), "config": "…", "mmdet_version": "2.1.0", "epoch": 12}
    torch.save({"meta": meta, "state_dict": state}, tmp_path / "r50.pth")
    (expert,) = load_experts([f"mask-rcnn=mask_rcnn_r50_fpn_1x_coco:{tmp_path / 'r50.pth'}"])
    assert (
        expert.classes[:2] == ("background", "person")
        and len(expert.classes) == 81
        and expert.settings.size == 800
    )
    found = expert.net.state_dict()
    assert set(found) == set(state) and all(
        torch.equal(found[name], tensor) for name, tensor in state.items()
    )


def test_torchvisions_published_names_and_shapes(tmp_path):
    state = random_state(torchvision_v1())
    torch.save(state, tmp_path / "v1.pth")
    (expert,) = load_experts([f"mask-rcnn={tmp_path / 'v1.pth'}"])
    assert (
        len(expert.classes) == 81
        and "N/A" not in expert.classes
        and expert.classes[-1] == "toothbrush"
    )
    found = expert.net.state_dict()
    assert len(found) == len(state)
    assert torch.equal(
        found["backbone.fpn.inner_blocks.3.0.bias"], state["backbone.fpn.inner_blocks.3.bias"]
    )
    assert torch.equal(
        found["roi_heads.mask_head.0.0.weight"], state["roi_heads.mask_head.mask_fcn1.weight"]
    )
    assert torch.equal(found["rpn.head.conv.0.0.weight"], state["rpn.head.conv.weight"])
    assert expert.net.backbone.body.bn1.eps == 0


def test_torchvisions_second_version_labels_as_torchvision_does(tmp_path):
    from torchvision.models.detection import (
        MaskRCNN_ResNet50_FPN_V2_Weights,
        maskrcnn_resnet50_fpn_v2,
    )

    torch.manual_seed(0)
    original = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).eval()
    with torch.no_grad():  # sure of something: dogs, and of the mask somewhere
        original.roi_heads.box_predictor.cls_score.weight.mul_(0.02)
        original.roi_heads.box_predictor.cls_score.bias[18] = 7.0
        original.roi_heads.mask_predictor.mask_fcn_logits.weight.mul_(30)
    torch.save(original.state_dict(), tmp_path / "v2.pth")
    (expert,) = load_experts([f"mask-rcnn={tmp_path / 'v2.pth'}"])
    for net in (original, expert.net):
        net.transform.min_size, net.rpn._post_nms_top_n, net.roi_heads.detections_per_img = (
            (96,),
            {"testing": 9},
            3,
        )
    images = torch.randint(0, 256, (2, 3, 60, 80), dtype=torch.uint8)
    with torch.no_grad():
        results = original(list(images / 255))
    assert MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1.meta["categories"][18] == "dog"
    dog = expert.classes.index("dog")
    seg = expert.predict(images)["seg"]
    for labels, found in zip(seg, results, strict=True):
        sure = found["scores"] >= 0.5
        covered = (found["masks"][sure, 0] > 0.5).any(0).numpy()
        assert 0.02 < covered.mean() < 0.98
        np.testing.assert_array_equal(labels == dog, covered)
    again = MaskRCNN.build(expert.identity())
    again.load_state_dict(expert.state_dict())
    assert again.identity() == expert.identity()
    rounded = expert.freeze(bf16=True).predict(images)["seg"]
    assert np.mean(rounded == seg) > 0.8


# ---------------------------------------------------------------- configs of others


def test_only_python_configs_are_read(tmp_path):
    """PyYAML builds any object that a file names: it must not be opened at all."""
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pth")
    proof = tmp_path / "proof"
    for name in ("evil.yaml", "evil.yml", "evil.json"):
        (tmp_path / name).write_text(f"model: !!python/object/apply:os.system ['touch {proof}']\n")
        for source in (f"{tmp_path / name}:{tmp_path / 'w.pth'}", f"{tmp_path / name}"):
            with pytest.raises(UserError, match=r"is no \.py config|needs the weights of evil"):
                load_experts([f"mask-rcnn={source}"])
    assert not proof.exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a = 1\n", "has no model"),
        ("model = dict(\n", "no config that can be used"),
        ("model = 3\n", "no config that can be used"),
        ("raise RuntimeError('two\\nlines')\n", "RuntimeError: two"),
        ("_base_ = 'absent.py'\n", "no config that can be used"),
        ("model = dict(type='NoSuchDetector')\n", "no config that can be used"),
        ("_base_ = 'mmdet::_base_/models/faster-rcnn_r50_fpn.py'\n", "mask_head"),
    ],
)
def test_broken_configs_are_one_line(content, told, tmp_path):
    (tmp_path / "c.py").write_text(content)
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=told) as error:
        load_experts([f"mask-rcnn={tmp_path / 'c.py'}:{tmp_path / 'w.pth'}"])
    assert "\n" not in str(error.value)


def test_a_saved_expert_imports_nothing(tmp_path):
    """MMEngine imports and calls what a dotted type names: not from somebody's ``expert.json``."""
    make().save(tmp_path / "e")
    path, proof = tmp_path / "e" / "expert.json", tmp_path / "proof"
    config = json.loads(path.read_text())
    config["model"]["backbone"] = {"type": "pathlib.Path.touch", "self": str(proof)}
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"names pathlib\.Path\.touch"):
        load_experts([f"mask-rcnn={tmp_path / 'e'}"])
    assert not proof.exists()


@pytest.mark.slow
def test_training_learns(tmp_path):
    root = toy_experts.write_truth(tmp_path / "data", train=48, val=8, side=64)
    settings = {**SMALL, "epochs": 12.0, "lr": 3e-3}
    found = train_expert("mask-rcnn", root, tmp_path / "out", FitRun(Silent(), Silent()), settings)
    assert found["accuracy"]["object_acc"] > 40, found["accuracy"]
    assert found["classes"] == ["background", "cup", "chair"]
