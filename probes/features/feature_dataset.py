"""Datasets of mmengine's that deliver feature maps in place of images where their config has an
``encoder``: heads, losses, schedules and evaluators are the same either way.

Missing features are encoded when a set is opened: decoded in loading processes while the backbone
computes, in batches of one shape.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, groupby, islice
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import FUNCTIONS, MODELS, DefaultScope
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from backbones.base import Backbone
from backbones.versions import DENSE, versions
from cliptex_common.device import is_accelerator, takes_pinned_memory
from cliptex_common.errors import NonFiniteLoss, UserError
from cliptex_common.out_of_memory import Halving
from probes.base import EncodeRun
from probes.features.store import (
    DTYPES,
    Builder,
    CacheKey,
    FeatureStore,
    Metadata,
    all_finite,
    as_dtype,
    get_or_build,
)
from probes.runner import bridge

Part = dict[str, Any]  # of a config
BATCH = 32
# of a batch on a CPU: larger ones leave its cache (8 images of 224 px are twice as fast as 32)
CPU_PIXELS = 8 * 224**2
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


@FUNCTIONS.register_module()
def collate_views(items: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A batch as lists over its images, of which each has one tensor or its maps. (mmengine's own
    sorts maps by level.)"""
    return {name: [item[name] for item in items] for name in items[0]}


