"""Pseudo-labels: every expert sees every pair's image once, and what it says is stored, shard by shard.

A shard is a unit of work: whoever labels it, in whichever order, writes the same bytes, and a finished shard of the same experts
and pairs is kept. Memory is constant, and nothing is lost in silence: pairs in = pairs out + pairs named as failed.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.cliptex.cost import count_flops
from backbones.cliptex.experts.base import IGNORE, Expert
from backbones.cliptex.labels import DamagedShard, LabelWriter, encode, store_key
from backbones.cliptex.pairs import BadPair, PairSource, Shard, decode_image
from backbones.cliptex.planes import Plane
from backbones.cliptex.protocols import Progress
from backbones.errors import UserError
from backbones.files import write_json

VERSION = 1


@dataclass
class _Cost:
    """What one shard took: seconds in all and in each expert, and FLOPs of one image by expert."""

    images: int = 0
    seconds: float = 0.0
    expert_seconds: dict[str, float] = field(default_factory=dict)
    flops_per_image: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelSettings:
    """What labels look like; part of their identity.

    Attributes:
        input_side: images are shrunk to this on the short side before experts see them; 0 leaves them as they are.
        label_side: labels are shrunk to this on the short side before they are stored; 0 leaves them as they are.
        confidence: keep the experts' confidence (κ of the normals).
    """

    input_side: int = 512
    label_side: int = 224
    confidence: bool = True

    def __post_init__(self) -> None:
        if min(self.input_side, self.label_side) < 0:
            raise UserError("input_side and label_side must not be negative (0 leaves sizes as they are)")


@dataclass(frozen=True)
class LabelledShard:
    """What became of a shard.

    Attributes:
        failed: (key, reason) of each pair without labels.
        images, seconds: how many were labelled just now, and how long it took; 0 when its labels were there.
    """

    failed: tuple[tuple[str, str], ...]
    images: int = 0
    seconds: float = 0.0


class Labeller:
    """Labels shards of ``source`` with ``experts``.

    Args:
        experts: one for each task at most, frozen and on their device, as ``load_experts`` gives them.
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
        self.source, self.experts, self.writer, self.settings = source, list(experts), writer, settings
        self.batch_size, self.num_workers = batch_size, max(1, num_workers)
        self.flops: dict[str, int] = {}
        self.cost = _Cost()

    def label(self, shard: Shard, progress: Progress, say: Callable[[str], None] = lambda line: None) -> LabelledShard:
        """Label one shard, unless its labels are there; ``say`` is told, in a line, of one that has to be made again."""
        if found := finished_shard(self.writer, shard, say):
            return found
        progress.start(f"labelling {shard.name}", shard.count)
        with ThreadPoolExecutor(self.num_workers) as pool:
            failed = self._write(shard, pool, progress)
        return LabelledShard(tuple(failed), self.cost.images, self.cost.seconds)

    def _write(self, shard: Shard, pool: ThreadPoolExecutor, progress: Progress) -> list[tuple[str, str]]:
        """Write one shard; (key, reason) of what failed."""
        started = time.monotonic()
        self.cost = _Cost(expert_seconds=dict.fromkeys((expert.name for expert in self.experts), 0.0))
        failed: list[tuple[str, str]] = []
        with self.writer.shard(shard.name) as file:
            written: deque[tuple[str, int, Future[dict[str, Plane]]]] = deque()

            def drain(most: int) -> None:
                while len(written) > most:
                    key, pixels, coded = written.popleft()
                    file.add(key, coded.result(), pixels)
                    progress.advance()

            def fail(key: str, reason: str) -> None:
                failed.append((key, reason))
                file.fail(key, reason)
                progress.advance()

            for keys, images in self._batches(shard, pool, fail):
                labels = self._predict(images)
                for row, key in enumerate(keys):
                    maps = {name: values[row] for name, values in labels.items()}
                    if wrong := _unusable(maps):
                        fail(key, wrong)
                        continue
                    pixels = images.shape[-1] * images.shape[-2]
                    written.append((key, pixels, pool.submit(self._encode, maps)))
                drain(2 * self.batch_size)
            drain(0)
            self.cost.seconds = time.monotonic() - started
            self.cost.flops_per_image = self.flops
            # before the shard itself, which is what a resumed labelling keeps: its cost must be there by then
            write_json(_cost_path(self.writer, shard.name), vars(self.cost))
        return failed

    def _batches(
        self, shard: Shard, pool: ThreadPoolExecutor, fail: Callable[[str, str], None]
    ) -> Iterator[tuple[list[str], Tensor]]:
        """Images of one size together, at most ``batch_size``; decoded ahead by the pool, in the shard's order."""
        waiting: dict[tuple[int, ...], list[tuple[str, np.ndarray]]] = {}
        ahead: deque[tuple[str, Future[np.ndarray]]] = deque()
        indices = self.source.iter_shard(shard)
        pending = 0

        def full(shape: tuple[int, ...]) -> tuple[list[str], Tensor]:
            group = waiting.pop(shape)
            return [key for key, _ in group], torch.from_numpy(np.stack([image for _, image in group])).permute(
                0, 3, 1, 2
            )

        while True:
            while len(ahead) < 2 * self.num_workers + self.batch_size and (index := next(indices, None)) is not None:
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
            pending += 1
            if len(waiting[image.shape]) == self.batch_size:
                pending -= self.batch_size
                yield full(image.shape)
            elif pending > 8 * self.batch_size:  # many sizes: the fullest batch goes, so that memory stays bounded
                shape = max(waiting, key=lambda found: len(waiting[found]))
                pending -= len(waiting[shape])
                yield full(shape)
        for shape in list(waiting):
            yield full(shape)

    def _decode(self, index: int) -> np.ndarray:
        return decode_image(self.source[index].image, self.settings.input_side or None)

    def _predict(self, images: Tensor) -> dict[str, np.ndarray]:
        if not self.flops:
            for expert in self.experts:
                self.flops[expert.name] = count_flops(lambda expert=expert: expert.predict(images[:1]))  # type: ignore
        labels: dict[str, np.ndarray] = {}
        for expert in self.experts:
            started = time.monotonic()
            labels |= expert.predict(images)
            self.cost.expert_seconds[expert.name] += time.monotonic() - started
        self.cost.images += len(images)
        if not self.settings.confidence:
            labels.pop("confidence", None)
        return labels

    def _encode(self, maps: dict[str, np.ndarray]) -> dict[str, Plane]:
        return encode(shrink(maps, self.settings.label_side))


