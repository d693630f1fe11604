"""Training samples whose order and augmentation depend on the seed alone, not on the loading
processes or on how often training was stopped.

All randomness follows from (seed, number): sample ``k`` ever taken is seeded by (seed, k),
iteration ``i`` by (seed, i).

A group's photographs (or their features) are loaded once, with the ground truth of every task on
them (``GroupDataset``); evaluations take several images at once, where neighbours in the dataset
have one shape (``SameShapeBatches``).
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset, Sampler

from cliptex_common.device import is_accelerator, isolated_rng, seed_devices
from cliptex_common.files import content_key, derive_seed


def seed_iteration(seed: int, iteration: int) -> None:
    """Seed every generator by (seed, iteration): dropout repeats after a resume, and for each head
    of a group."""
    number = derive_seed("iteration", seed, 0, iteration) % 2**32
    random.seed(number)
    np.random.seed(number)
    seed_devices(number)


@DATASETS.register_module()
class SeededSamples(Dataset):
    """An endless training set: item ``k`` is the k-th sample of one shuffle after the other.

    The generators of python, numpy and torch are seeded by (seed, k) while a sample is loaded and
    restored afterwards.

    Args:
        dataset: config of the training set, or the set.
        seed: of the order and of the augmentation.
        leave_out: items of the set that are never taken.
        shuffle: otherwise each pass is in the order of the set.
    """

    def __init__(
        self,
        dataset: Mapping[str, Any] | Dataset,
        seed: int = 0,
        leave_out: Sequence[int] = (),
        shuffle: bool = True,
    ) -> None:
        self.shuffle = shuffle
        self.dataset: Any = DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
        self.seed = seed
        self._items = np.setdiff1d(np.arange(len(self.dataset)), np.array(leave_out, np.int64))  # type: ignore[arg-type]
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self._items)

    @property
    def metainfo(self) -> dict[str, Any]:
        return dict(getattr(self.dataset, "metainfo", {}))

    def index(self, number: int) -> int:
        """Which item of the set the ``number``-th sample is."""
        epoch, position = divmod(number, len(self))
        if self._order[0] != epoch:
            order = self._items
            if self.shuffle:
                generator = np.random.default_rng(derive_seed("order", self.seed, epoch))
                order = order[generator.permutation(len(self))]
            if arrange := getattr(self.dataset, "arrange", None):
                order = arrange(order, epoch * len(order))
            self._order = epoch, order
        return int(self._order[1][position])

    def __getitem__(self, number: int) -> Any:
        with isolated_rng(derive_seed("sample", self.seed, number)):
            return self.dataset[self.index(number)]


@DATA_SAMPLERS.register_module()
class EndlessSampler(Sampler[int]):
    """Yields sample indices (of ``SeededSamples``) 0, 1, 2 … without end; where several processes
    train together, of each ``batch`` some ``rows``."""

    def __init__(
        self,
        dataset: SeededSamples,
        seed: int | None = None,
        batch: int = 1,
        rows: Sequence[int] = (0,),
    ) -> None:
        self.size, self.start, self.batch, self.rows = len(dataset), 0, batch, rows

    def skip(self, samples: int) -> None:
        """Begin after so many samples; mmengine's loop calls it when it resumes."""
        self.start = samples

    def __iter__(self) -> Iterator[int]:
        starts = itertools.count(self.start, self.batch)
        return (start + row for start in starts for row in self.rows)

    def __len__(self) -> int:
        return self.size


@HOOKS.register_module()
class SeedEachIteration(Hook):
    """``seed_iteration`` before each step of plain mmengine, as ``probes.train.loop`` does
    for each head."""

    priority = "VERY_HIGH"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        seed_iteration(self.seed, runner.iter)


# of a batch: on a GPU the time around a batch is long compared to that of its images
PIXELS, GPU_PIXELS = 2**18, 2**22
OUTPUTS, GPU_OUTPUTS = 2**27, 2**30  # numbers that a model puts out for a batch, in float32


def batch_options(images: int, device: torch.device, channels: int = 0) -> dict[str, Any]:
    """Loader options of an evaluation with batches of at most so many ``images``, fewer where they
    are large, or what is made of them is: ``channels`` numbers for each pixel of their files."""
    pixels, outputs = (GPU_PIXELS, GPU_OUTPUTS) if is_accelerator(device) else (PIXELS, OUTPUTS)
    sampler: dict[str, Any] = {"type": "SameShapeBatches", "pixels": pixels}
    if channels:
        sampler["outputs"] = outputs // channels
    return {"batch_size": images, "batch_sampler": sampler}


