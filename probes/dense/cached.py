"""Dense probes on kept features: in mmseg's terms the dataset delivers feature maps and the
backbone only reads them.

Head, loss, schedule and evaluator are those of the uncached config; see
``probes.features.feature_dataset``.
The dataset carries all that its features follow from, so that a dumped config makes what is missing
wherever it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import probes.runner.bridge  # noqa: F401  first: it gives mmcv the operators that mmseg's import asks for

# isort: split
import mmcv
import torch
from mmengine.config import Config
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import DefaultScope
from mmseg.registry import DATASETS, MODELS

from common.files import content_key
from probes.base import Progress
from probes.dense.data import FIELDS, LoadGroundTruth, channels_first, dense_sample
from probes.features.content_hashes import content_hashes
from probes.features.cost import EncodeRun
from probes.features.crops import Crop, all_crops, draw_crop, image_size
from probes.features.feature_dataset import FeatureDataset, Part, part_of, use_cached_features
from probes.features.store import DTYPES, Builder, CacheKey
from probes.runner.batches import at_once

AT_ONCE = 32  # images of an evaluation's batch at most


def cached(
    config: Config, dtype: str, fixed_crops: int, flip: float, device: torch.device
) -> Config:
    """``config`` (of ``probes.dense.config``, with fixed crops) on features that are kept in
    ``dtype``."""
    config.custom_imports.imports = [*config.custom_imports.imports, "probes.dense.cached"]
    config.val_dataloader.update(at_once(AT_ONCE, device))
    return use_cached_features(
        config,
        dtype,
        device,
        "CachedDense",
        stack={"type": "StackFeatures"},
        train={
            "fixed_crops": 0 if config.train_dataloader.dataset.test_mode else fixed_crops,
            "flip": flip,
        },
        val={"fixed_crops": 0, "flip": flip},
    )


@DATASETS.register_module()
class CachedDense(FeatureDataset):
    """Feature maps and ground truth of a ``DenseDataset``.

    An item has ``inputs``: the maps (C, h, w) of the frozen backbone in ``dtype``, and
    ``data_samples`` as the uncached pipeline packs them. In training the crop is drawn by numpy's
    generator, as the uncached pipeline draws it.

    Args:
        dataset: config of the ``DenseDataset`` with its uncached pipeline.
        fixed_crops, flip: see ``probes.features.crops``; 0 for the whole images of a test pipeline.
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
        # the same crops of the same images are the same features, whatever the task
        self.image_only = [
            _image_only(part)
            for part in self.pipeline
            if part["type"] not in ("LoadGroundTruth", "FlipNormals")
        ]
        source = DATASETS.build({**self.config, "pipeline": self.image_only})
        super().__init__(source, f"{source.spec.name} ({source.split})", encoder, dtype, device)
        self.field = FIELDS[source.spec.kind]
        self.all_crops = all_crops(fixed_crops, flip) if fixed_crops else []
        self._load_ground_truth = LoadGroundTruth(
            **{k: v for k, v in part_of(self.pipeline, "LoadGroundTruth").items() if k != "type"}
        )

    def __getitem__(self, index: int) -> dict[str, Any]:
        features = self.features
        info = self.source.get_data_info(index)
        if not self.fixed_crops:
            metadata = {**info, **_tuples(features.metadata(index))}
            truth = channels_first(self.load_truth(metadata))
            return self._item(index, metadata, truth)
        place = self.place(index, draw_crop(self.fixed_crops, self.flip))
        metadata = {
            "image": info["image"],
            "img_path": info["img_path"],
            **_tuples(self.stores[1].metadata(place)),
        }
        (truth,) = self.stores[1][place]
        return self._item(place, metadata, truth)

    def _item(self, place: int, metadata: Mapping[str, Any], truth: torch.Tensor) -> dict[str, Any]:
        return {
            "inputs": tuple(self.features[place]),
            "data_samples": dense_sample(metadata, self.field, truth),
        }

    def place(self, index: int, crop: Crop) -> int:
        """Where the features of a crop of an image are."""
        return index * len(self.all_crops) + self.all_crops.index(crop)

    def keys(self, run: EncodeRun) -> Iterator[tuple[CacheKey, Builder]]:
        infos = self.infos()
        images = content_key(
            content_hashes([self.source.root / info["image"] for info in infos]), 64
        )
        if self.fixed_crops:
            sizes = [(part_of(self.pipeline, "FixedCrop")["crop"],) * 2] * (
                len(infos) * len(self.all_crops)
            )
        else:
            sizes = self.sizes()
        identity = {"images": images, "pipeline": self.image_only, "crops": self.all_crops}
        yield self.maps(sizes, identity, run)
        if self.fixed_crops:
            yield self._cutting(infos, images, run.progress)

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each whole image as the test pipeline resizes it."""
        scale = tuple(part_of(self.pipeline, "Resize")["scale"])
        return [
            mmcv.rescale_size(image_size(info["img_path"]), scale)[::-1] for info in self.infos()
        ]

    def load_truth(self, metadata: Mapping[str, Any]) -> Any:
        """The ground truth of a sample at its own resolution, as ``LoadGroundTruth`` gives it."""
        return self._load_ground_truth.transform(dict(metadata))["gt_seg_map"]

    def load(self, item: int) -> dict[str, Any]:
        return self.source.pipeline(self._info(item))

    def _info(self, item: int) -> dict[str, Any]:
        """The sample of an item of a store, with the crop to take."""
        if not self.fixed_crops:
            return self.source.get_data_info(item)
        image, crop = divmod(item, len(self.all_crops))
        return {**self.source.get_data_info(image), "crop": tuple(self.all_crops[crop])}

    def _cutting(
        self, infos: Sequence[Mapping[str, Any]], images: str, progress: Progress
    ) -> tuple[CacheKey, Builder]:
        """The ground truth of each crop: it depends on no backbone, and cutting it anew would mean
        to decode it anew."""
        spec, pipeline = self.source.spec, [_without_pixels(part) for part in self.pipeline]
        kept = "fp32"
        if (
            self.field == "gt_sem_seg"
        ):  # uint16 where a label, or the value to ignore, does not fit into a byte
            fits = (
                part_of(pipeline, "LoadGroundTruth").get("classes", 0) <= 255
                and 0 <= spec.ignore_index <= 255
            )
            kept = "uint8" if fits else "uint16"
        cells = part_of(pipeline, "FixedCrop")["crop"] ** 2 * (
            3 if self.field == "gt_normal_map" else 1
        )
        each = [cells * DTYPES[kept].itemsize] * (len(infos) * len(self.all_crops))
        truth = content_key(content_hashes([Path(info["target_path"]) for info in infos]), 64)
        identity = {
            "images": images,
            "ground truth": truth,
            "pipeline": pipeline,
            "crops": self.all_crops,
        }

        def build(wanted: Sequence[Sequence[int]]) -> Any:
            with DefaultScope.overwrite_default_scope("mmseg"):
                cutter = DATASETS.build({**self.config, "pipeline": pipeline})
            progress.start(f"cutting the ground truth of {spec.name}", sum(map(len, wanted)))
            for item in (item for shard in wanted for item in shard):
                sample = cutter.pipeline(self._info(item))["data_samples"]
                shapes = {
                    key: [int(side) for side in sample.metainfo[key]]
                    for key in ("ori_shape", "img_shape")
                }
                yield item, [sample.get(self.field).data.to(DTYPES[kept])], shapes
                progress.advance()

        return CacheKey("ground truth", self.name, identity, (kept,), each), build


def _without_pixels(part: Part) -> Part:
    """Ground truth needs no pixels, only their number."""
    if part["type"] == "LoadImageFromFile":
        return {"type": "LoadBlank"}
    return {**part, "image": [0, 0, 0]} if part["type"] == "PadCrop" else part


@MODELS.register_module()
class StackFeatures(BaseDataPreprocessor):
    """In the place of ``SegDataPreProcessor``: a batch of kept maps to the device, each map stacked
    over the batch."""

    def forward(self, data: Mapping[str, Any], training: bool = False) -> dict[str, Any]:
        maps = self.cast_data(tuple(torch.stack(list(each)) for each in data["inputs"]))
        return {"inputs": maps, "data_samples": self.cast_data(data.get("data_samples"))}


def _image_only(part: Part) -> Part:
    """A transform's config without what only concerns the ground truth."""
    if part["type"] == "PackDense":
        return {**part, "kind": "segmentation"}
    return {**part, "truth": 0} if part["type"] == "PadCrop" else part


def _tuples(shapes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) for key, value in shapes.items()}
