"""Images are padded to a backbone's patches (14 px, which divides no usual size); what is scored
must not feel it."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from PIL import Image
from torch import Tensor, nn

from backbones import registry
from backbones.backbone import Backbone, DataConfig, Weights, state_sha256
from backbones.registry import Entry, Request
from probes.datasets.base import PreparedDataset, Sample
from probes.detection.models import detection_config
from probes.registry import PROBES
from tests.probes import tiny_coco, tiny_dense
from tests.probes.tiny_mmlab import context

# isort: split
from mmseg.registry import DATASETS, MODELS

from probes.dense.config import dense_config

pytestmark = pytest.mark.integration

HEIGHT, WIDTH, SIZE = 60, 100, 45  # 45 × 75 px for the model, padded to 56 × 84


class Means(Backbone):
    """The mean colour of each patch of 14 px, unchanged by normalisation: red and green are where
    the patch lies."""

    def __init__(self, request: Request) -> None:
        super().__init__()
        self.name = self.architecture = request.name
        self.channels, self.strides, self.divisor, self.embed_dim = (3,), (14,), 14, 3
        self.data = DataConfig((56, 56), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        self.weights = Weights("none", state_sha256({}))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (nn.functional.avg_pool2d(images, 14),)

    def encode_image(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


@pytest.fixture(autouse=True)
def means_14(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known while a test of this module runs, and to no other."""
    monkeypatch.setitem(
        registry.BACKBONES.data, "means-14", Entry("means-14", "for tests", "MIT", Means)
    )


def ramps(data: PreparedDataset) -> np.ndarray:
    """Overwrite the first image of val: red grows from left to right, green downwards, both from -1
    to 1; return them as (2, HEIGHT, WIDTH)."""
    x, y = np.meshgrid(np.linspace(0, 255, WIDTH), np.linspace(0, 255, HEIGHT))
    image = np.stack([x, y, np.full_like(x, 127)], axis=2).round().astype(np.uint8)
    Image.fromarray(image).save(data.root / data.samples["val"][0].image)
    return np.stack([x, y]) / 127.5 - 1


def predict(folder: Path, data: PreparedDataset, weight: list[list[float]], **settings: Any) -> Any:
    """What a linear probe with these weights says of the first image of val."""
    probe = PROBES[f"{data.spec.kind}/linear"]
    chosen = probe.settings_type(size=SIZE, batch_size=1, **settings)
    config = dense_config(probe, context(folder, data, chosen, "means-14"))
    with DefaultScope.overwrite_default_scope("mmseg"):
        model, val = (
            MODELS.build(config.model).eval(),
            DATASETS.build(config.val_dataloader.dataset),
        )
        model.decode_head.norm.eps = 0.0
        with torch.no_grad():
            model.decode_head.conv_seg.weight.copy_(torch.tensor(weight)[:, :, None, None])
            model.decode_head.conv_seg.bias.zero_()
            (sample,) = model.test_step(pseudo_collate([val[0]]))
    assert sample.pad_shape == (56, 84)
    return sample


@pytest.mark.parametrize("stride", [14, 8])
def test_predictions_lie_where_the_pixels_are(tmp_path, stride):
    data = tiny_dense.make(tmp_path / "data", "segmentation", train=1, val=1, size=(HEIGHT, WIDTH))
    x, y = ramps(data)
    weight = [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    sample = predict(tmp_path / "w", data, weight, feature_stride=stride)
    predicted = sample.pred_sem_seg.data[0].numpy()
    assert predicted.shape == (HEIGHT, WIDTH)
    logits = np.stack([x, y, 0 * x])
    # away from the border, where half a patch has no neighbour, and from the padding, where a patch
    # is partly empty
    inside = np.s_[12:40, 12:72]
    second, best = np.sort(logits, axis=0)[1:]
    is_clear = (best - second)[inside] > 0.08
    assert (predicted == logits.argmax(axis=0))[inside][is_clear].all()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("segmentation/linear", {"size": 40, "scale_range": (1.0, 1.0)}),
        ("detection/mask-rcnn", {"short_side": 40, "long_side": 60}),
        ("detection/ssd", {"size": 40, "augment": False}),
    ],
)
def test_the_backbone_gets_its_own_normalised_rgb_of_stored_pixels(tmp_path, name, settings):
    """An orientation tag would turn an image off its boxes and its mask."""
    probe, exif, colour = PROBES[name], Image.Exif(), (200, 100, 50)
    exif[0x0112] = 6  # lies on its side
    if is_dense := probe.kind == "segmentation":
        data = tiny_dense.make(tmp_path / "data", probe.kind, 1, 1, size=(40, 30))
    else:
        data = tiny_coco.prepared(tiny_coco.write(tmp_path / "data", train=1, val=1, side=40))
    for split in ("train", "val"):
        path = data.root / data.samples[split][0].image
        Image.new("RGB", Image.open(path).size, colour).save(path, exif=exif)
    task = context(tmp_path / "work", data, probe.settings_type(**settings))
    config = (dense_config if is_dense else detection_config)(probe, task)
    own = zip(colour, task.backbone.data.mean, task.backbone.data.std, strict=True)
    expected = [(value / 255 - mean) / std for value, mean, std in own]
    with DefaultScope.overwrite_default_scope("mmseg" if is_dense else "mmdet"):
        prepare = MODELS.build(config.model.data_preprocessor)
        for loader in (config.train_dataloader, config.val_dataloader):
            images = DATASETS.build(loader.dataset)
            ((image,), _) = prepare(pseudo_collate([images[0]]), False).values()
            assert image[:, 0, 0].tolist() == pytest.approx(expected, abs=1e-4)
            assert image.shape == (3, 64, 64) and image[:, 63, 63].abs().max() < 0.02


@pytest.mark.parametrize("name", ["mask-rcnn", "ssd"])
def test_boxes_are_those_of_the_photograph_on_patches_of_14(tmp_path, name):
    """Nothing is found in the padding: every box (and mask) lies in its image, at the image's own
    resolution."""
    data = tiny_coco.prepared(tiny_coco.write(tmp_path / "data"))
    data = dataclasses.replace(
        data, samples={split: list(each)[:4] for split, each in data.samples.items()}
    )
    probe = PROBES[f"detection/{name}"]
    small = (
        {"size": 45}
        if name == "ssd"
        else {"short_side": 45, "long_side": 60, "fc_out_channels": 16}
    )
    settings = probe.settings_type(max_iters=2, batch_size=2, out_channels=16, **small)
    result = probe.run(context(tmp_path / "w", data, settings, "tiny-vit14"))
    sides = {sample.target.image_id: side(data.root, sample) for sample in data.samples["val"]}
    assert result.detections
    furthest = 0.0
    for detection in result.detections:
        x, y, width, height = detection["bbox"]
        image_width, image_height = sides[detection["image_id"]]
        assert min(x, y) >= 0
        assert x + width <= image_width + 1e-3 and y + height <= image_height + 1e-3
        if "segmentation" in detection:
            assert detection["segmentation"]["size"] == [image_height, image_width]
        furthest = max(furthest, (x + width) / image_width)
    assert furthest > 0.9  # … and boxes reach its edge


def side(root: Path, sample: Sample) -> tuple[int, int]:
    with Image.open(root / sample.image) as image:
        return image.size
