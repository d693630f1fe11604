"""Pseudo-labels: every expert sees every pair's image once; its labels are stored shard by shard.
Labels that people made are read by an expert of their own (the paper's Table 7).

A shard is a unit of work: whoever labels it, in whichever order, writes the same bytes, and a
finished shard of the same experts and pairs is kept. Memory is constant. A pair that cannot be
labelled is listed with its reason; one without a manual label is not.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import NonNegativeInt
from torch import Tensor

from backbones.cliptex.experts.base import Expert
from backbones.cliptex.labels import (
    LABEL_SIDE,
    DamagedShard,
    LabelStore,
    LabelWriter,
    encode,
    store_key,
    tar_path,
)
from backbones.cliptex.pairs import (
    BadPair,
    FailureCounter,
    PairSource,
    Shard,
    computed_ahead,
)
from backbones.cliptex.targets import resize_nearest
from backbones.cliptex.tasks import find_label_map, origins
from cliptex_common.device import Halving, count_flops
from cliptex_common.errors import UserError
from cliptex_common.files import sha256_file
from cliptex_common.images import IMAGE_ERRORS, spread_indices, write_grid
from cliptex_common.progress import Progress
from cliptex_common.settings import settings_dataclass

LABELLING_VERSION = 2
LabelSources = Sequence["Expert | ManualLabels"]  # of one task each
Prediction = tuple[str, Sequence[int], dict[str, np.ndarray]]  # key, image size, maps by task
IMAGE_PIXELS = 2**19  # of larger images fewer are in a batch, so that memory stays bounded


def _ignore(line: str) -> None: ...


@settings_dataclass
class LabelSettings:
    """The sizes of labels; part of their identity.

    Attributes:
        input_side: images are shrunk to this on the short side before experts see them; 0 leaves
            resizing to each expert, as its authors do it. Its maps and masks are made at the size
            of the image, so that images of many megapixels take much memory.
        label_side: labels are shrunk to this on the short side before they are stored; 0 keeps
            their size. Training compares ``Recipe.label_size`` pixels of a crop.
    """

    input_side: NonNegativeInt = 0
    label_side: NonNegativeInt = LABEL_SIDE


@dataclass(frozen=True)
class LabelledShard:
    """The outcome of a shard.

    Attributes:
        failed: (key, reason) of each pair that could not be labelled.
        images, seconds: labelled just now, and the time it took; 0 when the labels existed.
    """

    failed: list[tuple[str, str]]
    images: int = 0
    seconds: float = 0.0


class Labeller:
    """Labels shards of ``source`` with ``experts``, models or people.

    Args:
        experts: one for each task at most: models, frozen and on their device, as ``load_experts``
            gives them, or ``ManualLabels`` with what people made.
        writer: of the store, as ``labels_writer`` gives it for these.
        batch_size: images of one size that experts see at once; fewer above ``IMAGE_PIXELS``.
        num_workers: threads that decode images, and as many that encode labels; never changes a
            byte.
    """

    def __init__(
        self,
        source: PairSource,
        experts: LabelSources,
        writer: LabelWriter,
        settings: LabelSettings,
        batch_size: int = 32,
        num_workers: int = 2,
    ) -> None:
        self.source, self.writer, self.settings = source, writer, settings
        self.experts = [expert for expert in experts if isinstance(expert, Expert)]
        self.manual = [expert for expert in experts if isinstance(expert, ManualLabels)]
        self.batch_size, self.num_workers = batch_size, max(1, num_workers)
        self.flops: dict[str, int] = {}
        # of the current shard: images labelled, and seconds of each expert
        self.images, self.seconds = 0, dict.fromkeys((e.name for e in self.experts), 0.0)
        self._in_parts = {
            expert.name: Halving(batch_size, f"labelling with {expert.name}", [], expert.device)
            for expert in self.experts
        }

    def label(
        self, shard: Shard, progress: Progress, notify: Callable[[str], None] = _ignore
    ) -> LabelledShard:
        """Label one shard, unless its labels exist.

        Args:
            notify: gets a line about a damaged shard, which is labelled again.
        """
        if summary := self.writer.finished(shard.name, notify):
            return LabelledShard(summary["failed"])
        progress.start(f"labelling {shard.name}", shard.count)
        started = time.monotonic()
        self.images, self.seconds = 0, dict.fromkeys(self.seconds, 0.0)
        with self.writer.shard(shard.name) as file:

            def fail(key: str, error: BadPair) -> None:
                file.fail(key, str(error))
                progress.advance()

            threads, batch_size = self.num_workers, self.batch_size
            indices = self.source.iter_shard(shard)
            images = computed_ahead(self._decode, indices, threads, 2 * threads + batch_size)
            encode_pair = partial(self._encode, shard.name)
            predictions = self._predictions(images, fail)
            for key, labels in computed_ahead(encode_pair, predictions, threads, 2 * batch_size):
                if isinstance(labels, BadPair):
                    fail(key, labels)
                    continue
                if labels:
                    file.add(key, labels)
                progress.advance()
            seconds = time.monotonic() - started
            # of the shard: seconds in all and in each expert, and FLOPs of one image by expert
            file.summary["cost"] = {
                "images": self.images,
                "seconds": seconds,
                "expert_seconds": self.seconds,
                "flops_per_image": self.flops,
            }
        return LabelledShard(file.summary["failed"], self.images, seconds)

    def _predictions(
        self,
        decoded: Iterable[tuple[str, np.ndarray | BadPair]],
        fail: Callable[[str, BadPair], None],
    ) -> Iterator[Prediction]:
        for keys, images in self._batches(decoded, fail):
            predictions = self._predict(images)
            for row, key in enumerate(keys):
                maps = {task: values[row] for task, values in predictions.items()}
                yield key, images.shape[-2:], maps

    def _batches(
        self,
        decoded: Iterable[tuple[str, np.ndarray | BadPair]],
        fail: Callable[[str, BadPair], None],
    ) -> Iterator[tuple[list[str], Tensor]]:
        """Keys and (N, 3, H, W) uint8 images of one size, at most ``batch_size``, each size in the
        shard's order."""
        waiting: dict[tuple[int, ...], list[tuple[str, np.ndarray]]] = {}
        limit = self.batch_size * IMAGE_PIXELS

        def batch(shape: tuple[int, ...]) -> tuple[list[str], Tensor]:
            keys, images = zip(*waiting.pop(shape), strict=True)
            return list(keys), torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)

        for key, image in decoded:
            if isinstance(image, BadPair):
                fail(key, image)
                continue
            waiting.setdefault(image.shape, []).append((key, image))
            pixels = {
                shape: len(images) * max(IMAGE_PIXELS, shape[0] * shape[1])
                for shape, images in waiting.items()
            }
            fullest = max(pixels, key=lambda shape: pixels[shape])
            # with many sizes the fullest batch goes early, so that memory stays bounded
            if pixels[fullest] >= limit or sum(pixels.values()) > 8 * limit:
                yield batch(fullest)
        for shape in list(waiting):
            yield batch(shape)

    def _decode(self, index: int) -> tuple[str, np.ndarray | BadPair]:
        key = self.source.key(index)
        try:
            return key, self.source.decoded(index, self.settings.input_side or None)[1]
        except BadPair as error:
            return key, error

    def _predict(self, images: Tensor) -> dict[str, np.ndarray]:
        predictions: dict[str, np.ndarray] = {}
        if not self.flops:  # one after another: experts may share what they compute of an image
            first = images[:1]
            for expert in self.experts:
                predict = partial(self._in_parts[expert.name], expert.predict, first)
                self.flops[expert.name] = count_flops(predict)
        for expert in self.experts:
            name, in_parts = expert.name, self._in_parts[expert.name]
            started = time.monotonic()
            parts = in_parts(expert.predict, images, images.shape[-2:].numel())
            predictions[expert.task] = np.concatenate([part[expert.task] for part in parts])
            self.seconds[name] += time.monotonic() - started
        self.images += len(images)
        return predictions

    def _encode(self, shard: str, prediction: Prediction) -> tuple[str, dict[str, bytes] | BadPair]:
        """The key of a pair and all of its labels as files by suffix, or why one is of no use."""
        key, size, maps = prediction
        labels = {}
        for name, values in maps.items():
            label = find_label_map(name).from_expert(values)
            if label.dtype.kind == "f" and not np.isfinite(label).any():
                return key, BadPair(f"no finite {name} from its expert")
            labels[name] = label
        try:
            for manual in self.manual:
                if (manual_label := manual.read(shard, key, size)) is not None:
                    labels[manual.task] = manual_label
        except BadPair as error:
            return key, error
        side = self.settings.label_side
        return key, encode({name: resize_nearest(label, side) for name, label in labels.items()})


