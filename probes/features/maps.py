"""Feature maps of views of images for datasets of mmengine's: ``FeatureDataset`` brings them there,
and ``FixedCrop`` makes views that can be stored."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmcv.transforms import BaseTransform, Resize
from mmengine.dataset import pseudo_collate
from mmengine.registry import FUNCTIONS, MODELS, TRANSFORMS, DefaultScope

from cliptex_common.device import is_accelerator, isolated_rng, takes_pinned_memory
from cliptex_common.files import content_key, derive_seed
from cliptex_common.images import image_size
from cliptex_common.process import DENSE_LIBRARIES, versions
from probes.base import EncodeContext
from probes.features.files import content_hash, content_hashes
from probes.features.store import DTYPES, CacheKey, FeatureStore
from probes.features.views import Encoded, Views
from probes.upsamplers.names import HUB_SOURCES


class Crop(NamedTuple):
    """One crop: its number, and whether it is flipped left to right."""

    number: int
    flipped: bool


def all_crops(fixed_crops: int, flip: float) -> list[Crop]:
    """Every crop that may be drawn, in the order of the cached features."""
    return [Crop(number, flipped) for number in range(fixed_crops) for flipped in flips(flip)]


def flips(probability: float) -> list[bool]:
    """Whether an image is flipped: what may be drawn with this probability of a flip."""
    possible = {False: probability < 1, True: probability > 0}
    return [flipped for flipped, is_possible in possible.items() if is_possible]


def draw_crop(fixed_crops: int, flip: float) -> Crop:
    """One crop, by numpy's generator (which the sample's index seeds)."""
    return Crop(int(np.random.randint(fixed_crops)), bool(np.random.random() < flip))


@TRANSFORMS.register_module()
class FixedCrop(BaseTransform):
    """Resize, crop and flip an image, and its ground truth if loaded, to one of ``fixed_crops``
    crops, which follow from the image's content alone. So each crop is encoded once, and all
    backbones and all tasks on the same images see the same crops.

    Number 0 is the centre crop at scale 1. Any other is resized by a factor of ``scale_range`` and
    cropped at a random position; the seed is (sha256 of the image file, number). ``draw_crop``
    chooses the number unless ``results["crop"]`` has one. Images smaller than the crop are padded
    later.

    Args:
        size: short side in pixels at scale 1 (the long side is at most 4 times as long).
        crop: side of the square crop.
        scale_range: smallest and largest factor.
        fixed_crops: number of crops to draw from.
        flip: probability of a flip.
    """

    def __init__(
        self, size: int, crop: int, scale_range: Sequence[float], fixed_crops: int, flip: float
    ) -> None:
        self.size, self.crop, self.scale_range = size, crop, tuple(scale_range)
        self.fixed_crops, self.flip = fixed_crops, flip

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        crop = (
            Crop(*results["crop"]) if "crop" in results else draw_crop(self.fixed_crops, self.flip)
        )
        random = None
        if crop.number:
            # every crop follows from this seed, the word "view" included
            random = np.random.default_rng(
                derive_seed("view", content_hash(results["img_path"]), crop.number)
            )
        factor = 1.0 if random is None else random.uniform(self.scale_range[0], self.scale_range[1])
        scale = (int(4 * self.size * factor), int(self.size * factor))
        results = Resize(scale=scale, keep_ratio=True).transform(results)
        margins = [max(side - self.crop, 0) for side in results["img"].shape[:2]]
        y, x = (
            margin // 2 if random is None else int(random.integers(margin + 1))
            for margin in margins
        )
        for name in ("img", "gt_seg_map"):
            if name in results:
                array = results[name][y : y + self.crop, x : x + self.crop]
                results[name] = np.ascontiguousarray(array[:, ::-1] if crop.flipped else array)
        results["img_shape"] = results["img"].shape[:2]
        results["flip"] = crop.flipped
        results["flip_direction"] = "horizontal" if crop.flipped else None
        return results


Part = dict[str, Any]  # of a config
BATCH = 32
# of a batch on a CPU, whose maps are in memory together (of 224 px 8 images)
CPU_PIXELS = 8 * 224**2
ROUNDED = ("fp16", "bf16")  # precisions of stores that round what a backbone gives
META_KEYS = ("ori_shape", "img_shape", "pad_shape", "img_padding_size", "scale_factor")


def encoder_config(
    backbone: Mapping[str, Any], data_preprocessor: Mapping[str, Any], cache: str, device: str
) -> Part | None:
    """The argument ``encoder`` of a ``FeatureDataset``.

    Args:
        backbone, data_preprocessor: configs of the ``FrozenBackbone`` and of what prepares images
            for it.
        cache: precision of the features in the store, ``fp32``, ``fp16`` or ``bf16``; ``none`` for
            a dataset of images.
        device: type of the device that encodes (``cpu`` …); part of the features' identity.
    """
    if cache == "none":
        return None
    parts = {"backbone": dict(backbone), "data_preprocessor": dict(data_preprocessor)}
    return {**parts, "dtype": cache, "device": device}


def loader_config(encoder: Mapping[str, Any] | None) -> Part:
    """Options of a loader of a ``FeatureDataset``."""
    options: Part = {"collate_fn": {"type": "collate_views"}}
    if encoder:  # reading mapped files is faster than passing them on
        options |= {"num_workers": 0, "persistent_workers": False}
    return options


@TRANSFORMS.register_module()
class LoadBlank(BaseTransform):
    """Load a black image of the file's size: only the header is read.

    Raises:
        UserError: the file cannot be read.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        width, height = image_size(results["img_path"])
        results["img"] = np.zeros((height, width, 3), np.uint8)
        results["img_shape"] = results["ori_shape"] = (height, width)
        return results


