"""Training batches: step → images, tokens and targets, a function of the seed and the step alone,
whichever process or worker builds the batch.

Small sets that are read several times are decoded once and cached in memory; others are read and
decoded on demand. One geometric augmentation serves an image and all its labels: a random resized
crop and a flip. Crops are square in pixels, so that surface normals keep their meaning: a crop and
a uniform change of size leave them as they are, a flip negates x.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import itemgetter

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset

from backbones.backbone import DataConfig
from backbones.cliptex.labels import Labels
from backbones.cliptex.pairs import BadPair, PairSource, computed_ahead
from backbones.cliptex.recipes import Recipe
from backbones.cliptex.targets import Geometry
from backbones.cliptex.tasks import find_label_map, find_task, labelled_tasks
from cliptex_common.device import takes_pinned_memory
from cliptex_common.errors import UserError
from cliptex_common.progress import Progress

MEMORY_BYTES = 1 << 30
MAX_REPLACEMENTS = 100  # unreadable pairs in a row


@dataclass
class Batch:
    """One process's share of a step.

    Attributes:
        images: (n, 3, S, S) uint8 RGB, a quarter of the size of normalised ones; see
            ``TrainDataset.to_device``.
        tokens: (n, L) int64.
        targets: task → label maps as its loss takes them.
        bad: (key, reason) of pairs that could not be read and were replaced by their neighbour.
        unlabelled: number of pairs without labels; they count for the contrast alone.
    """

    images: Tensor
    tokens: Tensor
    targets: dict[str, Tensor] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)
    unlabelled: int = 0

    def split(self, parts: int) -> list[Batch]:
        """Equal micro-batches, in order."""
        size = len(self.images) // parts
        rows = [slice(i * size, (i + 1) * size) for i in range(parts)]
        return [self._map(itemgetter(each)) for each in rows]

    def to(self, device: torch.device) -> Batch:
        """The batch on ``device``; asynchronous from pinned memory."""
        pinned = takes_pinned_memory(device)
        return self._map(lambda tensor: tensor.to(device, non_blocking=pinned))

    def pin_memory(self) -> Batch:
        """The batch in pinned memory; called by PyTorch's loader."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        tensors = {"images": self.images, "tokens": self.tokens, "targets": self.targets}
        return replace(self, **tree_map(function, tensors))


@dataclass
class _DecodedPair:
    image: np.ndarray
    tokens: Tensor
    labels: dict[str, Tensor]
    bad: tuple[str, str] | None = None
    unlabelled: bool = False

    @property
    def nbytes(self) -> int:
        return self.image.nbytes + sum(t.nbytes for t in (self.tokens, *self.labels.values()))