def labels_writer(
    source: PairSource,
    experts: LabelSources,
    settings: LabelSettings,
    out: Path | Callable[[str], Path],
) -> LabelWriter:
    """The writer of these labels' store.

    Args:
        out: its folder, or a function that names it by the store's ``key``: other weights of an
            expert give another one.

    Raises:
        UserError: no experts, or the folder holds the pairs, or labels of other experts or pairs.
    """
    if not experts:
        raise UserError("no experts to label with; give some as --experts NAME=WHERE")
    identity = {
        "version": LABELLING_VERSION,
        "pairs": source.fingerprint,
        "settings": vars(settings),
        "experts": [expert.identity() for expert in experts],
        **origins(expert.task for expert in experts),
    }
    classes = {expert.task: expert.classes for expert in experts if expert.classes}
    root = out if isinstance(out, Path) else out(store_key(identity, classes))
    for shard in source.shards:
        if tar_path(root, shard.name).resolve() == shard.path.resolve():
            raise UserError(f"{root} holds the pairs; choose another --out")
    return LabelWriter(root, identity, [expert.task for expert in experts], classes)


def finish_labels(source: PairSource, writer: LabelWriter, **extra: Any) -> dict[str, Any]:
    """Write the manifest over all shards, and return it.

    It holds counts, failures, bytes an image, ``cost`` (seconds and FLOPs) and ``extra``.

    Raises:
        DamagedShard: a shard is missing or damaged.
    """
    shards = [summary for shard in source.shards if (summary := writer.finished(shard.name))]
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
    skipped = [list(pair) for pair in source.skipped]
    return writer.finish(shards, skipped=skipped, cost=total, **extra)


