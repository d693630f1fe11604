"""Detection probes on kept features: in mmdet's terms the dataset delivers the maps below the trained pyramid, and the
backbone only reads them. Pyramid, heads, losses and evaluator are those of the uncached config.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

from backbones.files import content_key
from probes.base import Progress
from probes.features.content_hashes import content_hashes
from probes.features.cost import EncodeCost
from probes.features.crops import image_size
from probes.features.kept import FeatureDataset, on_kept_features, part_of
from probes.features.precompute import keeping
from probes.features.store import Builder, CacheKey

AT_ONCE = 16  # images of an evaluation's batch at most
OF_THE_IMAGE = ("LoadImageFromFile", "Resize", "PackDetInputs")
META_KEYS = ("img_id", "ori_shape", "img_shape", "scale_factor")


def cached(config: Config, dtype: str, flip: float, device: torch.device) -> Config:
    """``config`` (of ``probes.detection.probe``) on features that are kept in ``dtype``."""
    preprocess = config.model.data_preprocessor
    stack = {
        "type": "StackDetFeatures", "pad_mask": preprocess.pad_mask, "pad_size_divisor": preprocess.pad_size_divisor,
    }  # fmt: skip
    train, val = (
        {"flip": 0.0 if loader.dataset.get("test_mode") else flip}
        for loader in (config.train_dataloader, config.val_dataloader)
    )
    config.custom_imports.imports = [*config.custom_imports.imports, "probes.detection.cache"]
    return on_kept_features(
        config, dtype, device, "CachedInstances", train=train, val=val, stack=stack, at_once=AT_ONCE
    )


@DATASETS.register_module()
class CachedInstances(FeatureDataset):
    """Feature maps and instances of a ``CocoInstances``.

    The ground truth goes through the uncached pipeline, on a black image of the file's size (nothing is decoded); then the
    maps of the image, or of its mirror image if the pipeline flipped it, take the image's place.

    Args:
        dataset: config of the ``CocoInstances`` with its uncached pipeline.
        flip: probability that the pipeline flips an image.
        encoder, dtype, device: see ``FeatureDataset``.
    """

    def __init__(
        self, dataset: Mapping[str, Any], encoder: Mapping[str, Any], dtype: str, flip: float, device: str
    ) -> None:
        pipeline = [dict(part) for part in dataset["pipeline"]]
        black = [{"type": "LoadBlank"} if part["type"] == "LoadImageFromFile" else part for part in pipeline]
        source: Any = DATASETS.build({**dataset, "pipeline": black})
        super().__init__(source, Path(source.ann_file).stem, encoder, dtype, device)
        self.flips = [flipped for flipped in (False, True) if (flip > 0 if flipped else flip < 1)]
        self.image_only = [part for part in pipeline if part["type"] in OF_THE_IMAGE]
        self.image_only[-1] = {"type": "PackDetInputs", "meta_keys": META_KEYS}
        self._by_id = {info["img_id"]: index for index, info in enumerate(self.infos())}

    @property
    def dropped_empty(self) -> int:
        return self.source.dropped_empty

    def __getitem__(self, index: int) -> dict[str, Any]:
        packed = self.source[index]
        sample = packed["data_samples"]
        # by its id: where no object is left on the image, mmengine draws another one
        place = self._by_id[sample.img_id] * len(self.flips) + self.flips.index(bool(sample.get("flip", False)))
        sample.set_metainfo({"pad_shape": tuple(self.features.metadata(place)["pad_shape"])})
        return {"inputs": tuple(self.features[place]), "data_samples": sample}

    def keys(
        self, progress: Progress | None, workers: int, device: torch.device, cost: EncodeCost
    ) -> Iterator[tuple[CacheKey, Builder]]:
        infos = self.infos()
        flip = {False: [], True: [{"type": "RandomFlip", "prob": 1.0}]}
        with DefaultScope.overwrite_default_scope("mmdet"):
            pipelines = [
                Compose([*self.image_only[:-1], *flip[flipped], self.image_only[-1]]) for flipped in self.flips
            ]
        resize = part_of(self.image_only, "Resize")
        scale = tuple(resize["scale"])
        sizes: list[tuple[int, int]] = []
        for info in infos:
            fitted = mmcv.rescale_size(image_size(info["img_path"]), scale) if resize["keep_ratio"] else scale
            sizes += [fitted[::-1]] * len(self.flips)

        def load(item: int) -> dict[str, Any]:
            index, flipped = divmod(item, len(self.flips))
            return pipelines[flipped](self.source.get_data_info(index))

        images = content_key(content_hashes([Path(info["img_path"]) for info in infos]), 64)
        yield keeping(
            self.encoder, "mmdet", load, sizes,
            {"images": images, "pipeline": self.image_only[:-1], "flipped": self.flips}, self.dtype,
            about=self.name, device=device, workers=workers, progress=progress, cost=cost,
        )  # fmt: skip


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
