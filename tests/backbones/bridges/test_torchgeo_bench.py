"""torchgeo-bench's own construction, extraction of features, and probe of segmentation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import backbones
from cliptex_common.errors import UserError
from tests.backbones.bridges.conftest import TOLERANCE, difference, ours, save_picture

pytest.importorskip("torchgeo_bench")

from hydra.utils import instantiate
from torchgeo_bench.datasets.eurosat import EuroSAT
from torchgeo_bench.segmentation_probe import SegmentationProbe
from torchgeo_bench.utils import extract_features

from backbones.backbone import Preprocessing, in_memory_format
from backbones.bridges.torchgeo_bench import RGB

pytestmark = pytest.mark.integration


@pytest.fixture
def tiles(tmp_path) -> list[Path]:
    """Files of one size, as of a dataset."""
    return [save_picture(tmp_path / f"{index}.png", 100, 90, index) for index in range(3)]


def samples(paths, scale: float = 1.0, **targets) -> DataLoader:
    """Raw float bands in a batch, as its datasets give them."""
    pixels = [np.asarray(Image.open(path)) for path in paths]
    images = [torch.tensor(each).permute(2, 0, 1).float() * scale for each in pixels]
    rows = [
        {"image": image, **{name: value[index] for name, value in targets.items()}}
        for index, image in enumerate(images)
    ]
    return DataLoader(rows, batch_size=len(rows))


def built_by_runner(spec, bands=RGB, **settings):
    """As the runner builds the model of a ``conf/model/NAME.yaml``."""
    name, options = spec
    options = {key: str(value) for key, value in options.items()}
    config = {"_target_": "backbones.as_torchgeo_bench", "name": name, **options}
    config["eval"] = {"segmentation": {"layers": ["maps.0"]}}
    return instantiate(config, bands=bands, _convert_="object", **settings).eval()


def test_embeddings_of_8_bit_tiles_are_ours(spec, tiles):
    model = built_by_runner(spec, normalization="model_native")
    loader = samples(tiles, label=torch.arange(3))
    features, labels = extract_features(model, loader, "cpu", verbose=False)
    assert difference(ours(model.model, tiles), features) <= TOLERANCE
    assert labels.tolist() == [0, 1, 2]


def test_other_units_are_scaled_and_keep_their_size(spec, tmp_path):
    """Sentinel-2's counts of a picture of the backbone's size, and the picture."""
    bands = [replace(band, max=10000.0) for band in RGB]
    model = built_by_runner(spec, bands, normalization="model_native")
    height, width = model.model.data.size
    tiles = [save_picture(tmp_path / f"{index}.png", width, height, index) for index in range(2)]
    backbone = backbones.create(spec[0], **spec[1])
    backbone.data = replace(backbone.data, crop_pct=1.0)
    loader = samples(tiles, 10000 / 255, label=torch.arange(2))
    features, _ = extract_features(model, loader, "cpu", verbose=False)
    assert difference(ours(backbone, tiles), features) <= 1e-4, "sums of other roundings"


def test_segmentation_probes_read_our_maps(spec):
    model = built_by_runner(spec)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 3, 224, 224), generator=generator).float()
    rows = [{"image": each, "mask": torch.zeros(224, 224, dtype=torch.int64)} for each in pixels]
    loader = DataLoader(rows, batch_size=3)
    layers = [f"maps.{level}" for level in range(len(model.model.channels))]
    probe = SegmentationProbe(model, layers, 4, head_type="linear")
    cache = probe.extract_segmentation_features(loader, cache_dtype=torch.float32)
    with torch.inference_mode():
        images = Preprocessing(model.model.data).normalise(pixels)
        expected = model.model(in_memory_format(images, model.model))
        assert probe(pixels).shape == (3, 4, 224, 224)
    for ours_, theirs in zip(expected, cache.layer_tensors, strict=True):
        assert difference(ours_, theirs) <= TOLERANCE


def test_three_bands_are_needed():
    with pytest.raises(UserError, match=r"three bands, not 13; set dataset.bands=rgb"):
        backbones.as_torchgeo_bench("random", EuroSAT().bands)