class TrainDataset(Dataset[Batch]):
    """Batch number ``step`` of a training, for one rank.

    Steps run through the shuffled epochs without a break: a step that begins in one epoch ends in
    the next, so that every pair occurs once in each epoch.

    Attributes:
        steps: of the complete training.
        steps_per_epoch: rounded up.
        held_out: indices of the validation pairs, not trained on.
        labelled: names of the tasks that learn from labels.
    """

    def __init__(
        self,
        pairs: PairSource,
        labels: Labels | None,
        recipe: Recipe,
        *,
        tokenizer: Callable[[list[str]], Tensor],
        data: DataConfig,
        label_size: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.labelled = labelled_tasks(recipe.tasks)
        self.pairs, self.labels, self.recipe = pairs, labels if self.labelled else None, recipe
        self.tokenizer, self.data, self.label_size = tokenizer, data, label_size
        self.mean = torch.tensor(data.mean).view(1, 3, 1, 1) * 255
        self.std = torch.tensor(data.std).view(1, 3, 1, 1) * 255
        # the smallest crop still has as many pixels as the input, so nothing is enlarged
        self.short_side = math.ceil(data.size[0] / math.sqrt(recipe.crop_scale[0]))
        self.count, self.steps = training_size(recipe, pairs)
        order = np.random.default_rng([recipe.seed, 7919]).permutation(len(pairs))
        self.held_out = np.sort(order[: recipe.val_pairs])
        self._held_out = frozenset(self.held_out.tolist())
        if recipe.batch_size % (world * recipe.accumulate):
            raise UserError(
                f"batch_size {recipe.batch_size} does not divide into {world} processes ×"
                f" {recipe.accumulate} parts"
            )
        self.rank, self.world = rank, world
        self.steps_per_epoch = math.ceil(self.count / recipe.batch_size)
        self._orders: dict[int, np.ndarray] = {}
        self._cache: list[_DecodedPair] | None = None

    def __len__(self) -> int:
        return self.steps

    def positions(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(indices, epochs) of this rank's pairs in ``step``."""
        share = self.recipe.batch_size // self.world
        first = step * self.recipe.batch_size + self.rank * share
        epochs, offsets = np.divmod(np.arange(first, first + share), self.count)
        indices = np.empty(share, np.int64)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            indices[rows] = self._order(int(epoch))[offsets[rows]]
        return indices, epochs

    def __getitem__(self, step: int) -> Batch:
        recipe = self.recipe
        indices, epochs = self.positions(step)
        samples = [self._sample(int(index)) for index in indices]
        sizes = [sample.image.shape[:2] for sample in samples]
        geometry = random_geometry(
            indices.tolist(),
            sizes,
            seed=recipe.seed,
            epoch=epochs,
            scale=recipe.crop_scale,
            flip=recipe.flip,
        )
        return self._assemble(samples, geometry)

    def validation(self, size: int = 64) -> Iterator[Batch]:
        """This rank's share of the readable held-out pairs in batches of ``size``, prepared as the
        probes prepare images; their labels are not read, and their targets mean nothing."""
        share = np.array_split(self.held_out, self.world)[self.rank]
        for start in range(0, len(share), size):
            indices = share[start : start + size]
            samples = [self._sample(int(index), with_labels=False) for index in indices]
            samples = [sample for sample in samples if sample.bad is None]
            if samples:
                sizes = [sample.image.shape[:2] for sample in samples]
                yield self._assemble(samples, centre_geometry(sizes, squash=self.data.squash))

    @cached_property
    def is_small(self) -> bool:
        """Whether all decoded samples fit into ``MEMORY_BYTES``."""
        count = len(self.pairs)
        examples = [self._read(int(i)) for i in np.linspace(0, count - 1, min(8, count))]
        return max(sample.nbytes for sample in examples) * count <= MEMORY_BYTES

    def cache_in_memory(self, progress: Progress, threads: int = 2) -> bool:
        """Decode everything once into memory, if it is small; returns whether it is."""
        if not self.is_small:
            return False
        count = len(self.pairs)
        progress.start("reading pairs", count)
        cache = []
        with ThreadPoolExecutor(threads) as pool:
            for sample in pool.map(self._read, range(count)):
                cache.append(sample)
                progress.advance()
        self._cache = cache
        return True

    def loader(self, start: int, workers: int, *, pin: bool = False) -> Iterator[Batch]:
        """Batches from ``start`` to the last, by worker processes, or threads if the samples are
        small.

        Args:
            pin: in pinned memory, for a GPU.
        """
        steps = range(start, self.steps)
        if self.is_small or workers == 0:
            # no DataLoader: it would draw from torch's random state
            return computed_ahead(
                lambda step: self[step].pin_memory() if pin else self[step], steps, workers
            )
        return iter(
            DataLoader(self, batch_size=None, sampler=steps, num_workers=workers, pin_memory=pin)
        )

    def to_device(self, batch: Batch, device: torch.device) -> Batch:
        """A batch on ``device``, its images float32 and normalised for the image tower."""
        batch = batch.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)  # once
        batch.images = batch.images.float().sub_(self.mean).div_(self.std)
        return batch

    def add_targets(self, batch: Batch) -> Batch:
        """The batch with the targets of tasks that learn without labels."""
        for name in set(self.recipe.tasks).difference(self.labelled):
            with torch.no_grad():
                target = find_task(name).make_target(batch.images, self.label_size)
            batch.targets[name] = target
        return batch

    def _order(self, epoch: int) -> np.ndarray:
        orders = self._orders  # replaced as one: threads may do so at once
        if epoch not in orders:
            order = self.pairs.epoch_order(self.recipe.seed, epoch)
            orders = {e: o for e, o in orders.items() if e == epoch - 1}
            orders[epoch] = order[~np.isin(order, self.held_out)]
            self._orders = orders
        return orders[epoch]

    def _sample(self, index: int, with_labels: bool = True) -> _DecodedPair:
        return self._cache[index] if self._cache is not None else self._read(index, with_labels)

    def _read(self, index: int, with_labels: bool = True) -> _DecodedPair:
        """Pair ``index``, or instead of an unreadable one the next that is readable and trained
        on."""
        bad = None
        for offset in range(min(MAX_REPLACEMENTS, len(self.pairs))):
            candidate = (index + offset) % len(self.pairs)
            if offset and candidate in self._held_out:
                continue
            try:
                pair, image = self.pairs.decoded(candidate, self.short_side, exact=False)
                break
            except BadPair as error:
                bad = bad or (self.pairs.key(candidate), str(error))
        else:
            raise UserError(
                f"{MAX_REPLACEMENTS} pairs in a row cannot be read from {self.pairs.name}, first"
                f" {bad}; check the files"
            )
        sample = _DecodedPair(image, self.tokenizer([pair.caption])[0], {}, bad)
        if self.labels is not None and with_labels:
            sample.labels = self._read_labels(self.labels, pair.key)
            sample.unlabelled = not sample.labels
        return sample

    def _read_labels(self, labels: Labels, key: str) -> dict[str, Tensor]:
        # asked first, since a KeyError of ``get`` may also be a bug in a task's decoder
        if not labels.tasks_of(key):
            return {}
        maps = labels.get(key, self.labelled)
        return {
            name: find_label_map(name).to_tensor(np.asarray(label)) for name, label in maps.items()
        }

    def _assemble(self, samples: Sequence[_DecodedPair], geometry: Geometry) -> Batch:
        images = crop_images(
            [sample.image for sample in samples],
            geometry,
            self.data.size[0],
            self.data.interpolation,
        )
        batch = Batch(images, torch.stack([sample.tokens for sample in samples]))
        batch.bad = [sample.bad for sample in samples if sample.bad]
        batch.unlabelled = sum(sample.unlabelled for sample in samples)
        for name in self.labelled if self.labels is not None else ():
            task = find_label_map(name)
            maps = [sample.labels.get(name, task.missing) for sample in samples]
            batch.targets[name] = task.warp(maps, geometry, self.label_size)
        return batch


def training_size(recipe: Recipe, pairs: PairSource) -> tuple[int, int]:
    """(number of training pairs, number of steps). Raises ``UserError`` if there are too few
    pairs."""
    total = len(pairs)
    if recipe.val_pairs > total // 2:
        raise UserError(
            f"val_pairs {recipe.val_pairs} is more than half of {total} pairs; --set val_pairs=N"
            " lowers it"
        )
    count = total - recipe.val_pairs
    if count < recipe.batch_size:
        raise UserError(
            f"batch_size {recipe.batch_size} is more than the {count} training pairs of"
            f" {pairs.name}; --set batch_size=N lowers it"
        )
    return count, math.ceil(recipe.epochs * count / recipe.batch_size)


def random_geometry(
    indices: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    *,
    seed: int,
    epoch: int | np.ndarray,
    scale: tuple[float, float] = (0.9, 1.0),
    flip: float = 0.5,
) -> Geometry:
    """Draw an augmentation for each image from (seed, epoch, its index) alone, whoever else is in
    the batch.

    Args:
        indices: the images' indices in their source.
        sizes: (height, width) of each, any unit.
        epoch: of all, or of each.
        scale: range of the crop's area, as a share of the largest square that fits.
        flip: probability of a flip.
    """
    box = np.empty((len(indices), 4), np.float32)
    draws = np.empty((len(indices), 4))
    for row, (index, number) in enumerate(
        zip(indices, np.broadcast_to(epoch, len(indices)), strict=True)
    ):
        draws[row] = np.random.Generator(
            np.random.Philox(key=[seed, (int(number) << 40) + int(index)])
        ).random(4)
    height, width = np.asarray(sizes, np.float64).T
    side = np.minimum(height, width) * np.sqrt(scale[0] + draws[:, 0] * (scale[1] - scale[0]))
    box[:, 2], box[:, 3] = side / width, side / height
    box[:, 0] = box[:, 2] / 2 + draws[:, 1] * (1 - box[:, 2])
    box[:, 1] = box[:, 3] / 2 + draws[:, 2] * (1 - box[:, 3])
    return Geometry(torch.from_numpy(box), torch.from_numpy(draws[:, 3] < flip))


def centre_geometry(sizes: Sequence[tuple[int, int]], *, squash: bool = False) -> Geometry:
    """For evaluation: the largest centred square of each image of (height, width), or the complete
    image if it is to be squashed into a square."""
    height, width = np.asarray(sizes, np.float64).T
    side = np.minimum(height, width)
    extent = np.ones((2, len(side))) if squash else np.stack([side / width, side / height])
    box = np.stack([np.full_like(side, 0.5), np.full_like(side, 0.5), *extent], 1).astype(
        np.float32
    )
    return Geometry(torch.from_numpy(box), torch.zeros(len(side), dtype=torch.bool))


def crop_images(
    images: Sequence[np.ndarray], geometry: Geometry, size: int, interpolation: str = "bicubic"
) -> Tensor:
    """Images, uint8 (H, W, 3) each → (N, 3, size, size) uint8: each crop resampled once and
    antialiased, straight from the image, as the preprocessing of CLIP does it."""
    resampling = Image.Resampling[interpolation.upper()]
    out = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    for row, image in enumerate(images):
        height, width = image.shape[:2]
        x, y, w, h = geometry.box[row].tolist()
        left, upper = max(0.0, (x - w / 2) * width), max(0.0, (y - h / 2) * height)
        right, lower = min(width, (x + w / 2) * width), min(height, (y + h / 2) * height)
        box = (left, upper, right, lower)
        crop = Image.fromarray(image).resize((size, size), resampling, box=box)
        pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1)
        out[row] = pixels.flip(2) if geometry.flip[row] else pixels
    return out
