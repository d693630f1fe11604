"""The data of a task group: each photograph (or its features) is loaded once, with the ground truth
of every task on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.registry import DATASETS
from torch import nn
from torch.utils.data import Dataset

from common.files import content_key
from probes.base import Context
from probes.features.cost import EncodeCost, EncodeRun
from probes.runner import bridge


class GroupDataset(Dataset):
    """Datasets of the same photographs in the same order, as one.

    An item is that of the first dataset; ``others`` are the ``data_samples`` of the rest, made by
    the same random numbers and so with the same geometry, of black images.

    Args:
        configs: of each member's dataset; members with equal ones share it.

    Attributes:
        datasets: the different ones; places: which of them is each member's.
    """

    def __init__(self, configs: Sequence[Mapping[str, Any]]) -> None:
        keys = [content_key(config) for config in configs]
        distinct = dict(zip(reversed(keys), reversed(configs), strict=True))
        order = list(dict.fromkeys(keys))
        self.places = [order.index(key) for key in keys]
        first, *rest = (distinct[key] for key in order)
        self.datasets: list[Any] = [
            DATASETS.build(first),
            *(DATASETS.build(_without_images(one)) for one in rest),
        ]
        for dataset in self.datasets:
            if hasattr(dataset, "full_init"):
                dataset.full_init()
        if len(lengths := {len(dataset) for dataset in self.datasets}) > 1:
            raise ValueError(
                f"the datasets of a group have {sorted(lengths)} images, so they are not the same"
            )

    def __len__(self) -> int:
        return len(self.datasets[0])

    def __getitem__(self, index: int) -> dict[str, Any]:
        samples = []
        for dataset in self.datasets[1:]:
            with bridge.isolated_rng():  # each begins with the same random numbers
                samples.append(dataset[index]["data_samples"])
        item = self.datasets[0][index]
        return {**item, "others": samples} if samples else item

    @property
    def encodes(self) -> bool:
        """Whether what is loaded are features that were kept."""
        return hasattr(self.datasets[0], "open")

    @property
    def arrange(self) -> Any:
        """How the first dataset wants an epoch arranged, if it does; see ``SeededSamples``."""
        return getattr(self.datasets[0], "arrange", None)

    def shape(self, index: int) -> tuple[int, ...]:
        """What images of one batch have in common; see ``probes.runner.batches``."""
        return self.datasets[0].shape(index)

    def view(self, member: int) -> Any:
        """What the dataset of a member would be alone."""
        place = self.places[member]
        return self.datasets[0] if place == 0 else _View(self, place)

    def open(self, context: Context, cost: EncodeCost) -> list[str]:
        """Make the features that are not there, with progress, and hold all of them open: nobody
        can remove them meanwhile. Returns what was found damaged.

        Raises:
            UserError: they do not fit together (see ``probes.features.budget``), or an image cannot
                be read.
            NonFiniteLoss: a map is not finite.
        """
        notes: list[str] = []
        for dataset in self.datasets if self.encodes else ():
            dataset.open(EncodeRun(context.device, context.num_workers, context.progress, cost))
            notes += dataset.notes
        return notes

    def close(self) -> None:
        """Let go of the features."""
        for dataset in self.datasets if self.encodes else ():
            dataset.close()


class _View(Dataset):
    def __init__(self, group: GroupDataset, place: int) -> None:
        self._group, self._place = group, place
        self.metainfo = group.datasets[place].metainfo

    def __len__(self) -> int:
        return len(self._group)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self._group[index]
        return {"inputs": item["inputs"], "data_samples": item["others"][self._place - 1]}


def prepared(
    preprocessor: nn.Module, data: Mapping[str, Any], places: Sequence[int], training: bool
) -> list[dict[str, Any]]:
    """A collated batch of a ``GroupDataset`` on the device, prepared once: what each member's model
    takes.

    Args:
        preprocessor: mmengine's ``BaseDataPreprocessor`` or a subclass.
        places: of the members; see ``GroupDataset``.
    """
    alone = {name: value for name, value in data.items() if name != "others"}
    batch: dict[str, Any] = preprocessor(alone, training)
    others = preprocessor.cast_data(data.get("others", []))  # type: ignore[operator]
    for samples in others:
        for sample, first in zip(samples, batch["data_samples"], strict=True):
            padding = {
                name: value for name, value in first.metainfo.items() if name not in sample.metainfo
            }
            sample.set_metainfo(padding)
    if training or "data_samples" not in batch:
        truths = [batch.get("data_samples"), *others]
        return [{**batch, "data_samples": truths[place]} if others else batch for place in places]
    truths = [
        batch["data_samples"],
        *others,
    ]  # predictions are written into a sample: each member has its own
    return [
        {**batch, "data_samples": [sample.clone() for sample in truths[place]]} for place in places
    ]


def _without_images(config: Mapping[str, Any]) -> dict[str, Any]:
    """A dataset's config for its ground truth alone: only the header of an image is read."""
    if "pipeline" not in config:
        return dict(config)
    blank = [
        {"type": "LoadBlank"} if part["type"] == "LoadImageFromFile" else part
        for part in config["pipeline"]
    ]
    return {**config, "pipeline": blank}
