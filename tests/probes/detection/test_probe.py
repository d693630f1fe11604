"""Detection probes: what they get of COCO's files, and both detectors on a generated set."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import benchmark.catalog  # noqa: F401  registers datasets
from cliptex_common.errors import UserError
from cliptex_common.settings import with_changes
from probes.detection import models
from probes.detection.coco import CocoInstances
from probes.detection.models import coco_set
from probes.detection.settings import MaskRCNNSettings, SSDSettings
from probes.registry import DATASETS, PROBES
from probes.train.config import apply_settings, config_files, read_config
from tests.probes import tiny_coco
from tests.probes.tiny_dense import with_declared
from tests.probes.tiny_mmlab import TinyBackbone, context

# isort: split
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

pytestmark = pytest.mark.integration

SETTINGS: dict[str, Any] = {
    "mask-rcnn": MaskRCNNSettings(
        max_iters=40,
        batch_size=2,
        short_side=64,
        long_side=96,
        out_channels=32,
        fc_out_channels=64,
        lr=3e-3,
    ),
    "ssd": SSDSettings(max_iters=30, batch_size=4, size=64, out_channels=32, lr=3e-3),
}


def test_the_names_of_coco_are_those_of_mmdetection():
    names = DATASETS["coco"].class_names(Path())
    assert names == CocoDataset.METAINFO["classes"] == DATASETS["coco-labels"].class_names(Path())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_coco.write(tmp_path_factory.mktemp("shapes"))


def dataset(data: Any, split: Any, **options: Any) -> CocoInstances:
    init_default_scope("mmdet")
    return CocoInstances(**coco_set(data, split), pipeline=[], **options)


def test_labels_follow_the_order_of_the_classes(root):
    """The file lists its categories in another order; pixels tell which label is right."""
    images = dataset(tiny_coco.prepared(root), "train")
    assert len(images) == 12
    for info in images:
        pixels = np.asarray(Image.open(info["img_path"]))
        for instance in info["instances"]:
            if not instance["ignore_flag"]:
                x1, y1, x2, y2 = instance["bbox"]
                centre = pixels[int((y1 + y2) / 2), int((x1 + x2) / 2)]
                assert tuple(centre) == tiny_coco.COLOURS[tiny_coco.CLASSES[instance["bbox_label"]]]


def test_only_the_chosen_images_are_used_and_empty_ones_counted(root):
    data = tiny_coco.prepared(root, skip=3)
    assert sorted(info["img_id"] for info in dataset(data, "train")) == [
        s.target.image_id for s in data.samples["train"]
    ]
    trained = dataset(data, "train", drop_empty=True)
    assert (len(trained), trained.dropped_empty) == (8, 1)
    sides = [
        min(trained.get_data_info(index)[side] for side in ("height", "width"))
        for index in range(8)
    ]
    larger = sum(side >= max(sides) for side in sides)
    assert len(dataset(data, "train", drop_empty=True, min_size=max(sides))) == larger
    with pytest.raises(UserError, match=r"no image with an object .* 5000 px or more"):
        dataset(data, "train", drop_empty=True, min_size=5000)
    assert len(dataset(data, "val")) == 6  # evaluation keeps the empty one


def test_wrong_data_fail(root):
    data = with_declared(tiny_coco.prepared(root), classes=("tv", "cube"))
    with pytest.raises(UserError, match="no category 'cube'; it has frisbee, skis, tv"):
        dataset(data, "train")


@pytest.mark.parametrize("name", ["mask-rcnn", "ssd"])
def test_config_runs_with_plain_mmengine(root, tmp_path, name):
    settings = with_changes(SETTINGS[name], {"max_iters": 2})
    text = PROBES[f"detection/{name}"].config(context(tmp_path, tiny_coco.prepared(root), settings))
    runner = Runner.from_cfg(Config.fromstring(text, ".py"))
    runner.train()
    assert runner.iter == 2
    assert runner.message_hub.get_scalar("val/bbox_mAP").current() >= 0


@pytest.mark.parametrize("strides", [(14,), (16, 16), (8, 16), (2, 4, 8, 16, 32), (4, 8, 16, 16)])
@pytest.mark.parametrize("name", ["mask-rcnn", "ssd"])
def test_every_shape_of_backbone_gets_matching_levels(name, strides):
    """One forward pass: maps and anchors agree in number and the finest anchors lie where the maps'
    cells are."""
    from probes.train import frozen_backbone

    backbone = TinyBackbone("shape", 0, strides).freeze()
    frozen_backbone.share({"name": f"shape-{strides}"}, backbone)
    init_default_scope("mmdet")
    if name == "ssd":
        settings: Any = SSDSettings(out_channels=16, size=100)
    else:
        settings = MaskRCNNSettings(out_channels=16, fc_out_channels=16)
    config = read_config(*config_files("detection", name))
    apply_settings(config, settings)
    config.model.backbone.backbone.name = f"shape-{strides}"
    models.complete_detector(config.model, backbone, 3, settings)
    detector = frozen_backbone.MODELS.build(config.model).eval()
    side = -(-100 // backbone.divisor) * backbone.divisor
    levels = detector.extract_feat(torch.zeros(1, 3, side, side))
    generator = (detector.bbox_head if name == "ssd" else detector.rpn_head).prior_generator
    assert len(levels) == generator.num_levels
    for level, (step, _) in zip(levels, generator.strides, strict=True):
        assert level.shape[1] == 16
        assert abs(level.shape[-1] * step - side) <= step  # the cells cover the image
    if name == "ssd":
        assert levels[-1].shape[-2:] == (1, 1)


@pytest.mark.parametrize(
    ("settings_type", "changes", "message"),
    [
        (MaskRCNNSettings, {"long_side": 100}, "must be at least short_side"),
        (SSDSettings, {"cache": "fp16"}, "set augment=false as well"),
    ],
)
def test_settings_that_do_not_fit(settings_type, changes, message):
    with pytest.raises(ValueError, match=message):
        settings_type(**changes)
