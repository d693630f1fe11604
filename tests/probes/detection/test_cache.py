"""Detection probes on kept features: the same features, truth and numbers as encoding each time."""

import dataclasses
from pathlib import Path

import pytest
import torch

from backbones.tuning import Cut
from probes.detection.coco import CocoMeanAP
from probes.detection.settings import MaskRCNNSettings, SSDSettings
from probes.registry import PROBES
from tests.probes import tiny_coco
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
    starts = "learning rate of the backbone", "1 of 6 training images have no object", "val has no"
    assert all(any(note.startswith(start) for note in result.notes) for start in starts)
    assert used.cost.images["encode"] == 10, "once for the choice and the training after it"
    assert recorder.started[-1][1] == 1, "images of one size are evaluated together"
    one = dataclasses.replace(settings, tune_rates=(chosen,))
    assert probe.run(context(tmp_path / "b", data, one, name)).metrics == result.metrics
