"""Features of views of images – resized or cropped, perhaps mirrored – by a frozen backbone.

They are computed, or read from the store, which is filled first; whoever asks gets the same
numbers. ``Views`` is the interface; importing it imports nothing of OpenMMLab's."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cliptex_common.device import Halving, takes_pinned_memory
from cliptex_common.errors import UserError
from cliptex_common.progress import Progress, Silent
from probes.base import EncodeContext
from probes.features.files import CacheFull
from probes.features.store import (
    Builder,
    CacheKey,
    FeatureStore,
    Metadata,
    cast_features,
    get_or_build,
)

PREFETCHED = 128  # views that a loading process has ready, about
Size = tuple[int, ...]  # height, width
Encoded = tuple[Sequence[Tensor], Sequence[Metadata]]  # (N, …) tensors, and N metadata


class Views(ABC):
    """Views of images, which a frozen backbone encodes. Loading processes decode while it computes;
    batches are of one shape, and are halved where the memory of the device ends. ``computed`` gives
    the features batch by batch, ``items`` one by one, and ``features`` from the store where it can.

    Attributes:
        context: what computes.
        name: of backbone and images, for people.
        batch_size: most views that the backbone sees at once.
        sizes: of each view; views of one size share batches.
        are_stored: whether their features are.
    """

    are_stored = False

    def __init__(
        self, context: EncodeContext, name: str, batch_size: int, sizes: Sequence[Size]
    ) -> None:
        self.context, self.name, self.batch_size, self.sizes = context, name, batch_size, sizes

    def prepare(self) -> None:  # noqa: B027  most have nothing to load
        """Load what computes, once, before the time that encoding takes is measured."""

    @abstractmethod
    def load(self, item: int) -> Any:
        """A view, in any process. Raises ``UserError`` when its image cannot be read."""

    def collate(self, views: list[Any]) -> Any:
        """A batch, of which rows can be taken; in the process that loads it."""
        return views

    @abstractmethod
    def encode(self, batch: Any) -> Encoded:
        """The features of a batch, float32 on the device."""

    def key(self) -> CacheKey:
        """What the features follow from, of views that ``are_stored``."""
        raise NotImplementedError

    def largest_batch(self, size: Size) -> int:
        """Most views of a size in a batch."""
        return self.batch_size

    def batches(self, shards: Sequence[Sequence[int]]) -> list[list[int]]:
        """The items of each shard in batches of one size, smaller sizes first."""
        batches: list[list[int]] = []
        for shard in shards:
            order = sorted(shard, key=lambda item: (self.sizes[item], item))
            for size, group in groupby(order, key=self.sizes.__getitem__):
                items, count = list(group), self.largest_batch(size)
                batches += [items[start : start + count] for start in range(0, len(items), count)]
        return batches

    def computed(self, batches: Sequence[Sequence[int]]) -> Iterator[list[Encoded]]:
        """The features of each batch, in parts of at most ``batch_size``.

        Raises:
            UserError: an image cannot be read.
        """
        context, workers = self.context, min(self.context.num_workers, len(batches))
        self.prepare()
        prefetched = PREFETCHED // max(map(len, batches), default=1)
        loader = DataLoader(
            _Loaded(self),
            batch_sampler=batches,  # type: ignore[arg-type]  # ranges do as well
            num_workers=workers,
            collate_fn=_unchanged,
            pin_memory=takes_pinned_memory(context.device),
            # whatever Python's start method is: views hold what cannot be pickled
            multiprocessing_context="fork" if workers else None,
            prefetch_factor=max(2, prefetched) if workers else None,
        )
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed
            loaded = iter(loader)
        about, notes = f"encoding {self.name}", context.cost.notes
        in_parts = Halving(self.batch_size, about, notes, context.device)
        timed = context.cost.timed("encode", loaded)
        for items, batch in zip(batches, timed, strict=True):
            # items beyond the views are these again, with other random numbers
            size = self.sizes[items[0] % len(self.sizes)]
            if isinstance(batch, UserError):
                raise batch
            with context.cost.phase("encode"), torch.no_grad():
                parts = in_parts(self.encode, batch, math.prod(size))
            context.cost.images["encode"] += len(batch)
            yield parts

    def items(
        self,
        shards: Sequence[Sequence[int]],
        dtype: str = "fp32",
        progress: Progress | None = None,
    ) -> Iterator[tuple[int, list[Tensor], Metadata]]:
        """(item, its features on the CPU, metadata) of all items, as a ``Builder`` gives them.

        Raises:
            NonFiniteLoss: a feature is not finite.
            UserError: an image cannot be read, or a feature does not fit into fp16.
        """
        batches, progress = self.batches(shards), progress or self.context.progress
        progress.start(f"encoding {self.name}", sum(map(len, batches)))
        for batch, parts in zip(batches, self.computed(batches), strict=True):
            progress.advance(len(batch))
            items = iter(batch)
            for tensors, metadata in parts:
                stored = [each.cpu() for each in cast_features(tensors, dtype, self.name)]
                for row, about in enumerate(metadata):
                    yield next(items), [each[row] for each in stored], about

    def open(self) -> FeatureStore:
        """The store of all features, filled first. Raises as ``get_or_build`` and ``items``."""
        key = self.key()
        return open_store(key, lambda shards: self.items(shards, key.dtypes[0]), self.context)

    def features(self, items: Sequence[int]) -> Iterator[tuple[int, Sequence[Tensor], Metadata]]:
        """(item, features, metadata) of some items, in any order: from the store; or computed each
        time, rounded as the store has them, where the disk has no room or they are not stored.

        Only the filling of a store shows its progress.
        """
        store = None
        with suppress(CacheFull):
            store = self.open() if self.are_stored else None
        if store is None:
            dtype = self.key().dtypes[0] if self.are_stored else "fp32"
            yield from self.items([items], dtype, Silent())
            return
        with closing(store):
            for item in items:
                yield item, store[item], store.metadata(item)


def open_store(key: CacheKey, build: Builder, context: EncodeContext) -> FeatureStore:
    """``get_or_build``, with cost and progress. Raises as it does."""
    message = f"waiting for the process that encodes {key.about}"
    with context.cost.phase("encode"):
        store = get_or_build(key, build, on_wait=lambda: context.progress.start(message, 1))
    context.cost.disk_bytes += store.built_bytes
    return store


class _Loaded(Dataset[Any]):
    """Batches of loaded views. A ``UserError`` is returned: raised in a loading process it would
    come as a page of traceback."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def __getitems__(self, items: Sequence[int]) -> Any:
        try:
            return self.views.collate([self.views.load(item) for item in items])
        except UserError as error:
            return error


def _unchanged(batch: Any) -> Any:
    return batch
