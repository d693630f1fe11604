"""Datasets that deliver kept features in the place of images: what dense probes and detection share.

In mmengine's terms the dataset delivers the maps and the backbone only reads them: heads, losses, schedules and evaluators
are those of the uncached config.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.config import Config
from torch.utils.data import Dataset

from probes.features.cost import EncodeRun
from probes.features.store import Builder, CacheKey, Store, get_or_build
from probes.runner import batches, bridge

Part = dict[str, Any]  # of a config
OWN_MODULES = ("probes.features.precompute", "probes.runner.batches")


def on_kept_features(
    config: Config,
    dtype: str,
    device: torch.device,
    dataset: str,
    *,
    train: Mapping[str, Any],
    val: Mapping[str, Any],
    stack: Mapping[str, Any],
    at_once: int,
) -> Config:
    """``config`` with datasets of kept features.

    Args:
        dtype, device: see ``FeatureDataset``.
        dataset: type of the ``FeatureDataset`` that stands around the one of each loader.
        train, val: further arguments of it.
        stack: config of the data preprocessor, which makes a batch of kept maps.
        at_once: images of an evaluation's batch at most.
    """
    encoder = {"backbone": config.model.backbone, "data_preprocessor": config.model.data_preprocessor}
    config = copy.deepcopy(config)
    for loader, more in ((config.train_dataloader, train), (config.val_dataloader, val)):
        loader.dataset = {
            "type": dataset, "dataset": loader.dataset, "encoder": copy.deepcopy(encoder), "dtype": dtype,
            "device": device.type, **more,
        }  # fmt: skip
        loader.num_workers = 0  # reading what is mapped is quicker than passing it between processes
        loader.persistent_workers = False
    config.val_dataloader.update(batches.at_once(at_once, device))
    config.model.data_preprocessor = dict(stack)
    config.model.backbone = {"type": "KeptFeatures"}
    config.custom_imports.imports = [*config.custom_imports.imports, *OWN_MODULES]
    return config


class FeatureDataset(Dataset):
    """A dataset on kept features; what is not kept yet is made when the set is first used.

    Args:
        source: the dataset that stands below, with a pipeline for its images.
        name: of the set, for people.
        encoder: configs of ``backbone`` (a ``FrozenBackbone``) and ``data_preprocessor``.
        dtype: that features are kept in: ``fp32``, ``fp16`` or ``bf16``.
        device: type of the device that encodes (``cpu``, ``cuda``), which is part of the features' identity.
    """

    def __init__(self, source: Any, name: str, encoder: Mapping[str, Any], dtype: str, device: str) -> None:
        self.source, self.name = source, name
        self.encoder, self.dtype, self.device = dict(encoder), dtype, device
        source.full_init()
        self.stores: list[Store] = []

    @abstractmethod
    def keys(self, run: EncodeRun) -> Iterator[tuple[CacheKey, Builder]]:
        """What is kept: the features, then – where it is kept too – the ground truth."""

    @property
    def metainfo(self) -> dict[str, Any]:
        return self.source.metainfo

    @property
    def notes(self) -> list[str]:
        """What was found damaged and made again."""
        return [note for store in self.stores for note in store.notes]

    def __len__(self) -> int:
        return len(self.source)

    @property
    def features(self) -> Store:
        """Opened, and made where it is not there, when it is first asked for."""
        if not self.stores:
            self.open()
        return self.stores[0]

    def shape(self, index: int) -> tuple[int, ...]:
        """Height and width of a test image as the backbone saw it, padded, and within its padding."""
        metadata = self.features.metadata(index)
        return *metadata["pad_shape"][:2], *metadata["img_shape"][:2]

    def key(self) -> str:
        """The identity of the features, whether they are kept yet or not."""
        return next(self.keys(EncodeRun(torch.device(self.device))))[0].digest

    def open(self, run: EncodeRun | None = None) -> None:
        """Open what is kept, making what is not. Raises as ``get_or_build`` and ``encode_maps`` do."""
        self.close()
        run = run or EncodeRun(torch.device(self.device))
        waiting = f"waiting for the process that encodes {self.name}"
        with bridge.isolated_rng():  # flipping an image draws, though it is certain
            for key, build in self.keys(run):
                with run.cost.timed():
                    self.stores.append(get_or_build(key, build, wait=lambda: run.progress.start(waiting, 1)))

    def close(self) -> None:
        """Let go of the files."""
        while self.stores:
            self.stores.pop().close()

    def infos(self) -> list[dict[str, Any]]:
        """What the dataset below says of each of its samples."""
        return [self.source.get_data_info(index) for index in range(len(self))]


def part_of(pipeline: list[Part], kind: str) -> Part:
    """The transform of a type in a pipeline's config."""
    return next(part for part in pipeline if part["type"] == kind)
