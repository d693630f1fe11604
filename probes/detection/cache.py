"""Detection probes on cached features: those below the trained pyramid; see
``probes.features.feature_dataset``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import probes.runner.bridge  # noqa: F401  before mmdet, which it prepares

# isort: split
import numpy as np
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, DefaultScope

from cliptex_common.files import content_key
from probes.base import EncodeRun
from probes.features.content_hashes import content_hashes
from probes.features.crops import flips, without_images
from probes.features.feature_dataset import FeatureDataset
from probes.features.store import Builder, CacheKey

OF_THE_IMAGE = ("LoadImageFromFile", "Resize", "PackInstances")
META_KEYS = ("img_id", "ori_shape", "img_shape", "scale_factor")


@DATASETS.register_module()
class CachedInstances(FeatureDataset):
    """Feature maps and instances of a ``CocoInstances``.

    The ground truth goes through the uncached pipeline, on a black image of the file's size
    (nothing is decoded); then the maps of the image, or of its mirror image if the pipeline flipped
    it, replace the image.

    Args:
        dataset: config of the ``CocoInstances`` with its uncached pipeline.
        flip: probability that the pipeline flips an image.
        encoder, dtype, device: see ``FeatureDataset``.
    """

    scope = "mmdet"

    def __init__(
        self,
        dataset: Mapping[str, Any],
        encoder: Mapping[str, Any],
        dtype: str,
        flip: float,
        device: str,
    ) -> None:
        source: Any = DATASETS.build(without_images(dataset))
        super().__init__(source, Path(source.ann_file).stem, encoder, dtype, device)
        self.flips, self.dropped_empty = flips(flip), source.dropped_empty
        steps = [dict(step) for step in dataset["pipeline"] if step["type"] in OF_THE_IMAGE]
        self.image_only = steps[:-1]
        pack = {"type": "PackInstances", "meta_keys": META_KEYS}
        with DefaultScope.overwrite_default_scope("mmdet"):
            self._pipelines = [
                Compose([*self.image_only, {"type": "RandomFlip", "prob": float(flipped)}, pack])
                for flipped in self.flips
            ]
        self._by_id = {info["img_id"]: index for index, info in enumerate(self.infos())}

    def shape(self, index: int) -> tuple[int, int]:
        """Height and width of an image as the backbone sees it, without padding."""
        return self.source.shape(index)

    def arrange(self, order: np.ndarray, position: int) -> np.ndarray:
        """See ``CocoInstances``."""
        return self.source.arrange(order, position)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.source[index]["data_samples"]
        # by its id: where no object remains on the image, mmengine takes another image
        image, flipped = self._by_id[sample.img_id], bool(sample.get("flip", False))
        item = image * len(self.flips) + self.flips.index(flipped)
        sample.set_metainfo({"pad_shape": tuple(self.features.metadata(item)["pad_shape"])})
        return {"inputs": tuple(self.features[item]), "data_samples": sample}

    def keys(self, run: EncodeRun) -> Iterator[tuple[CacheKey, Builder]]:
        sizes = [self.shape(index) for index in range(len(self)) for _ in self.flips]
        images = content_key(content_hashes([Path(info["img_path"]) for info in self.infos()]), 64)
        identity = {"images": images, "pipeline": self.image_only, "flipped": self.flips}
        yield self.maps(sizes, identity, run)

    def load(self, item: int) -> dict[str, Any]:
        index, flipped = divmod(item, len(self.flips))
        return self._pipelines[flipped](self.source.get_data_info(index))
