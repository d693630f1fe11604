"""Pseudo-labels: every expert sees every pair's image once, and what it says is stored, shard by
shard.

A shard is a unit of work: whoever labels it, in whichever order, writes the same bytes, and a
finished shard of the same experts and pairs is kept. Memory is constant, and nothing is lost in
silence: pairs in = pairs out + pairs named as failed.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backbones.cliptex.cost import count_flops
from backbones.cliptex.data.source import BadPair, PairSource, Shard, decode_image
from backbones.cliptex.experts.base import Expert
from backbones.cliptex.labels.shards import DamagedShard
from backbones.cliptex.labels.store import LABEL_SIDE, LabelWriter, encode, store_key
from backbones.cliptex.protocols import Progress
from backbones.cliptex.tasks import find_task
from backbones.cliptex.tasks.base import resize_nearest
from common.errors import UserError

VERSION = 2  # 1 averaged depth and normals over edges, at 224 pixels


@dataclass(frozen=True)
class LabelSettings:
    """What labels look like; part of their identity.

    Attributes:
        input_side: images are shrunk to this on the short side before experts see them; 0 leaves
            them as they are.
        label_side: labels are shrunk to this on the short side before they are stored; 0 leaves
            them as they are. What is learned from is ``Recipe.label_size`` pixels of a crop.
    """

    input_side: int = 512
    label_side: int = LABEL_SIDE

    def __post_init__(self) -> None:
        if min(self.input_side, self.label_side) < 0:
            raise UserError(
                "input_side and label_side must not be negative (0 leaves sizes as they are)"
            )


@dataclass(frozen=True)
class LabelledShard:
    """What became of a shard: (key, reason) of each pair without labels; how many images were
    labelled just now, and how long it took, 0 when its labels were there."""

    failed: tuple[tuple[str, str], ...]
    images: int = 0
    seconds: float = 0.0


class Labeller:
    """Labels shards of ``source`` with ``experts``.

    Args:
        experts: one for each task at most, frozen and on their device, as ``load_experts`` gives
            them.
        writer: of the store, as ``labels_writer`` gives it for these.
        batch_size: images of one size that experts see at once.
        num_workers: threads that decode images and encode labels; never changes a byte.
    """

    def __init__(
        self,
        source: PairSource,
        experts: Sequence[Expert],
        writer: LabelWriter,
        settings: LabelSettings,
        batch_size: int = 32,
        num_workers: int = 2,
    ) -> None:
        self.source, self.experts, self.writer, self.settings = (
            source,
            list(experts),
            writer,
            settings,
        )
        self.batch_size, self.num_workers = batch_size, max(1, num_workers)
        self.flops: dict[str, int] = {}
        self.images, self.seconds = 0, dict.fromkeys((expert.name for expert in experts), 0.0)

    def label(
        self, shard: Shard, progress: Progress, say: Callable[[str], None] = lambda line: None
    ) -> LabelledShard:
        """Label one shard, unless its labels are there; ``say`` is told, in a line, of one that has
        to be made again."""
        if found := finished_shard(self.writer, shard, say):
            return found
        progress.start(f"labelling {shard.name}", shard.count)
        with ThreadPoolExecutor(self.num_workers) as pool:
            return self._write(shard, pool, progress)

    def _write(self, shard: Shard, pool: ThreadPoolExecutor, progress: Progress) -> LabelledShard:
        started = time.monotonic()
        self.images, self.seconds = 0, dict.fromkeys(self.seconds, 0.0)
        failed: list[tuple[str, str]] = []
        with self.writer.shard(shard.name) as file:
            written: deque[tuple[str, Future[dict[str, bytes]]]] = deque()

            def drain(most: int) -> None:
                while len(written) > most:
                    key, coded = written.popleft()
                    file.add(key, coded.result())
                    progress.advance()

            def fail(key: str, reason: str) -> None:
                failed.append((key, reason))
                file.fail(key, reason)
                progress.advance()

            for keys, images in self._batches(shard, pool, fail):
                labels = self._predict(images)
                for row, key in enumerate(keys):
                    maps = {
                        name: find_task(name).from_expert(values[row])
                        for name, values in labels.items()
                    }
                    reasons = (find_task(name).unusable(label) for name, label in maps.items())
                    if wrong := next(filter(None, reasons), ""):
                        fail(key, wrong)
                    else:
                        written.append((key, pool.submit(self._encode, maps)))
                drain(2 * self.batch_size)
            drain(0)
            seconds = time.monotonic() - started
            # of the shard: seconds in all and in each expert, and FLOPs of one image by expert
            of_experts = {"expert_seconds": self.seconds, "flops_per_image": self.flops}
            file.extra["cost"] = {"images": self.images, "seconds": seconds, **of_experts}
        return LabelledShard(tuple(failed), self.images, seconds)

    def _batches(
        self, shard: Shard, pool: ThreadPoolExecutor, fail: Callable[[str, str], None]
    ) -> Iterator[tuple[list[str], Tensor]]:
        """Images of one size together, at most ``batch_size``; decoded ahead by the pool, in the
        shard's order."""
        waiting: dict[tuple[int, ...], list[tuple[str, np.ndarray]]] = {}
        ahead: deque[tuple[str, Future[np.ndarray]]] = deque()
        indices = self.source.iter_shard(shard)

        def full(shape: tuple[int, ...]) -> tuple[list[str], Tensor]:
            keys, images = zip(*waiting.pop(shape), strict=True)
            return list(keys), torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)

        while True:
            while (
                len(ahead) < 2 * self.num_workers + self.batch_size
                and (index := next(indices, None)) is not None
            ):
                ahead.append((self.source.key(index), pool.submit(self._decode, index)))
            if not ahead:
                break
            key, future = ahead.popleft()
            try:
                image = future.result()
            except BadPair as error:
                fail(key, str(error))
                continue
            waiting.setdefault(image.shape, []).append((key, image))
            fullest = max(waiting, key=lambda shape: len(waiting[shape]))
            # of many sizes the fullest batch goes before it is full, so that memory stays bounded
            if (
                len(waiting[fullest]) == self.batch_size
                or sum(map(len, waiting.values())) > 8 * self.batch_size
            ):
                yield full(fullest)
        for shape in list(waiting):
            yield full(shape)

    def _decode(self, index: int) -> np.ndarray:
        return decode_image(self.source[index].image, self.settings.input_side or None)

    def _predict(self, images: Tensor) -> dict[str, np.ndarray]:
        if not self.flops:
            for expert in self.experts:
                self.flops[expert.name] = count_flops(partial(expert.predict, images[:1]))
        labels: dict[str, np.ndarray] = {}
        for expert in self.experts:
            started = time.monotonic()
            labels[expert.task] = expert.predict(images)[expert.task]
            self.seconds[expert.name] += time.monotonic() - started
        self.images += len(images)
        return labels

    def _encode(self, maps: dict[str, np.ndarray]) -> dict[str, bytes]:
        return encode(
            {name: resize_nearest(label, self.settings.label_side) for name, label in maps.items()}
        )


