"""The data of a task group: each photograph (or its features) is loaded once, with the ground truth
of every task on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.registry import DATASETS
from torch import nn
from torch.utils.data import Dataset

from cliptex_common.files import content_key
from probes.train.sampling import isolated_rng


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
                added = set(prepared.metainfo) - set(sample.metainfo)  # shapes with padding
                sample.set_metainfo({name: prepared.metainfo[name] for name in added})
            batches.append({**first, "data_samples": list(samples)})
        return [batches[index] for index in self.indices]


def rows_of(data: Mapping[str, Any], rows: slice) -> dict[str, Any]:
    """Some images of a collated batch."""
    return {name: values[rows] for name, values in data.items()}