def smallest_batches(loaders: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Options of a loader for several evaluations of the same images: those of the first, with the
    least of what each may load at once (``batch_options``)."""
    options = dict(loaders[0], batch_size=min(loader["batch_size"] for loader in loaders))
    samplers = [loader.get("batch_sampler") or {} for loader in loaders]
    if outputs := [sampler["outputs"] for sampler in samplers if "outputs" in sampler]:
        options["batch_sampler"] = dict(samplers[0], outputs=min(outputs))
    return options


@DATA_SAMPLERS.register_module()
class SameShapeBatches(Sampler[list[int]]):
    """Batches of neighbours of one shape, in the order of the dataset, which does not change.

    Args:
        sampler: gives the order; its ``dataset`` has ``shape(index)``, which must be equal within a
            batch: height and width of the padded image first.
        batch_size: most images of a batch.
        pixels: most pixels of a batch. Batches save the work around the model, a fixed time for
            each; large images gain nothing and take memory.
        outputs: most pixels of a batch's image files, at whose resolution outputs are made; None
            for any number. The ``dataset`` has ``own_size(index)``.
    """

    def __init__(
        self,
        sampler: Sampler[int],
        batch_size: int,
        pixels: int = PIXELS,
        outputs: int | None = None,
    ) -> None:
        dataset: Any = sampler.dataset  # type: ignore[attr-defined]
        self.batches: list[list[int]] = []
        self.outputs = outputs
        batch: list[int] = []
        batch_shape, output_pixels = None, 0
        for index in sampler:
            shape = dataset.shape(index)
            own_pixels = math.prod(dataset.own_size(index)) if outputs else 0
            has_room = len(batch) < max(1, min(batch_size, pixels // (shape[0] * shape[1])))
            fits = not outputs or output_pixels + own_pixels <= outputs
            if shape != batch_shape or not has_room or not fits:
                batch, batch_shape, output_pixels = [], shape, 0
                self.batches.append(batch)
            batch.append(index)
            output_pixels += own_pixels

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class GroupDataset(Dataset):
    """Datasets of the same photographs in the same order, as one.

    An item is that of the first dataset; ``more_samples`` are the ground truth of the others, by
    the same random numbers, and so with the same geometry.

    Args:
        configs: of each task's dataset; tasks with equal ones share it.

    Attributes:
        datasets: the distinct ones.
        indices: which of them is each task's.
    """

    def __init__(self, configs: Sequence[Mapping[str, Any]]) -> None:
        distinct = {content_key(config): config for config in configs}
        self.indices = [list(distinct).index(content_key(config)) for config in configs]
        self.datasets: list[Any] = [DATASETS.build(config) for config in distinct.values()]
        if len({len(dataset) for dataset in self.datasets}) > 1:
            raise ValueError("the datasets of a task group must be of the same photographs")

    def __len__(self) -> int:
        return len(self.datasets[0])

    def __getitem__(self, index: int) -> dict[str, Any]:
        samples = []
        for dataset in self.datasets[1:]:
            with isolated_rng():  # each starts from the same random numbers
                samples.append(dataset.ground_truth(index))
        item = self.datasets[0][index]
        return {**item, "more_samples": samples} if samples else item

    @property
    def arrange(self) -> Any:
        """How the first dataset arranges an epoch, or None; see ``SeededSamples``."""
        return getattr(self.datasets[0], "arrange", None)

    def batches(
        self, preprocessor: nn.Module, data: Mapping[str, Any], training: bool
    ) -> list[dict[str, Any]]:
        """Prepare a collated batch by mmengine's ``preprocessor``: for each task what its model
        takes, all with the same ``inputs``."""
        first: dict[str, Any] = preprocessor(
            {name: value for name, value in data.items() if name != "more_samples"}, training
        )
        batches = [first]
        more_samples = zip(*data.get("more_samples", []), strict=True)
        for samples in preprocessor.cast_data(list(more_samples)):  # type: ignore[operator]
            for sample, prepared in zip(samples, first["data_samples"], strict=True):
                # the preprocessor says how it padded an image in the first sample alone
                added = set(prepared.metainfo) - set(sample.metainfo)
                sample.set_metainfo({name: prepared.metainfo[name] for name in added})
            batches.append({**first, "data_samples": list(samples)})
        return [batches[index] for index in self.indices]


def rows_of(data: Mapping[str, Any], rows: slice) -> dict[str, Any]:
    """Some images of a collated batch."""
    return {name: values[rows] for name, values in data.items()}
