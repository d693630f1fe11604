"""Detection probes on kept features: in mmdet's terms the dataset delivers the maps below the trained pyramid, and the
backbone only reads them. Pyramid, heads, losses and evaluator are those of the uncached config.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import probes.runner.bridge  # first: it gives mmcv the operators that mmdet's import asks for

# isort: split
import mmcv
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.utils.misc import samplelist_boxtype2tensor
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

import probes.runner.batches  # registers what the config names
from backbones.files import content_key
from probes.base import Progress
from probes.features.content_hashes import digests
from probes.features.cost import EncodeCost
from probes.features.crops import image_size
from probes.features.precompute import keeping
from probes.features.store import Store, ensure

Part = dict[str, Any]  # of a config
OWN_MODULES = ("probes.detection.cache", "probes.features.precompute", "probes.runner.batches")
AT_ONCE = 16  # images of an evaluation's batch at most
OF_THE_IMAGE = ("LoadImageFromFile", "Resize", "PackDetInputs")


def cached(config: Config, dtype: str, flip: float, device: torch.device) -> Config:
    """``config`` (of ``probes.detection.probe``) on features that are kept in ``dtype``."""
    encoder = {"backbone": config.model.backbone, "data_preprocessor": config.model.data_preprocessor}
    config = copy.deepcopy(config)
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.dataset = {
            "type": "CachedInstances", "dataset": loader.dataset, "encoder": copy.deepcopy(encoder), "dtype": dtype,
            "flip": 0.0 if loader.dataset.get("test_mode") else flip, "device": device.type,
        }  # fmt: skip
        loader.num_workers = 0
        loader.persistent_workers = False
    config.val_dataloader.update(batch_size=AT_ONCE, batch_sampler={"type": "SameShapeBatches"})
    stack = config.model.data_preprocessor
    config.model.data_preprocessor = {
        "type": "StackDetFeatures", "pad_mask": stack.pad_mask, "pad_size_divisor": stack.pad_size_divisor,
    }  # fmt: skip
    config.model.backbone = {"type": "KeptFeatures"}
    config.custom_imports.imports = [*config.custom_imports.imports, *OWN_MODULES]
    return config


@DATASETS.register_module()
class CachedInstances(Dataset):
    """Feature maps and instances of a ``CocoInstances``; what is not kept yet is made when the set is first used.

    The truth goes through the uncached pipeline, on a black image of the file's size (nothing is decoded); then the maps
    of the image, or of its mirror image if the pipeline turned it, take the image's place.

    Args:
        dataset: config of the ``CocoInstances`` with its uncached pipeline.
        encoder: configs of ``backbone`` (a ``FrozenBackbone``) and ``data_preprocessor``.
        dtype: that features are kept in: ``fp32``, ``fp16`` or ``bf16``.
        flip: probability that the pipeline turns an image.
        device: type of the device that encodes.
    """

    def __init__(
        self, dataset: Mapping[str, Any], encoder: Mapping[str, Any], dtype: str, flip: float, device: str
    ) -> None:
        self.encoder, self.dtype, self.device = dict(encoder), dtype, device
        pipeline = [dict(part) for part in dataset["pipeline"]]
        black = [{"type": "LoadBlank"} if part["type"] == "LoadImageFromFile" else part for part in pipeline]
        self.instances: Any = DATASETS.build({**dataset, "pipeline": black})
        self.instances.full_init()
        self.name = Path(self.instances.ann_file).stem
        self.turns = [turned for turned in (False, True) if (flip > 0 if turned else flip < 1)]
        self.blind = [part for part in pipeline if part["type"] in OF_THE_IMAGE]
        self.blind[-1] = {"type": "PackDetInputs", "meta_keys": ("img_id", "ori_shape", "img_shape", "scale_factor")}
        self._by_id = {self._info(index)["img_id"]: index for index in range(len(self))}
        self._features: Store | None = None

    @property
    def metainfo(self) -> dict[str, Any]:
        return self.instances.metainfo

    @property
    def dropped_empty(self) -> int:
        return self.instances.dropped_empty

    @property
    def notes(self) -> list[str]:
        """What was found damaged and made again."""
        return list(self._features.notes) if self._features else []

    def __len__(self) -> int:
        return len(self.instances)

    @property
    def features(self) -> Store:
        """What is kept: opened, and made where it is not there, when it is first asked for."""
        if self._features is None:
            self.open()
        assert self._features is not None
        return self._features

    def __getitem__(self, index: int) -> dict[str, Any]:
        packed = self.instances[index]
        sample = packed["data_samples"]
        # by its id: where no object is left on the image, mmengine draws another one
        place = self._by_id[sample.img_id] * len(self.turns) + self.turns.index(bool(sample.get("flip", False)))
        sample.set_metainfo({"pad_shape": tuple(self.features.facts(place)["pad_shape"])})
        return {"inputs": tuple(self.features[place]), "data_samples": sample}

    def shape(self, index: int) -> tuple[int, ...]:
        """Height and width of a test image as the backbone saw it, padded, and within its padding."""
        facts = self.features.facts(index * len(self.turns))
        return *facts["pad_shape"][:2], *facts["img_shape"][:2]

    def open(
        self,
        progress: Progress | None = None,
        workers: int = 2,
        device: torch.device | None = None,
        cost: EncodeCost | None = None,
    ) -> None:
        """Open what is kept, making what is not. Raises as ``ensure`` and ``encode_maps`` do."""

        def wait() -> None:
            if progress:
                progress.start(f"waiting for the process that encodes {self.name}", 1)

        self.close()
        cost = cost or EncodeCost()
        paths = [self._info(index)["img_path"] for index in range(len(self))]
        with DefaultScope.overwrite_default_scope("mmdet"):
            pipelines = {
                turned: Compose([*self.blind[:-1], *([_turn()] if turned else []), self.blind[-1]])
                for turned in self.turns
            }
        resize = next(part for part in self.blind if part["type"] == "Resize")
        scale = tuple(resize["scale"])
        sizes: list[tuple[int, int]] = []
        for path in paths:
            fitted = mmcv.rescale_size(image_size(path), scale) if resize["keep_ratio"] else scale
            sizes += [fitted[::-1]] * len(self.turns)

        def load(item: int) -> dict[str, Any]:
            index, turn = divmod(item, len(self.turns))
            return pipelines[self.turns[turn]](self._info(index))

        identity = {
            "images": content_key(digests([Path(path) for path in paths]), 64), "pipeline": self.blind[:-1],
            "turned": self.turns,
        }  # fmt: skip
        recipe, make = keeping(
            self.encoder, "mmdet", load, sizes, identity, self.dtype, about=self.name,
            device=torch.device(device or self.device), workers=workers, progress=progress,
            cost=cost,
        )  # fmt: skip
        with cost.timed(), probes.runner.bridge.isolated_rng():  # turning an image draws, though it is certain
            self._features = ensure(recipe, make, wait=wait)

    def close(self) -> None:
        """Let go of the files."""
        if self._features is not None:
            self._features.close()
        self._features = None

    def _info(self, index: int) -> dict[str, Any]:
        return self.instances.get_data_info(index)


@MODELS.register_module()
@probes.runner.bridge.mmdet.registry.MODELS.register_module()
class StackDetFeatures(DetDataPreprocessor):
    """In the place of ``DetDataPreprocessor``: a batch of kept maps to the device, padded with zeros at the right and
    the bottom to the largest, and what mmdet's heads ask of the samples."""

    def forward(self, data: Mapping[str, Any], training: bool = False) -> dict[str, Any]:
        data = self.cast_data({"inputs": [list(maps) for maps in data["inputs"]], "data_samples": data["data_samples"]})
        samples = data["data_samples"]
        shape = tuple(max(sample.pad_shape[side] for sample in samples) for side in (0, 1))
        for sample in samples:
            sample.set_metainfo({"batch_input_shape": shape})
        samplelist_boxtype2tensor(samples)
        if self.pad_mask and training:
            self.pad_gt_masks(samples)
        return {"inputs": tuple(stacked(maps) for maps in data["inputs"]), "data_samples": samples}


def stacked(maps: Sequence[Tensor]) -> Tensor:
    """(C, h, w) maps of several sizes → (N, C, H, W) of the largest, zeros at the right and the bottom."""
    height, width = (max(one.shape[side] for one in maps) for side in (1, 2))
    return torch.stack([F.pad(one, (0, width - one.shape[2], 0, height - one.shape[1])) for one in maps])


def _turn() -> Part:
    return {"type": "RandomFlip", "prob": 1.0}
