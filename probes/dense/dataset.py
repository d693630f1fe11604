"""Images with dense ground truth for mmseg: one dataset class for every ``DatasetSpec`` whose kind
is a dense task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mmcv
import torch
from mmcv.transforms import Resize
from mmengine.dataset import BaseDataset, Compose
from mmseg.models import SegDataPreProcessor
from mmseg.registry import DATASETS as MMSEG_DATASETS
from mmseg.registry import MODELS, TRANSFORMS
from torch import Tensor

from cliptex_common.files import content_key
from cliptex_common.images import image_size, spread_indices
from probes.base import EncodeContext, Progress
from probes.dense.pipelines import (
    ReadArea,
    ShortSide,
    channels_first,
    dense_sample,
    image_only,
)
from probes.dense.settings import bounds_read
from probes.dense.tasks import DENSE_TASKS
from probes.features.files import content_hashes
from probes.features.maps import (
    Crop,
    FeatureDataset,
    MapViews,
    all_crops,
    draw_crop,
    without_images,
)
from probes.features.store import DTYPES, Builder, CacheKey
from probes.features.views import open_store
from probes.pictures import GALLERY_IMAGES
from probes.registry import DATASETS


@MMSEG_DATASETS.register_module()
class DenseDataset(FeatureDataset, BaseDataset):
    """A split of a registered dataset, in its official order; see ``FeatureDataset``.

    Args:
        dataset: name in ``probes.registry.DATASETS``.
        root: its folder on this disk.
        split: ``train`` or ``val``.
        exclude: image paths (relative to ``root``) to leave out, because they cannot be read.
        pipeline: transforms of images and their ground truth.
        test_mode: as in mmengine: no retry with another sample.
        encoder: see ``probes.features.maps.encoder_config``. Features are those of
            complete images, or of the crops of a ``FixedCrop``, of which one is drawn by numpy's
            generator as the pipeline draws it; their ground truth is in the store as well, because
            cropping it again means decoding it again.

    Attributes:
        crops: that features are stored of; empty for complete images. An item of the store is a
            crop of an image, or an image.
        image_steps: the pipeline without ground truth.
        target_steps: the pipeline of the ground truth, on black images.

    Raises:
        UserError: the dataset is not known.
    """

    scope = "mmseg"

    def __init__(
        self,
        dataset: str,
        root: str,
        split: str,
        pipeline: Sequence[Mapping[str, Any]],
        exclude: Sequence[str] = (),
        test_mode: bool = False,
        encoder: Mapping[str, Any] | None = None,
    ) -> None:
        self.root, self.split, self.exclude = Path(root), split, frozenset(exclude)
        self.spec = DATASETS.find(dataset).at(self.root)
        self.encoder, self.name = encoder or {}, f"{self.spec.name} ({split})"
        self._field = f"gt_{DENSE_TASKS.find(self.spec.kind).field}"
        self.crops: list[Crop] = []
        self.image_steps, self.target_steps = image_only(pipeline), _without_images(pipeline)
        self._side = next((part["crop"] for part in pipeline if "crop" in part), 0)
        for part in pipeline:
            if part["type"] == "FixedCrop":
                self.crops = all_crops(part["fixed_crops"], part["flip"])
                self._draw_crop = partial(draw_crop, part["fixed_crops"], part["flip"])
            elif part["type"] == "LoadGroundTruth":
                self.load_ground_truth = TRANSFORMS.build(part)
        self._load_image, self._load_target = map(Compose, (self.image_steps, self.target_steps))
        # a sample that fails is never replaced by another one, which would change the metrics;
        # not serialised: mmengine would collect garbage, which takes longer than all else here
        super().__init__(
            metainfo={"classes": tuple(self.spec.class_names(self.root))},
            pipeline=list(pipeline),
            test_mode=test_mode,
            max_refetch=0,
            serialize_data=False,
        )
        images = [
            self.data_list[index]["image"] for index in spread_indices(len(self), GALLERY_IMAGES)
        ]
        self._metainfo["gallery"] = frozenset(images)  # what ``TaskScores`` keeps to be drawn

    def load_data_list(self) -> list[dict[str, Any]]:
        return [
            {
                "img_path": str(self.root / sample.image),
                "target_path": str(self.root / sample.target),
                "image": sample.image,
                "seg_fields": ["gt_seg_map"],
            }
            for sample in self.spec.list_samples(self.root, self.split)  # type: ignore[arg-type]
            if sample.image not in self.exclude
        ]

    def prepare_data(self, idx: int) -> dict[str, Any]:
        if not self.encoder:
            return super().prepare_data(idx)
        item = self._draw_item(idx)
        inputs = tuple(self.feature_store()[item])
        return {"inputs": inputs, "data_samples": self._sample(idx, item)}

    def ground_truth(self, index: int) -> Any:
        if not self.encoder:
            return self._load_target(self.get_data_info(index))["data_samples"]
        return self._sample(index, self._draw_item(index))

    def shape(self, index: int) -> tuple[int, ...]:
        """(height, width) of a test image; of features (height, width, height, width): those of the
        padded image first. Images of one shape can share a batch."""
        if not self.encoder:
            return self.resized_shape(index)
        metadata = self.feature_store().metadata(index)
        return *metadata["pad_shape"][:2], *metadata["img_shape"][:2]

    def resized_shape(self, index: int) -> tuple[int, int]:
        """(height, width) of an image as the test pipeline resizes it, without decoding it."""
        width, height = self.own_size(index)  # in this order, as mmcv counts
        for part in self.pipeline.transforms:
            if isinstance(part, ReadArea):
                y1, y2, x1, x2 = bounds_read(part.area, height, width)
                width, height = min(x2, width) - x1, min(y2, height) - y1
            if isinstance(part, ShortSide):
                width, height = part.new_size(width, height)
            elif isinstance(part, Resize) and part.keep_ratio:
                width, height = mmcv.rescale_size((width, height), part.scale)
            elif isinstance(part, Resize):
                width, height = part.scale
        return height, width

    def own_size(self, index: int) -> tuple[int, int]:
        """(width, height) of an image file, which its label map has too."""
        return image_size(self.get_data_info(index)["img_path"])

    def views(self, context: EncodeContext, frozen: Any = None) -> MapViews:
        """Each of the crops, or complete images as they are resized for tests."""
        sizes = [(self._side, self._side)] * (len(self) * len(self.crops))
        if not self.crops:
            sizes = [self.resized_shape(index) for index in range(len(self))]
        identity = {
            "images": self.image_hash(),
            "pipeline": self.image_steps,
            "crops": self.crops,
        }
        return MapViews(context, self, sizes, identity, frozen)

    def open(self, context: EncodeContext | None = None) -> None:
        super().open(context)
        if self.stores and self.crops:
            context = context or EncodeContext(torch.device("cpu"))
            self.stores = [
                *self.stores,
                open_store(*self._ground_truth_crops(context.progress), context),
            ]

    def load(self, item: int) -> dict[str, Any]:
        return self._load_image(self._info(item))

    def _draw_item(self, index: int) -> int:
        """The item of the store that is delivered of an image: its crop is drawn."""
        if not self.crops:
            return index
        return index * len(self.crops) + self.crops.index(self._draw_crop())

    def _sample(self, index: int, item: int) -> Any:
        """The sample of an image with the ground truth of an item of the store."""
        shapes = self.feature_store().metadata(item).items()
        metadata = {**self.get_data_info(index), **{name: tuple(shape) for name, shape in shapes}}
        if self.crops:
            (target,) = self.stores[1][item]
        else:
            target = channels_first(self.load_ground_truth(metadata)["gt_seg_map"])
        return dense_sample(metadata, self._field, target)

    def _info(self, item: int) -> dict[str, Any]:
        """The sample of an item of the store, with its crop."""
        if not self.crops:
            return self.get_data_info(item)
        image, crop = divmod(item, len(self.crops))
        return {**self.get_data_info(image), "crop": tuple(self.crops[crop])}

    def _ground_truth_crops(self, progress: Progress) -> tuple[CacheKey, Builder]:
        """The store of the ground truth of each crop, and what fills it."""
        spec, task = self.spec, DENSE_TASKS.find(self.spec.kind)
        dtype = task.stored_type(spec, len(self.metainfo["classes"]))
        item_bytes = self._side**2 * task.channels * DTYPES[dtype].itemsize
        targets = [Path(self.get_data_info(index)["target_path"]) for index in range(len(self))]
        identity = {
            "images": self.image_hash(),
            "ground truth": content_key(content_hashes(targets), 64),
            "pipeline": self.target_steps,
            "crops": self.crops,
            **DENSE_TASKS.origin(spec.kind),
        }

        def build(shards: Sequence[Sequence[int]]) -> Any:
            progress.start(f"cropping the ground truth of {spec.name}", sum(map(len, shards)))
            for item in (item for shard in shards for item in shard):
                sample = self._load_target(self._info(item))["data_samples"]
                target = sample.get(self._field).data
                yield item, [target.to(DTYPES[dtype])], {}
                progress.advance()

        sizes = [item_bytes] * (len(self) * len(self.crops))
        return CacheKey("ground truth", self.name, identity, (dtype,), sizes), build


def _without_images(pipeline: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A pipeline for ground truth alone: a transform of it needs the size of the image alone."""
    return [
        {**part, "image": [0, 0, 0]} if part["type"] == "PadCrop" else part
        for part in without_images(pipeline)
    ]


@MODELS.register_module()
class ViewsPreprocessor(SegDataPreProcessor):
    """``SegDataPreProcessor`` that takes the maps of images, too, which it stacks."""

    def forward(self, data: Mapping[str, Any], training: bool = False) -> dict[str, Any]:
        if isinstance(data["inputs"][0], Tensor):
            return super().forward(data, training)
        data = self.cast_data(data)
        return {**data, "inputs": tuple(map(torch.stack, zip(*data["inputs"], strict=True)))}