def labels_writer(
    source: PairSource,
    experts: Sequence[Expert],
    settings: LabelSettings,
    out: Path | Callable[[str], Path],
) -> LabelWriter:
    """The store of these labels, to be written.

    Args:
        out: its folder, or what names it by the store's ``key``: other weights of an expert give
            another one.

    Raises:
        UserError: no experts, or the folder holds labels of other experts or pairs.
    """
    if not experts:
        raise UserError("no experts to label with; give some as --experts NAME=WHERE")
    identity = {
        "version": VERSION,
        "pairs": source.fingerprint,
        "settings": vars(settings),
        "experts": [expert.identity() for expert in experts],
    }
    classes = {expert.task: expert.classes for expert in experts if expert.classes}
    root = out if isinstance(out, Path) else out(store_key(identity, classes))
    return LabelWriter(root, identity, [expert.task for expert in experts], classes)


def finished_shard(
    writer: LabelWriter, shard: Shard, say: Callable[[str], None], *, hashed: bool = True
) -> LabelledShard | None:
    """The shard when its labels are there and whole (by their size alone unless ``hashed``); says
    so when they are there but not whole."""
    found = writer.finished(shard.name, say, hashed=hashed)
    return LabelledShard(tuple((key, reason) for key, reason in found["failed"])) if found else None


def finish_labels(source: PairSource, writer: LabelWriter) -> dict[str, Any]:
    """Write the manifest over all shards, which are labelled, and return it: counts, failures,
    bytes an image and ``cost`` (seconds and FLOPs).

    Raises:
        DamagedShard: one of them is not there or not whole.
    """
    shards = [found for shard in source.shards if (found := writer.finished(shard.name))]
    if len(shards) < len(source.shards):
        raise DamagedShard(
            f"{len(source.shards) - len(shards)} shards are missing or damaged in {writer.root}"
        )
    costs = [shard["cost"] for shard in shards]
    seconds: Counter[str] = Counter()
    for cost in costs:
        seconds.update(cost["expert_seconds"])
    per_image: dict[str, int] = next(
        (cost["flops_per_image"] for cost in costs if cost["flops_per_image"]), {}
    )
    images = sum(cost["images"] for cost in costs)
    total = {
        "images": images,
        "seconds": sum(cost["seconds"] for cost in costs),
        "expert_seconds": seconds,
        "flops_per_image": per_image,
        "flops": sum(per_image.values()) * images,
    }
    manifest = writer.finish(shards, skipped=[list(pair) for pair in source.skipped], cost=total)
    if manifest["pairs_in"] != len(source):
        raise RuntimeError(
            f"{manifest['pairs_in']} pairs in the labels, {len(source)} in the source"
        )
    return manifest