def labels_writer(
    source: PairSource, experts: Sequence[Expert], settings: LabelSettings, out: Path | Callable[[str], Path]
) -> LabelWriter:
    """The store of these labels, to be written.

    Args:
        out: its folder, or what names it by the store's ``key``: other weights of an expert give another one.

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
    classes, ignore = next(
        ((expert.classes, expert.ignore_index) for expert in experts if expert.task == "seg"), ((), IGNORE)
    )
    root = out if isinstance(out, Path) else out(store_key(identity, classes))
    return LabelWriter(root, identity, classes, ignore)


def finished_shard(writer: LabelWriter, shard: Shard, say: Callable[[str], None]) -> LabelledShard | None:
    """The shard when its labels are there and whole; says so when they are there but not whole."""
    try:
        found = writer.finished(shard.name)
    except DamagedShard as damage:
        say(f"{damage}: labelling shard {shard.name} again")
        return None
    return LabelledShard(tuple((key, reason) for key, reason in found.summary["failed"])) if found else None


def finish_labels(source: PairSource, writer: LabelWriter) -> dict[str, Any]:
    """Write the manifest over all shards, which are labelled, and return it: counts, failures, bytes an image, quantisation
    errors, and ``cost`` (seconds and FLOPs)."""
    names = [shard.name for shard in source.shards]
    costs = [json.loads(path.read_text()) for name in names if (path := _cost_path(writer, name)).is_file()]
    seconds: dict[str, float] = {}
    for cost in costs:
        for name, value in cost["expert_seconds"].items():
            seconds[name] = seconds.get(name, 0.0) + value
    per_image: dict[str, int] = next((cost["flops_per_image"] for cost in costs if cost["flops_per_image"]), {})
    total = {
        "images": sum(cost["images"] for cost in costs),
        "seconds": sum(cost["seconds"] for cost in costs),
        "expert_seconds": seconds,
        "flops_per_image": per_image,
        "flops": sum(per_image.values()) * sum(cost["images"] for cost in costs),
    }
    manifest = writer.finish(names, skipped=[list(pair) for pair in source.skipped], cost=total)
    if manifest["pairs_in"] != len(source):
        raise RuntimeError(f"{manifest['pairs_in']} pairs in the labels, {len(source)} in the source")
    return manifest


def _cost_path(writer: LabelWriter, name: str) -> Path:
    return writer.root / f"{name}.cost.json"


def shrink(maps: dict[str, np.ndarray], side: int) -> dict[str, np.ndarray]:
    """Labels of one image brought to ``side`` pixels on the short side, if they are larger and ``side`` is not 0.

    Classes by nearest, the rest by area; normals are of unit length again.
    """
    height, width = next(iter(maps.values())).shape[-2:]
    if not side or min(height, width) <= side:
        return maps
    size = (max(side, round(height * side / min(height, width))), max(side, round(width * side / min(height, width))))
    small = {}
    for name, values in maps.items():
        if name == "seg":
            rows, columns = (
                ((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, values.shape, strict=True)
            )
            small[name] = values[rows[:, None], columns[None]]
            continue
        planes = torch.from_numpy(values if values.ndim == 3 else values[None])[None]
        shrunk = F.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=True)[0]
        small[name] = (F.normalize(shrunk, dim=0) if name == "normal" else shrunk[0]).numpy()
    return small


def _unusable(maps: dict[str, np.ndarray]) -> str:
    """Why an image's labels are of no use at all; empty when they are of use."""
    for name, values in maps.items():
        if values.dtype.kind == "f" and not np.isfinite(values).any():
            return f"no finite {name} from its expert"
    return ""
