"""Datasets that deliver cached features in place of images, for dense probes and detection.

In mmengine's terms the dataset delivers the maps and the backbone only reads them: heads, losses,
schedules and evaluators are those of the uncached config. Missing features are encoded when a set
is opened: decoded in loading processes while the backbone computes, in batches of one shape.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, groupby, islice
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from backbones.base import Backbone
from backbones.versions import DENSE, versions
from cliptex_common.device import is_accelerator, takes_pinned_memory
from cliptex_common.errors import NonFiniteLoss, UserError
from cliptex_common.files import content_key
from cliptex_common.out_of_memory import Halving
from probes.base import Context, EncodeRun
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


def use_cached_features(
    config: Config,
    dtype: str,
    device: torch.device,
    dataset: str,
    *,
    train: Mapping[str, Any],
    val: Mapping[str, Any],
    stack: Mapping[str, Any],
) -> Config:
    """``config`` with datasets of cached features.

    Args:
        dtype, device: see ``FeatureDataset``.
        dataset: type of the ``FeatureDataset`` that wraps the one of each loader.
        train, val: further arguments of it.
        stack: config of the data preprocessor, which makes a batch of cached maps.
    """
    encoder = {
        "backbone": config.model.backbone,
        "data_preprocessor": config.model.data_preprocessor,
    }
    config = copy.deepcopy(config)
    for loader, options in ((config.train_dataloader, train), (config.val_dataloader, val)):
        loader.dataset = {
            "type": dataset,
            "dataset": loader.dataset,
            "encoder": copy.deepcopy(encoder),
            "dtype": dtype,
            "device": device.type,
            **options,
        }
        loader.num_workers = 0  # reading mapped files is faster than passing them on
        loader.persistent_workers = False
    config.model.data_preprocessor = dict(stack)
    config.model.backbone = {"type": "CachedFeatures"}
    config.custom_imports.imports = [
        *config.custom_imports.imports,
        "probes.features.feature_dataset",
        "probes.runner.batches",
    ]
    return config


class FeatureDataset(Dataset):
    """A dataset of cached features; missing ones are encoded when the set is first used.

    Attributes:
        scope: mmengine's, of the encoder's configs.

    Args:
        source: the wrapped dataset, with a pipeline for its images.
        name: of the set, for people.
        encoder: configs of ``backbone`` (a ``FrozenBackbone``) and ``data_preprocessor``.
        dtype: of the cached features: ``fp32``, ``fp16`` or ``bf16``.
        device: type of the device that encodes (``cpu`` …); part of the features' identity.
    """

    scope: str

    def __init__(
        self, source: Any, name: str, encoder: Mapping[str, Any], dtype: str, device: str
    ) -> None:
        self.source, self.name = source, name
        self.encoder, self.dtype, self.device = dict(encoder), dtype, device
        self.stores: list[FeatureStore] = []

    @abstractmethod
    def keys(self, run: EncodeRun) -> Iterator[tuple[CacheKey, Builder]]:
        """The features (see ``maps``), then the ground truth where it is cached too."""

    @abstractmethod
    def load(self, item: int) -> dict[str, Any]:
        """``inputs`` (3, H, W) and ``data_samples`` of an item of the store of features, as a
        pipeline packs them, in any process. Raises ``UserError`` when the image cannot be read."""

    @property
    def metainfo(self) -> dict[str, Any]:
        return self.source.metainfo

    def __len__(self) -> int:
        return len(self.source)

    @property
    def features(self) -> FeatureStore:
        """The store of features, opened (and built) at first use."""
        if not self.stores:
            self.open()
        return self.stores[0]

    def shape(self, index: int) -> tuple[int, ...]:
        """Height and width of a test image in the backbone, with padding, then without."""
        metadata = self.features.metadata(index)
        return *metadata["pad_shape"][:2], *metadata["img_shape"][:2]

    def open(self, run: EncodeRun | None = None) -> None:
        """Open the stores, building missing ones, and lock them against removal until ``close``.

        Raises as ``get_or_build`` and ``encoded``.
        """
        self.close()
        run = run or EncodeRun(torch.device(self.device))
        message = f"waiting for the process that encodes {self.name}"
        with bridge.isolated_rng():  # flipping an image draws, though it is certain
            for key, build in self.keys(run):
                with run.cost.phase("encode"):
                    self.stores.append(
                        get_or_build(key, build, wait=lambda: run.progress.start(message, 1))
                    )

    def close(self) -> None:
        """Release the stores."""
        while self.stores:
            self.stores.pop().close()

    def get_data_info(self, index: int) -> dict[str, Any]:
        """The sample of the wrapped dataset."""
        return self.source.get_data_info(index)

    def infos(self) -> list[dict[str, Any]]:
        """All samples of the wrapped dataset."""
        return [self.get_data_info(index) for index in range(len(self))]

    def maps(
        self, sizes: Sequence[tuple[int, ...]], identity: Mapping[str, Any], run: EncodeRun
    ) -> tuple[CacheKey, Builder]:
        """The arguments of ``get_or_build`` for the maps of all items.

        Args:
            sizes: (height, width) of every item, to sort by.
            identity: what the maps follow from besides the encoder and the type of device (which
                rounds differently): images, pipeline, crops.
        """
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
            (self.dtype,) * len(layers),
            [maps_bytes(backbone, layers, size, self.dtype) for size in sizes],
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
            cast = [each.cpu() for each in as_dtype(maps, self.dtype, about)]
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


def part_of(pipeline: list[Part], kind: str) -> Part:
    """The config of the first transform of a type in a pipeline."""
    return next(part for part in pipeline if part["type"] == kind)


def features_key(config: Any, context: Context) -> str:
    """The identity of the features of a config's datasets, cached or not."""
    bridge.share(context.backbone_config, context.backbone)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        datasets = [
            DATASETS.build(loader.dataset)
            for loader in (config.train_dataloader, config.val_dataloader)
        ]
        return content_key([next(each.keys(context))[0].digest for each in datasets])


@MODELS.register_module()
class CachedFeatures(nn.Module):
    """Replaces ``FrozenBackbone``: its inputs are the cached maps, its outputs float32 maps."""

    settings = ()

    @bridge.computed_once
    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(each.float() for each in maps)


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