def make_labels(
    source: PairSource,
    manual: Sequence[ManualLabels],
    out: Path,
    settings: LabelSettings,
    progress: Progress,
    notify: Callable[[str], None] = _ignore,
) -> dict[str, Any]:
    """Write a store of people's labels and return its manifest.

    Args:
        notify: gets a line about files that belong to no pair.

    Raises:
        UserError: no file belongs to a pair, over 1 % of the pairs fail, or ``out`` holds other
            labels.
    """
    files = {}
    for labels in manual:
        used = {
            labels.find(shard.name, source.key(index))
            for shard in source.shards
            for index in source.iter_shard(shard)
        } - {None}
        if not used:
            raise UserError(
                f"no .png in {labels.folder} is called like a pair, such as {source.key(0)}"
            )
        files[labels.task] = len(used)
        if unused := len(labels.files) - len(used):
            notify(f"{unused} of {len(labels.files)} files in {labels.folder} belong to no pair")
    writer = labels_writer(source, manual, settings, out)
    labeller, failures = Labeller(source, manual, writer, settings), FailureCounter("pairs")
    for shard in source.shards:
        failures.bad |= dict(labeller.label(shard, progress, notify).failed)
        failures.check(len(source))
    return finish_labels(source, writer, files=files)


ASPECT = 0.05  # by how much a label's width over height may differ from its image's


