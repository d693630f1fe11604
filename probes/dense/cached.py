"""Dense probes on cached features: the dataset delivers feature maps, and mmseg's model reads them.

Head, loss, schedule and evaluator are those of the uncached config; see
``probes.features.feature_dataset``. The dataset carries all that its features follow from, so a
dumped config encodes missing features wherever it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import DATASETS, FUNCTIONS, MODELS, TRANSFORMS, DefaultScope
from torch import Tensor

from cliptex_common.files import content_key
from probes.base import EncodeRun, Progress
from probes.dense.data import channels_first, dense_sample, image_only
from probes.dense.tasks import DENSE_TASKS
from probes.features.content_hashes import content_hashes
from probes.features.crops import all_crops, draw_crop, without_images
from probes.features.feature_dataset import FeatureDataset, part_of, use_cached_features
from probes.features.store import DTYPES, Builder, CacheKey


def cached(
    config: Config, dtype: str, fixed_crops: int, flip: float, device: torch.device
) -> Config:
    """``config`` (of ``probes.dense.config``, with fixed crops) on features that are cached in
    ``dtype``."""
    config.custom_imports.imports = [*config.custom_imports.imports, "probes.dense.cached"]
    config = use_cached_features(
        config,
        dtype,
        device,
        "CachedDense",
        stack={"type": "StackFeatures"},
        train={"fixed_crops": fixed_crops, "flip": flip},
        val={"fixed_crops": 0, "flip": flip},
    )
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.collate_fn = {"type": "collate_features"}
    return config


@DATASETS.register_module()
class CachedDense(FeatureDataset):
    """Feature maps and ground truth of a ``DenseDataset``.

    An item has ``inputs``: the maps (C, h, w) of the frozen backbone in ``dtype``, and
    ``data_samples`` as the uncached pipeline packs them. In training the crop is drawn by numpy's
    generator, as the uncached pipeline draws it.

    Args:
        dataset: config of the ``DenseDataset`` with its uncached pipeline.
        fixed_crops, flip: see ``probes.features.crops``; 0 crops for the complete images of a test
            pipeline.
        encoder, dtype, device: see ``FeatureDataset``.
    """

    scope = "mmseg"

    def __init__(
        self,
        dataset: Mapping[str, Any],
        encoder: Mapping[str, Any],
        dtype: str,
        fixed_crops: int,
        flip: float,
        device: str,
    ) -> None:
        self.config, self.fixed_crops, self.flip = dict(dataset), fixed_crops, flip
        self.pipeline = [dict(part) for part in self.config["pipeline"]]
        self.image_only = image_only(self.pipeline)
        source = DATASETS.build({**self.config, "pipeline": self.image_only})
        super().__init__(source, f"{source.spec.name} ({source.split})", encoder, dtype, device)
        self.field = f"gt_{DENSE_TASKS.find(source.spec.kind).field}"
        self.all_crops = all_crops(fixed_crops, flip)
        self.crop = next((part["crop"] for part in self.pipeline if "crop" in part), 0)
        self.load_ground_truth = TRANSFORMS.build(part_of(self.pipeline, "LoadGroundTruth"))

    def __getitem__(self, index: int) -> dict[str, Any]:
        features, item = self.features, index
        if self.fixed_crops:
            crop = self.all_crops.index(draw_crop(self.fixed_crops, self.flip))
            item = index * len(self.all_crops) + crop
        store = self.stores[-1]
        shapes = {name: tuple(shape) for name, shape in store.metadata(item).items()}
        metadata = {**self.source.get_data_info(index), **shapes}
        if self.fixed_crops:
            (target,) = store[item]
        else:
            target = channels_first(self.load_ground_truth(metadata)["gt_seg_map"])
        return {
            "inputs": tuple(features[item]),
            "data_samples": dense_sample(metadata, self.field, target),
        }

    def own_size(self, index: int) -> tuple[int, int]:
        return self.source.own_size(index)

    def keys(self, run: EncodeRun) -> Iterator[tuple[CacheKey, Builder]]:
        infos = self.infos()
        paths = [self.source.root / info["image"] for info in infos]
        images = content_key(content_hashes(paths), 64)
        identity = {"images": images, "pipeline": self.image_only, "crops": self.all_crops}
        yield self.maps(self.sizes(), identity, run)
        if self.fixed_crops:
            yield self._ground_truth_crops(infos, images, run.progress)

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each item: a crop, or a complete image as it is resized for tests."""
        if self.fixed_crops:
            return [(self.crop, self.crop)] * (len(self) * len(self.all_crops))
        return [self.source.shape(index) for index in range(len(self))]

    def load(self, item: int) -> dict[str, Any]:
        return self.source.pipeline(self._info(item))

    def _info(self, item: int) -> dict[str, Any]:
        """The sample of an item of a store, with its crop."""
        if not self.fixed_crops:
            return self.source.get_data_info(item)
        image, crop = divmod(item, len(self.all_crops))
        return {**self.source.get_data_info(image), "crop": tuple(self.all_crops[crop])}

    def _ground_truth_crops(
        self, infos: Sequence[Mapping[str, Any]], images: str, progress: Progress
    ) -> tuple[CacheKey, Builder]:
        """The ground truth of each crop, cached because cropping it again means decoding it
        again."""
        # a transform of ground truth needs the size of the image alone
        spec, pipeline = self.source.spec, without_images(self.config)["pipeline"]
        pipeline = [
            {**part, "image": [0, 0, 0]} if part["type"] == "PadCrop" else part for part in pipeline
        ]
        task = DENSE_TASKS.find(spec.kind)
        dtype = task.stored_type(spec, len(self.source.metainfo["classes"]))
        item_bytes = self.crop**2 * task.channels * DTYPES[dtype].itemsize
        hashes = content_hashes([Path(info["target_path"]) for info in infos])
        identity = {
            "images": images,
            "ground truth": content_key(hashes, 64),
            "pipeline": pipeline,
            "crops": self.all_crops,
            **DENSE_TASKS.origin(spec.kind),
        }

        def build(shards: Sequence[Sequence[int]]) -> Any:
            with DefaultScope.overwrite_default_scope("mmseg"):
                dataset = DATASETS.build({**self.config, "pipeline": pipeline})
            progress.start(f"cropping the ground truth of {spec.name}", sum(map(len, shards)))
            for item in (item for shard in shards for item in shard):
                sample = dataset.pipeline(self._info(item))["data_samples"]
                shapes = {
                    key: [int(side) for side in sample.metainfo[key]]
                    for key in ("ori_shape", "img_shape")
                }
                yield item, [sample.get(self.field).data.to(DTYPES[dtype])], shapes
                progress.advance()

        sizes = [item_bytes] * (len(infos) * len(self.all_crops))
        return CacheKey("ground truth", self.name, identity, (dtype,), sizes), build


@FUNCTIONS.register_module()
def collate_features(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of items, each map stacked over it, which a loader can then pin."""
    data = pseudo_collate(items)
    return {**data, "inputs": tuple(torch.stack(list(maps)) for maps in data["inputs"])}


@MODELS.register_module()
class StackFeatures(BaseDataPreprocessor):
    """Replaces ``SegDataPreProcessor``: brings a batch of cached maps to the device, each map
    stacked over the batch."""

    def forward(self, data: Mapping[str, Any], training: bool = False) -> dict[str, Any]:
        maps = tuple(
            each if isinstance(each, Tensor) else torch.stack(list(each)) for each in data["inputs"]
        )
        return {
            "inputs": self.cast_data(maps),
            "data_samples": self.cast_data(data.get("data_samples")),
        }
