"""The same samples, in the same order, augmented alike, whatever loads them and however often training stopped.

All randomness follows from (seed, place): sample ``k`` ever drawn is seeded by (seed, k), iteration ``i`` by (seed, i).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS
from mmengine.runner import Runner
from torch.utils.data import Dataset, Sampler

from backbones.files import content_key
from probes.runner import bridge


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed that is a function of ``parts`` alone (their sha256), the same in every process."""
    return int(content_key(parts, 16), 16) >> 1


@DATASETS.register_module()
class SeededDraws(Dataset):
    """A training set without end: item ``k`` is the k-th sample ever drawn, from one shuffle after the other.

    python's, numpy's and torch's generators are seeded by (seed, k) while the sample is made and put back afterwards.

    Args:
        dataset: config of the training set, or the set.
        seed: of the order and of the augmentation.
    """

    def __init__(self, dataset: Mapping[str, Any] | BaseDataset, seed: int = 0) -> None:
        self.dataset: Any = DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
        if hasattr(self.dataset, "full_init"):
            self.dataset.full_init()
        self.seed = seed
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def metainfo(self) -> dict[str, Any]:
        return dict(getattr(self.dataset, "metainfo", {}))

    def index(self, draw: int) -> int:
        """Which item of the set the ``draw``-th sample is."""
        epoch, place = divmod(draw, len(self.dataset))
        if self._order[0] != epoch:
            generator = np.random.default_rng(seed_of("order", self.seed, epoch))
            order, arrange = generator.permutation(len(self.dataset)), getattr(self.dataset, "arrange", None)
            self._order = epoch, arrange(order, epoch * len(order)) if arrange else order
        return int(self._order[1][place])

    def __getitem__(self, draw: int) -> Any:
        with bridge.isolated_rng(seed_of("sample", self.seed, draw)):
            return self.dataset[self.index(draw)]


@DATA_SAMPLERS.register_module()
class EndlessSampler(Sampler[int]):
    """Yields draw numbers (for ``SeededDraws``) without end; process r of w takes r, r + w, r + 2w …"""

    def __init__(self, dataset: SeededDraws, seed: int | None = None) -> None:
        if not isinstance(dataset, SeededDraws):
            raise TypeError(f"EndlessSampler numbers the draws of a SeededDraws, not of {type(dataset).__name__}")
        self.rank, self.world_size = get_dist_info()
        self.size = len(dataset)
        self.start = 0

    def skip(self, samples: int) -> None:
        """Begin after ``samples`` draws of this process; mmengine's loop calls it when it resumes."""
        self.start = samples

    def __iter__(self) -> Iterator[int]:
        draw = self.rank + self.start * self.world_size
        while True:
            yield draw
            draw += self.world_size

    def __len__(self) -> int:
        return self.size


@HOOKS.register_module()
class SeedEachIteration(Hook):
    """Seed every generator by (seed, iteration) before each step: dropout and the like repeat after a resume."""

    priority = "VERY_HIGH"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        bridge.seed_all(seed_of("iteration", self.seed, runner.rank, runner.iter) % 2**32)