class FeatureDataset:
    """What datasets of mmengine's share that deliver images or, with an ``encoder``, the feature
    maps of a frozen backbone. Then no image is decoded once the features are in the store.

    An item has ``inputs``, an image (3, H, W) or its maps (C, h, w) in the precision of the store,
    and ``data_samples`` with its ground truth.

    Attributes:
        encoder: see ``encoder_config``; empty for images.
        scope: mmengine's, of the encoder's configs.
        name: of the set, for people.
        stores: of features and perhaps ground truth, while they are open.
    """

    encoder: Mapping[str, Any]
    scope: str
    name: str
    stores: Sequence[FeatureStore] = ()

    @abstractmethod
    def ground_truth(self, index: int) -> Any:
        """The ``data_samples`` of an item, by the same random numbers. No image is decoded."""

    @abstractmethod
    def keys(self, run: EncodeRun) -> Iterator[tuple[CacheKey, Builder]]:
        """The features (see ``maps``), then the ground truth where it is cached too."""

    @abstractmethod
    def load(self, item: int) -> dict[str, Any]:
        """``inputs`` (3, H, W) and ``data_samples`` of an item of the store of features, as a
        pipeline packs them, in any process. Raises ``UserError`` when the image cannot be read."""

    @property
    def features(self) -> FeatureStore:
        """The store of features, opened (and built) at first use."""
        if not self.stores:
            self.open()
        return self.stores[0]

    def open(self, run: EncodeRun | None = None) -> None:
        """Open the stores, building missing ones, and lock them against removal until ``close``.
        Does nothing without an encoder.

        Raises as ``get_or_build`` and ``encoded``.
        """
        self.close()
        if not self.encoder:
            return
        run = run or EncodeRun(torch.device(self.encoder["device"]))
        message = f"waiting for the process that encodes {self.name}"
        with bridge.isolated_rng():  # flipping an image draws, though it is certain
            for key, build in self.keys(run):
                with run.cost.phase("encode"):
                    store = get_or_build(key, build, wait=lambda: run.progress.start(message, 1))
                self.stores = [*self.stores, store]

    def close(self) -> None:
        """Release the stores."""
        for store in self.stores:
            store.close()
        self.stores = ()

    def infos(self) -> list[dict[str, Any]]:
        """All samples."""
        return [self.get_data_info(index) for index in range(len(self))]  # type: ignore[attr-defined, arg-type]

    def maps(
        self, sizes: Sequence[tuple[int, ...]], identity: Mapping[str, Any], run: EncodeRun
    ) -> tuple[CacheKey, Builder]:
        """The arguments of ``get_or_build`` for the maps of all items.

        Args:
            sizes: (height, width) of every item, to sort by.
            identity: what the maps follow from besides the encoder and the type of device (which
                rounds differently): images, pipeline, crops.
        """
        dtype = self.encoder["dtype"]
        with DefaultScope.overwrite_default_scope(self.scope):
            frozen = MODELS.build(self.encoder["backbone"])
        backbone, layers = frozen.backbone, list(frozen.out_indices)
        key = CacheKey(
            "dense maps",
            f"{backbone.name} on {self.name}",
            {
                **identity,
                "backbone": backbone.identity(),
                "layers": layers,
                "precision": frozen.precision,
                "data_preprocessor": self.encoder["data_preprocessor"],
                "device": run.device.type,
                "libraries": versions(*DENSE),
            },
            (dtype,) * len(layers),
            [maps_bytes(backbone, layers, size, dtype) for size in sizes],
        )
        return key, partial(self.encoded, frozen=frozen, sizes=sizes, run=run)

    @torch.inference_mode()
    def encoded(
        self,
        shards: Sequence[Sequence[int]],
        frozen: Any,
        sizes: Sequence[tuple[int, ...]],
        run: EncodeRun,
    ) -> Iterator[tuple[int, list[Tensor], Metadata]]:
        """(item, its maps (C, h, w) on the CPU, shapes of its image) of all items; a ``Builder``.

        Items of one shard come in the order of their sizes, so that they share batches.

        Raises:
            NonFiniteLoss: a map is not finite.
            UserError: an image cannot be read, or a map does not fit into fp16.
        """
        dtype = self.encoder["dtype"]
        with DefaultScope.overwrite_default_scope(self.scope):
            preprocess = MODELS.build(self.encoder["data_preprocessor"]).to(run.device)
        frozen = frozen.to(run.device)
        on_cpu = not is_accelerator(run.device)
        about = f"{frozen.backbone.name} on {self.name}"
        run.progress.start(f"encoding {about}", sum(map(len, shards)))
        preprocess._non_blocking = takes_pinned_memory(run.device)
        orders = [sorted(shard, key=lambda item: (sizes[item], item)) for shard in shards]
        loaded = _load(self.load, [item for order in orders for item in order], run)
        in_parts = Halving(BATCH, f"encoding {self.name}", run.cost.notes)

        def encode(part: Sequence[tuple[int, Any]]) -> list[tuple[int, list[Tensor], Metadata]]:
            batch = preprocess(pseudo_collate([packed for _, packed in part]), False)
            maps = frozen(batch["inputs"])
            if not all_finite(maps):
                raise NonFiniteLoss(f"feature maps of {about} are not finite")
            cast = [each.cpu() for each in as_dtype(maps, dtype, about)]
            return [
                (item, [each[index] for each in cast], _shapes(sample.metainfo))
                for index, ((item, _), sample) in enumerate(
                    zip(part, batch["data_samples"], strict=True)
                )
            ]

        for order in orders:
            same_shape = groupby(islice(loaded, len(order)), lambda entry: entry[1]["inputs"].shape)
            for shape, entries in same_shape:
                size = min(BATCH, max(2, CPU_PIXELS // shape[1:].numel())) if on_cpu else BATCH
                while part := list(islice(entries, size)):
                    results = in_parts(encode, part)
                    run.cost.images["encode"] += len(part)
                    yield from chain.from_iterable(results)
                    run.progress.advance(len(part))


def maps_bytes(backbone: Backbone, layers: Sequence[int], size: tuple[int, ...], dtype: str) -> int:
    """Bytes of the maps of an image of ``size`` (height, width), padded to the divisor."""
    height, width = (-(-side // backbone.divisor) * backbone.divisor for side in size)
    cells = [
        backbone.channels[i] * (height // backbone.strides[i]) * (width // backbone.strides[i])
        for i in layers
    ]
    return sum(cells) * DTYPES[dtype].itemsize


class _Items(Dataset[Any]):
    """Loaded items. A ``UserError`` is returned: raised in a loading process it would come as a
    page of traceback."""

    def __init__(self, load: Callable[[int], dict[str, Any]]) -> None:
        self.load = load

    def __getitem__(self, item: int) -> Any:
        try:
            return self.load(item)
        except UserError as error:
            return error


def _load(
    load: Callable[[int], dict[str, Any]], order: Sequence[int], run: EncodeRun
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Items in order, about two batches of which are being loaded."""
    workers = min(run.num_workers, len(order))
    items = DataLoader(
        _Items(load),
        batch_size=None,
        sampler=order,
        num_workers=workers,
        pin_memory=takes_pinned_memory(run.device),
        prefetch_factor=max(2, 2 * BATCH // workers) if workers else None,
    )
    for item, packed in zip(order, items, strict=True):
        if isinstance(packed, UserError):
            raise packed
        yield item, packed


def _shapes(metainfo: Mapping[str, Any]) -> dict[str, list[float]]:
    """``META_KEYS`` of a sample, JSON-able."""
    return {
        name: [float(value) if isinstance(value, float) else int(value) for value in metainfo[name]]
        for name in META_KEYS
        if name in metainfo
    }
