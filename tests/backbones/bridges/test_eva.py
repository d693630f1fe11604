"""eva's own datasets, loaders, trainer and modules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

import backbones
from backbones.backbone import in_memory_format
from tests.backbones.bridges.conftest import TOLERANCE, difference, ours

pytest.importorskip("eva.vision")

from eva.core import DataModule, HeadModule, Trainer
from eva.core.callbacks import ClassificationEmbeddingsWriter
from eva.core.data.dataloaders import DataLoader
from eva.core.data.datamodules.schemas import DataloadersSchema, DatasetsSchema
from eva.core.models.wrappers import ModelFromFunction
from eva.vision.data.datasets.vision import VisionDataset
from eva.vision.models.modules import SemanticSegmentationModule
from eva.vision.models.networks.decoders.segmentation.semantic import ConvDecoder1x1
from eva.vision.utils import io

pytestmark = pytest.mark.integration


class Pictures(VisionDataset):
    """Image files of classes 0, 1 …"""

    def __init__(self, paths, transforms) -> None:
        super().__init__(transforms)
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def filename(self, index: int) -> str:
        return self.paths[index].name

    def load_data(self, index: int):
        return io.read_image_as_tensor(str(self.paths[index]))

    def load_target(self, index: int):
        return torch.tensor(index)


def test_stored_embeddings_are_ours(pictures, spec, tmp_path):
    """``predict`` with the writer of embeddings, configured as in a YAML file."""
    name, options = spec
    arguments = {"name": name, **options}
    module = ModelFromFunction(path=backbones.as_eva, arguments=arguments)
    dataset = Pictures(pictures, module.model.transform)
    writer = ClassificationEmbeddingsWriter(str(tmp_path), dataloader_idx_map={0: "train"})
    trainer = Trainer(
        default_root_dir=str(tmp_path),
        accelerator="cpu",
        callbacks=[writer],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(batch_size=3, num_workers=0, prefetch_factor=None, persistent_workers=False)
    data = DataModule(DatasetsSchema(predict=[dataset]), DataloadersSchema(predict=loader))
    head = HeadModule(
        torch.nn.Linear(module.model.model.embed_dim, 3), torch.nn.CrossEntropyLoss(), module
    )
    trainer.predict(head, data)
    stored = [torch.load(tmp_path / f"{path.stem}.pt") for path in pictures]
    backbone = backbones.create(name, **options)
    stored = torch.stack([each[0] if isinstance(each, list) else each for each in stored])
    assert difference(ours(backbone, pictures), stored) <= TOLERANCE


def test_segmentation_decodes_our_maps(pictures, spec):
    name, options = spec
    encoder = backbones.as_eva(name, maps=True, **options)
    backbone = backbones.create(name, **options)
    images = torch.stack([image for image, *_ in Pictures(pictures, encoder.transform)])
    with torch.inference_mode():
        expected, maps = backbone(in_memory_format(images, backbone)), encoder(images)
        assert isinstance(maps, list) and len(maps) == len(backbone.channels)
        for ours_, theirs in zip(expected, maps, strict=True):
            assert difference(ours_, theirs) <= TOLERANCE
        decoder = ConvDecoder1x1(sum(backbone.channels), 5)
        module = SemanticSegmentationModule(decoder, torch.nn.CrossEntropyLoss(), encoder)
        module.configure_model()
        size = backbone.data.size
        assert module(images, to_size=size).shape == (3, 5, *size)


@pytest.mark.parametrize("shape", [(90, 140), (1, 90, 140)])
def test_masks_are_cropped_as_their_images(clip_weights, shape):
    """Black where the class is 0, white where it is 300."""
    transform = backbones.as_eva("cliptex", weights=clip_weights).transform
    yes = np.add.outer(np.arange(90), np.arange(140)) > 100
    mask = tv_tensors.Mask(torch.tensor(yes * 300).reshape(shape))
    image = tv_tensors.Image(torch.tensor(yes * 255, dtype=torch.uint8).expand(3, -1, -1))
    image, mask = transform(image, mask)
    assert mask.shape == (*shape[:-2], 64, 64) and mask.dtype == torch.int64
    assert set(mask.unique().tolist()) == {0, 300}
    assert ((image[0] > image[0].mean()) == (mask.reshape(64, 64) > 0)).float().mean() > 0.97