class ManualLabels:
    """Reads the labels of one task from a folder, in the official layouts (see ``LabelMap.read``).

    A file has the name of its pair: ``KEY.png`` or ``SHARD/KEY.png`` for pairs of tar shards, that
    of the image for pairs of a table. Pairs without a file have no label, which is no failure.

    Args:
        classes: names of the classes by number, for tasks that have some.

    Raises:
        UserError: no such task or folder, or the classes have no names.
    """

    def __init__(self, task: str, folder: Path, classes: Sequence[str] = ()) -> None:
        if find_label_map(task).has_classes and not classes:
            raise UserError(
                f"labels of {task} are numbers of classes; name them with --classes FILE, one a"
                " line"
            )
        if not folder.is_dir():
            raise UserError(f"no folder {folder} of {task}")
        self.name, self.task, self.folder, self.classes = "manual", task, folder, tuple(classes)
        self.files = {
            path.relative_to(folder).with_suffix("").as_posix(): path
            for path in sorted(folder.rglob("*.png"))
        }

    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for name, path in self.files.items():
            digest.update(f"{name} {sha256_file(path)}\n".encode())
        return {
            "name": self.name,
            "task": self.task,
            "classes": list(self.classes),
            "sha256": digest.hexdigest(),
        }

    def find(self, shard: str, key: str) -> Path | None:
        """The file of a pair."""
        # without the number of a table's second caption
        image = re.sub(r"#\d+$", "", key.removeprefix(f"{shard}/"))
        name = PurePosixPath(image).with_suffix("")
        names = (f"{shard}/{name}", str(name), name.name)
        return next((self.files[each] for each in names if each in self.files), None)

    def read(self, shard: str, key: str, size: Sequence[int]) -> np.ndarray | None:
        """The label of a pair whose image has ``size`` (height, width); None without a file.

        Raises:
            BadPair: the file is no label of this task, or has another shape than the image.
        """
        if (path := self.find(shard, key)) is None:
            return None
        task = find_label_map(self.task)
        try:
            label = task.read(path)
        except IMAGE_ERRORS as error:
            raise BadPair(f"{path}: {error}") from error
        if task.has_classes:
            largest = int(label[label != np.iinfo(label.dtype).max].max(initial=0))
            if largest >= len(self.classes):
                raise BadPair(
                    f"{path}: it has class {largest}, and only {len(self.classes)} have names"
                )
        height, width = label.shape[-2:]
        if abs(width * size[0] / (height * size[1]) - 1) > ASPECT:
            raise BadPair(f"{path} has another shape than its image of {size[1]} × {size[0]}")
        return label


SIDE = 160  # longest side of a picture, pixels
CANDIDATES = 10_000  # pairs among which labelled ones are searched


def draw_labels(root: Path, source: PairSource, out: Path, n: int = 8) -> None:
    """Write a picture (``.png``, ``.jpg``, ``.webp`` …) with ``n`` pairs of ``source``, a row each.

    The pairs are evenly spread. A row shows the image and its labels, as their tasks draw them;
    black is unknown.

    Raises:
        UserError: the store is not finished, none of the pairs has labels in it, or the suffix is
            not that of an image format.
    """
    if Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        raise UserError(f"--out {out} is no picture's name; use .png, .jpg or .webp")
    store = LabelStore(root)
    labelled = [
        index
        for index in spread_indices(len(source), CANDIDATES)
        if store.tasks_of(source.key(index))
    ]
    rows: list[list[np.ndarray]] = []
    captions: list[str] = []
    for index in (labelled[row] for row in spread_indices(len(labelled), n)):
        try:
            pair, image = source.decoded(index, None)
            maps = store.get(pair.key)
        except (BadPair, KeyError):
            continue
        caption = f"{pair.key}  {' '.join(pair.caption.split())[:90]}"
        for task in maps.keys() & store.classes.keys():
            names = store.classes[task]
            present = [names[c] for c in np.unique(maps[task]) if c < len(names)]
            caption += f"   [{', '.join(present)}]"
        captions.append(caption)
        pictures = [
            find_label_map(name).picture(maps[name], image)
            if name in maps
            else np.zeros_like(image)
            for name in store.tasks
        ]
        rows.append([image, *pictures])
    if not rows:
        raise UserError(
            f"none of the pairs of {source.name} has labels in {root}; were they made from other"
            " pairs?"
        )
    write_grid(out, ("image", *store.tasks), rows, captions, side=SIDE)
