"""Detection probes: COCO scores against pycocotools, both detectors trained for real on a generated
set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cliptex_common.errors import UserError
from cliptex_common.settings import with_changes
from probes.detection import models
from probes.detection.coco import CocoInstances, encode_mask, mean_ap
from probes.detection.models import coco_set
from probes.detection.probe import BOXES, MASKS
from probes.detection.settings import MaskRCNNSettings, SSDSettings
from probes.registry import PROBES
from probes.train.config import apply_settings, config_files, read_config
from reports.per_image import image_scores
from reports.records import to_columns
from tests.coco_reference import evaluate
from tests.probes import tiny_coco
from tests.probes.tiny_dense import with_declared
from tests.probes.tiny_mmlab import TinyBackbone, context

# isort: split
from faster_coco_eval import COCO
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


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_coco.write(tmp_path_factory.mktemp("shapes"))


# ---------------------------------------------------------------- data and scores


def reference_ap(
    file: Path, detections: list[dict[str, Any]], kind: str, images: Sequence[int] = ()
) -> list[float]:
    evaluation = evaluate(json.loads(file.read_text()), detections, kind, images)
    return [100 * float(value) for value in evaluation.stats[:6]]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_scores_are_those_of_pycocotools(tmp_path, seed, kind):
    """Objects shaken, lost, doubled and misnamed, and detections inside the crowd."""
    rng = np.random.default_rng(seed)
    file = (
        tiny_coco.write(tmp_path, val=12, side=200, seed=seed)
        / "annotations"
        / "instances_val2017.json"
    )
    ground_truth = COCO(str(file))
    detections = []
    for instance in ground_truth.anns.values():
        mask = ground_truth.annToMask(instance).astype(bool)
        for _ in range(int(rng.integers(0, 3))):
            shifted = np.roll(mask, rng.integers(-4, 5, 2), axis=(0, 1))
            ys, xs = np.nonzero(shifted)
            detection = {
                "image_id": instance["image_id"],
                "category_id": int(rng.choice([instance["category_id"]] * 2 + [1])),
                "bbox": [float(v) for v in (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)],
                "score": float(rng.random()),
                "segmentation": encode_mask(shifted),
            }
            detections.append(detection)
    images = sorted(ground_truth.imgs)[:9]  # detections in other images must not count
    before = json.dumps(detections)
    results = mean_ap(ground_truth, detections, images, list(tiny_coco.CATEGORY_IDS.values()), kind)
    expected = dict(
        zip(
            (n.replace("bbox", kind) for n in BOXES),
            reference_ap(file, detections, kind, images),
            strict=True,
        )
    )
    assert results == pytest.approx(
        {name: value for name, value in expected.items() if value >= 0}, abs=1e-9
    )
    assert 0 < results[f"{kind}_mAP"] < 100
    assert json.dumps(detections) == before


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


# ---------------------------------------------------------------- the detectors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backbone"),
    [("mask-rcnn", "tiny-cnn"), ("ssd", "tiny-vit")],
)
def test_detector_trains_and_is_scored(root, tmp_path, name, backbone):
    task = context(tmp_path, tiny_coco.prepared(root), SETTINGS[name], backbone)
    result = PROBES[f"detection/{name}"].run(task)
    losses = task.log.curve("train/loss")
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    expected = MASKS | BOXES if name == "mask-rcnn" else BOXES
    # no object is large: a missing value, not a number
    assert {n for n in expected if not n.endswith("_l")} == set(expected) & set(result.metrics)
    assert any("bbox_mAP_l" in note for note in result.notes)
    assert any(note.startswith("1 of 12 training images") for note in result.notes)

    # the numbers again, from the result list alone
    annotations = root / "annotations" / "instances_val2017.json"
    assert result.detections is not None
    stored = json.loads(json.dumps(result.detections))
    for kind in ("bbox", "segm") if name == "mask-rcnn" else ("bbox",):
        ap = reference_ap(annotations, stored, kind)
        assert result.metrics[f"{kind}_mAP"] == pytest.approx(ap[0]) and result.metrics[
            f"{kind}_mAP_50"
        ] == pytest.approx(ap[1])
    matched = {"class", "bbox_hits", "bbox_ignored"}
    assert stored and set(stored[0]) == {"image_id", "category_id", "bbox", "score"} | matched | (
        {"segmentation", "segm_hits", "segm_ignored"} if name == "mask-rcnn" else set()
    )
    assert {detection["category_id"] for detection in stored} <= set(
        tiny_coco.CATEGORY_IDS.values()
    )

    assert result.per_image["detections"].sum() == len(stored)
    assert (result.per_image["objects"] == 0).sum() == 1
    columns = to_columns(stored)
    scores = image_scores("detection", result.per_image, columns)
    assert scores.values() == pytest.approx({n: result.metrics[n] for n in scores.metrics})
    assert columns["category_id"].tolist() == [detection["category_id"] for detection in stored]
    assert np.allclose(columns["bbox"], [detection["bbox"] for detection in stored], atol=1e-4)


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