def without_images(pipeline: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A pipeline for ground truth alone, with ``LoadBlank``."""
    return [
        {"type": "LoadBlank"} if part["type"] == "LoadImageFromFile" else dict(part)
        for part in pipeline
    ]


@FUNCTIONS.register_module()
def collate_views(items: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A batch as lists over its images, of which each has one tensor, or its maps together.
    (mmengine's own makes a list of each level.)"""
    return {name: [item[name] for item in items] for name in items[0]}


class FeatureDataset:
    """What datasets of mmengine's share that deliver images or, with an ``encoder``, the feature
    maps of a frozen backbone: heads, losses, schedules and evaluators are the same either way. No
    image is decoded once the features are in the store.

    An item has ``inputs``, an image (3, H, W) or its maps (C, h, w) in the precision of the store,
    and ``data_samples`` with its ground truth.

    Attributes:
        encoder: see ``encoder_config``; empty for images.
        scope: mmengine's, of the encoder's configs.
        name: of the set, for people.
        stores: of features and perhaps ground truth, while they are open.
    """

    # no ABC: a subclass is also a dataset of mmengine's
    encoder: Mapping[str, Any]
    scope: str
    name: str
    stores: Sequence[FeatureStore] = ()

    @abstractmethod
    def ground_truth(self, index: int) -> Any:
        """The ``data_samples`` of an item, by the same random numbers. No image is decoded."""

    @abstractmethod
    def load(self, item: int) -> dict[str, Any]:
        """``inputs`` (3, H, W) and ``data_samples`` of a view, as a pipeline packs them, in any
        process. Raises ``UserError`` when the image cannot be read."""

    @abstractmethod
    def views(self, context: EncodeContext, frozen: Any = None) -> MapViews:
        """The views that features are made of.

        Args:
            frozen: see ``MapViews``.
        """

    def feature_store(self) -> FeatureStore:
        """The store of features; the first call opens it, and encodes what is missing."""
        if not self.stores:
            self.open()
        return self.stores[0]

    def open(self, context: EncodeContext | None = None) -> None:
        """Open the stores, building missing ones, and lock them against removal until ``close``.
        Does nothing without an encoder.

        Raises as ``get_or_build`` and ``Views.items``.
        """
        self.close()
        if self.encoder:
            views = self.views(context or EncodeContext(torch.device(self.encoder["device"])))
            self.stores = [views.open()]

    def close(self) -> None:
        """Release the stores."""
        for store in self.stores:
            store.close()
        self.stores = ()

    def image_hash(self) -> str:
        """A hash of the content of all images in their order."""
        paths = [Path(self.get_data_info(index)["img_path"]) for index in range(len(self))]  # type: ignore[attr-defined, arg-type]
        return content_key(content_hashes(paths), 64)


class MapViews(Views):
    """The feature maps of views of a ``FeatureDataset``.

    Args:
        identity: what the maps follow from besides the encoder and the type of device (which rounds
            differently): images, pipeline, crops.
        frozen: images → maps, which are not stored; None for the ``FrozenBackbone`` of the encoder.
    """

    def __init__(
        self,
        context: EncodeContext,
        dataset: FeatureDataset,
        sizes: Sequence[tuple[int, ...]],
        identity: Mapping[str, Any],
        frozen: Any = None,
    ) -> None:
        self.dataset, self.identity, self.are_stored = dataset, identity, frozen is None
        encoder = dataset.encoder
        import_module("probes.train.frozen_backbone")  # registers what encoders name
        with DefaultScope.overwrite_default_scope(dataset.scope):
            self.frozen: Any = (frozen or MODELS.build(encoder["backbone"])).to(context.device)
            self.preprocess: Any = MODELS.build(encoder["data_preprocessor"]).to(context.device)
        self.preprocess._non_blocking = takes_pinned_memory(context.device)
        super().__init__(context, f"{self.frozen.backbone.name} on {dataset.name}", BATCH, sizes)

    def load(self, item: int) -> dict[str, Any]:
        with isolated_rng():  # flipping an image with probability 0 or 1 draws a number, too
            return self.dataset.load(item)

    def encode(self, batch: Any) -> Encoded:
        prepared = self.preprocess(pseudo_collate(batch), False)
        maps = self.frozen(prepared["inputs"])
        return maps, [_shapes(sample.metainfo) for sample in prepared["data_samples"]]

    def largest_batch(self, size: tuple[int, ...]) -> int:
        if is_accelerator(self.context.device):
            return BATCH
        return min(BATCH, max(2, CPU_PIXELS // math.prod(size)))

    def key(self) -> CacheKey:
        backbone, levels = self.frozen.backbone, self.frozen.levels
        dtype = self.dataset.encoder["dtype"]
        identity = {
            **self.identity,
            "backbone": backbone.identity(),
            "layers": list(self.frozen.out_indices),
            "precision": self.frozen.precision,
            "data_preprocessor": self.dataset.encoder["data_preprocessor"],
            "device": self.context.device.type,
            "libraries": versions(*DENSE_LIBRARIES),
        }
        if cut := getattr(self.frozen, "cut", None):
            identity["cut"] = cut.names
        if upsampler := dict(self.dataset.encoder["backbone"].get("upsampler") or {}):
            source = HUB_SOURCES.get(upsampler["name"])
            identity["upsampler"] = {**upsampler, **(asdict(source) if source else {})}
        item_bytes = [maps_bytes(levels, backbone.divisor, size, dtype) for size in self.sizes]
        return CacheKey("dense maps", self.name, identity, (dtype,) * len(levels), item_bytes)


def maps_bytes(
    levels: Sequence[tuple[int, float]], divisor: int, size: tuple[int, ...], dtype: str
) -> int:
    """Bytes of the maps of an image of ``size`` (height, width), padded to the divisor.

    Args:
        levels: channels and stride of each map.
    """
    height, width = (-(-side // divisor) * divisor for side in size)
    cells = [
        channels * round(height / stride) * round(width / stride) for channels, stride in levels
    ]
    return sum(cells) * DTYPES[dtype].itemsize


def _shapes(metainfo: Mapping[str, Any]) -> dict[str, list[float]]:
    """``META_KEYS`` of a sample, JSON-able."""
    return {
        name: [float(value) if isinstance(value, float) else int(value) for value in metainfo[name]]
        for name in META_KEYS
        if name in metainfo
    }
