"""Detection probes on kept features: the same features, truth and numbers as encoding each time."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, MODELS, DefaultScope

import probes.detection.probe  # noqa: F401  registers
from backbones.tuning import Cut
from probes.detection.coco import CocoMeanAP
from probes.detection.models import detection_config
from probes.detection.settings import MaskRCNNSettings, SSDSettings
from probes.features.maps import collate_views
from probes.features.store import root
from probes.registry import PROBES
from tests.probes import tiny_coco
from tests.probes.test_predictor import check_detections, stored_predictor
from tests.probes.tiny_mmlab import context
from tests.recorder import Recorder

pytestmark = pytest.mark.integration

SETTINGS = {
    "mask-rcnn": MaskRCNNSettings(
        max_iters=4,
        batch_size=2,
        short_side=64,
        long_side=64,
        out_channels=16,
        fc_out_channels=16,
        lr=3e-3,
    ),
    "ssd": SSDSettings(max_iters=6, batch_size=4, size=64, out_channels=16, lr=3e-3, augment=False),
}


@pytest.fixture
def data(tmp_path):
    return tiny_coco.prepared(tiny_coco.write(tmp_path / "shapes", train=6, val=3))


def task(
    folder: Path,
    name: str,
    data,
    cache: str,
    recorder: Recorder | None = None,
    backbone: str = "tiny-cnn",
):
    return context(
        folder, data, dataclasses.replace(SETTINGS[name], cache=cache), backbone, recorder
    )


def test_mask_rcnn_sees_the_same_maps_boxes_and_masks(tmp_path, data):
    configs = {
        cache: detection_config(
            PROBES["detection/mask-rcnn"], task(tmp_path / cache, "mask-rcnn", data, cache)
        )
        for cache in ("none", "fp32")
    }
    with DefaultScope.overwrite_default_scope("mmdet"):
        sets = {
            cache: [
                DATASETS.build(loader.dataset)
                for loader in (config.train_dataloader, config.val_dataloader)
            ]
            for cache, config in configs.items()
        }
        parts = {
            cache: (
                MODELS.build(config.model.data_preprocessor),
                MODELS.build(config.model.backbone),
            )
            for cache, config in configs.items()
        }
    parts["fp32"][1].neck.load_state_dict(parts["none"][1].neck.state_dict())
    flipped, shapes = set(), set()
    for number in range(8):
        for training, split in ((True, 0), (False, 1)):
            batches = {}
            for cache, both in sets.items():
                np.random.seed(number)
                items = [both[split][index % len(both[split])] for index in (number, number + 1)]
                prepare, read = parts[cache]
                batch = prepare(collate_views(items), training)
                batches[cache] = read(batch["inputs"]), batch["data_samples"]
            for fresh, cached in zip(batches["none"][1], batches["fp32"][1], strict=True):
                assert (
                    cached.batch_input_shape == fresh.batch_input_shape
                    and cached.pad_shape == fresh.pad_shape
                )
                assert cached.img_id == fresh.img_id and cached.scale_factor == fresh.scale_factor
                shapes.add(fresh.img_shape)
                if training:
                    flipped.add(fresh.flip)
                    assert torch.equal(cached.gt_instances.bboxes, fresh.gt_instances.bboxes)
                    assert np.array_equal(
                        cached.gt_instances.masks.to_ndarray(),
                        fresh.gt_instances.masks.to_ndarray(),
                    )
            for cached_map, fresh_map in zip(batches["fp32"][0], batches["none"][0], strict=True):
                torch.testing.assert_close(cached_map, fresh_map, rtol=1e-4, atol=1e-4)
    assert flipped == {True, False} and len(shapes) == 2


def test_encoded_once_and_rebuilt_when_a_shard_is_truncated(tmp_path, data):
    """Detections are those of the stored head, which rounds maps as the store does."""
    first, second = Recorder(), Recorder()
    first_result = PROBES["detection/ssd"].run(task(tmp_path / "a", "ssd", data, "fp16", first))
    assert [name for name, _ in first.started if name.startswith("encoding")] == [
        "encoding tiny-cnn on instances_train2017",
        "encoding tiny-cnn on instances_val2017",
    ]
    check_detections(stored_predictor(first_result, tmp_path), data, first_result.detections)
    for shard in root().glob("*/00000.safetensors"):
        os.truncate(shard, 10)
    again = PROBES["detection/ssd"].run(task(tmp_path / "b", "ssd", data, "fp16", second))
    assert again.metrics == first_result.metrics
    assert sum("rebuilt" in note for note in again.notes) == 2
    assert sum(name.startswith("encoding") for name, _ in second.started) == 2


@pytest.mark.parametrize(
    ("backbone", "name"),
    [("random/timm/test_vit", "mask-rcnn"), ("random/timm/test_resnet", "ssd")],
)
def test_cached_activations_train_the_same_weights(tmp_path, data, monkeypatch, backbone, name):
    """Of upright and of wide images, which have as many tokens; no image is encoded again."""
    settings = dataclasses.replace(
        SETTINGS[name], tune="blocks:1", tune_rates=(1e-3,), drop_path=0.5, batch_size=4
    )
    if name == "mask-rcnn":
        settings = dataclasses.replace(settings, long_side=96)

    def train(folder: str, cache: str) -> tuple[dict, dict, int]:
        changed = dataclasses.replace(settings, cache=cache)
        used = context(tmp_path / folder, data, changed, backbone)
        result = PROBES[f"detection/{name}"].run(used)
        return result.head.tensors, result.metrics, used.cost.images["encode"]

    whole, metrics, _ = train("a", "none")
    cached, cached_metrics, encoded = train("b", "fp16")
    assert encoded == 10, "5 images with objects, flipped or not"
    monkeypatch.delattr(Cut, "record")
    again, _, encoded = train("c", "bf16")
    assert not encoded and cached_metrics == metrics
    assert whole.keys() == cached.keys() == again.keys()
    for key, tensor in whole.items():
        assert torch.equal(tensor, cached[key]) and torch.equal(tensor, again[key]), key


def test_the_rate_of_the_backbone_is_chosen_on_held_out_images(tmp_path, data):
    """With what was kept of all images; ``val`` has no say."""
    rates = (1e-4, 1e-2)
    changes = {"tune": "blocks:1", "cache": "fp16", "tune_rates": rates}
    settings, recorder = dataclasses.replace(SETTINGS["ssd"], **changes), Recorder()
    probe, name = PROBES["detection/ssd"], "random/timm/test_resnet"
    seen: list[list[int]] = []
    with pytest.MonkeyPatch.context() as patch:
        compute = CocoMeanAP.compute_metrics
        patch.setattr(
            CocoMeanAP,
            "compute_metrics",
            lambda self, results: (
                seen.append([each["image_id"] for each in results]) or compute(self, results)
            ),
        )
        used = context(tmp_path / "a", data, settings, name, recorder)
        result = probe.run(used)
    held_out, again, val = seen
    train = {sample.target.image_id for sample in data.samples["train"]}
    assert held_out == again and len(held_out) == 1 and set(held_out) <= train and len(val) == 3
    scores = {rate: recorder.curve(f"select/bbox_mAP/lr_{rate:g}")[0] for rate in rates}
    (chosen,) = recorder.curve("select/lr")
    assert scores[chosen] == max(scores.values())
    assert any(note.startswith("learning rate of the backbone") for note in result.notes)
    assert used.cost.images["encode"] == 10, "once for the choice and the training after it"
    one = dataclasses.replace(settings, tune_rates=(chosen,))
    assert probe.run(context(tmp_path / "b", data, one, name)).metrics == result.metrics
