"""Training samples whose order and augmentation depend on the seed alone, not on the loading
processes or on how often training was stopped.

All randomness follows from (seed, number): sample ``k`` ever taken is seeded by (seed, k),
iteration ``i`` by (seed, i).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS
from mmengine.runner import Runner
from torch.utils.data import Dataset, Sampler

from cliptex_common.device import seed_devices
from cliptex_common.files import derive_seed


def seed_iteration(seed: int, iteration: int) -> None:
    """Seed every generator by (seed, iteration): dropout repeats after a resume, and for each head
    of a group."""
    number = derive_seed("iteration", seed, 0, iteration) % 2**32
    random.seed(number)
    np.random.seed(number)
    seed_devices(number)


@contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Restore the generators of python, numpy and torch (CPU) after the block; within it they start
    from ``seed``, if one is given."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


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
    """Yields sample indices (of ``SeededSamples``) 0, 1, 2 … without end."""

    def __init__(self, dataset: SeededSamples, seed: int | None = None) -> None:
        self.size, self.start = len(dataset), 0

    def skip(self, samples: int) -> None:
        """Begin after so many samples; mmengine's loop calls it when it resumes."""
        self.start = samples

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start)

    def __len__(self) -> int:
        return self.size


@HOOKS.register_module()
class SeedEachIteration(Hook):
    """``seed_iteration`` before each step of plain mmengine, as ``probes.train.head_trainer`` does
    for each head."""

    priority = "VERY_HIGH"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        seed_iteration(self.seed, runner.iter)
