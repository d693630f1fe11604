"""The ``mask-rcnn`` expert: instances to one map, published configs and checkpoints."""

from __future__ import annotations

import re
from argparse import Namespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection import (
    MaskRCNN_ResNet50_FPN_V2_Weights,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)

import probes.experts  # noqa: F401  (registers it)
from backbones.cliptex.experts.base import load_experts
from cliptex_common.errors import UserError
from cliptex_common.files import sha256_file
from probes.experts import mask_rcnn
from probes.experts.mask_rcnn import MaskRCNN, find_config, merge
from tests.backbones.cliptex.experts.small_mask_rcnn import shrink, write_mmdet, write_torchvision

# isort: split
from mmdet.apis import inference_detector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

pytestmark = pytest.mark.integration


@settings(max_examples=50)
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


def test_any_config_with_a_checkpoint(tmp_path):
    """A config file as MMDetection's users write it, and a checkpoint as its Runner writes it."""
    source = write_mmdet(tmp_path)
    state = torch.load(tmp_path / "small.pth", weights_only=True)["state_dict"]
    other = {"state_dict": {"backbone.conv1.weight": torch.zeros(1)}, "meta": {}}
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not hold the weights of small"):
        MaskRCNN.load(f"{tmp_path / 'small.py'}:{tmp_path / 'other.pth'}")
    (expert,) = load_experts([f"mask-rcnn={source}"])
    assert expert.classes == ("background", "mug", "stool", "torch")
    # an image that MMDetection's limit on the long side keeps below the short side
    image = torch.randint(0, 256, (1, 3, 30, 80), dtype=torch.uint8)
    with patch.object(expert.net, "test_step", wraps=expert.net.test_step) as step:
        (seg,) = expert.predict(image)["seg"]
    assert step.call_args.args[0]["inputs"][0].shape == (3, 48, 128)
    with DefaultScope.overwrite_default_scope("mmdet"):
        config = Config.fromfile(tmp_path / "small.py")
        config.model.backbone.init_cfg = None
        theirs = MODELS.build(config.model).eval()
        theirs.load_state_dict(state)
        theirs.cfg = config
        pixels = image[0].flip(0).permute(1, 2, 0).numpy()
        result = inference_detector(theirs, pixels).pred_instances
    masks, scores, labels = (result[name].numpy() for name in ("masks", "scores", "labels"))
    assert len(scores) > 3 and scores.max() > expert.settings.ignore_threshold
    np.testing.assert_array_equal(seg, merge(masks, scores, labels + 1, (30, 80), 0.5, 0.2))
    preprocessor = expert.to("meta").net.data_preprocessor
    assert preprocessor.device.type == "meta", "it sends images where the network is"


# ---------------------------------------------------------------- published checkpoints


def test_a_config_of_mmdetection_has_its_older_name_too():
    assert find_config("mask_rcnn_r50_fpn_1x_coco").stem == "mask-rcnn_r50_fpn_1x_coco"


def test_torchvisions_first_checkpoint_has_older_names(tmp_path):
    """``maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth`` was written before its modules were renamed."""
    state = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    older = {}
    for name, tensor in state.items():
        name = re.sub(r"(inner_blocks|layer_blocks)\.(\d)\.0\.", r"\1.\2.", name)
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        name = re.sub(
            r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", name
        )
        if not name.endswith("num_batches_tracked"):
            older[name] = tensor
    assert "roi_heads.mask_head.mask_fcn4.bias" in older and "rpn.head.conv.weight" in older
    torch.save(older, tmp_path / "v1.pth")
    (expert,) = load_experts([f"mask-rcnn={tmp_path / 'v1.pth'}"])
    assert len(expert.classes) == 81 and expert.classes[-1] == "toothbrush"
    assert "N/A" not in expert.classes
    loaded = expert.net.state_dict()
    assert len(loaded) == len(older)
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())
    assert expert.net.backbone.body.bn1.eps == 1e-5
    digest = sha256_file(tmp_path / "v1.pth")
    with patch.object(mask_rcnn, "PUBLISHED_V1", digest[:8]):  # torchvision's own file
        (expert,) = load_experts([f"mask-rcnn={tmp_path / 'v1.pth'}"])
    assert expert.net.backbone.body.bn1.eps == 0


def test_a_checkpoint_of_torchvisions_training_script(tmp_path):
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    args = Namespace(dataset="coco", lr_steps=[16, 22], device="cuda")
    content = {"model": model.state_dict(), "args": args, "epoch": 25}
    torch.save(content, tmp_path / "model_25.pth")
    (expert,) = load_experts([f"mask-rcnn={tmp_path / 'model_25.pth'}"])
    assert expert.classes == ("background", "class 1", "class 2")
    assert expert.net.backbone.body.bn1.eps == 1e-5


@pytest.mark.parametrize("build", [maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2])
def test_torchvisions_models_label_as_torchvision_does(build, tmp_path):
    (expert,) = load_experts([f"mask-rcnn={write_torchvision(tmp_path, build)}"])
    original = build(weights=None, weights_backbone=None).eval()
    original.load_state_dict(torch.load(tmp_path / "torchvision.pth", weights_only=True))
    for net in (original, expert.net):
        shrink(net)
    images = torch.randint(0, 256, (2, 3, 60, 80), dtype=torch.uint8)
    with torch.no_grad():
        results = original(list(images / 255))
    assert MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1.meta["categories"][18] == "dog"
    dog = expert.classes.index("dog")
    seg = expert.predict(images)["seg"]
    for labels, result in zip(seg, results, strict=True):
        masks = result["masks"][result["scores"] >= 0.5, 0]
        covered = (masks > 0.5).any(0).numpy()
        assert 0.02 < covered.mean() < 0.98
        np.testing.assert_array_equal(labels == dog, covered)
    rounded = expert.freeze(bf16=True).predict(images)["seg"]
    assert np.mean(rounded == seg) > 0.8


# ---------------------------------------------------------------- configs of others


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.py", "raise RuntimeError('two\\nlines')\n", "RuntimeError: two"),
        ("c.py", "model = dict(type='NoSuchDetector')\n", "no usable config"),
        ("c.py", "_base_ = 'mmdet::_base_/models/faster-rcnn_r50_fpn.py'\n", "mask_head"),
        # PyYAML builds any object that a file names: it must not be opened at all
        ("c.yaml", "model: !!python/object/apply:os.mkdir [proof]\n", r"is no \.py config"),
    ],
)
def test_broken_configs_are_one_line(name, content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(content)
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=message) as error:
        load_experts([f"mask-rcnn={tmp_path / name}:{tmp_path / 'w.pth'}"])
    assert "\n" not in str(error.value) and not (tmp_path / "proof").exists()
