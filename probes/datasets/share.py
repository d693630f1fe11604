"""Shares of train, for curves of label efficiency: equal for all backbones, smaller ones inside
larger ones."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from cliptex_common.files import content_key
from probes.datasets.base import PreparedDataset
from probes.features.content_hashes import content_hashes


def with_share(data: PreparedDataset, share: float, seed: int) -> PreparedDataset:
    """``data`` with ``share`` (0 to 1) of its training images (or those of the dataset that is
    trained on), at least one; for classification that share of each class. Seed and image content
    decide which. Features of the full split are encoded, so all shares need one encoding.

    Raises:
        UserError: an image cannot be read.
    """
    if share == 1:
        return data
    if data.trained_on is not None:
        return replace(data, trained_on=with_share(data.trained_on, share, seed))
    train = data.samples["train"]
    ranks = [
        content_key(["share of train", seed, digest])
        for digest in content_hashes([data.root / sample.image for sample in train])
    ]
    strata: dict[object, list[int]] = defaultdict(list)
    for index, sample in enumerate(train):
        strata[sample.target if data.spec.kind == "classification" else None].append(index)
    selected: list[int] = []
    for indices in strata.values():
        indices.sort(key=lambda index: (ranks[index], index))
        selected += indices[: max(1, round(share * len(indices)))]
    selected.sort()
    samples = {**data.samples, "train": [train[index] for index in selected]}
    return replace(data, samples=samples, full_train=tuple(train), train_indices=tuple(selected))
