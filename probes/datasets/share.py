"""A part of train, for curves of label efficiency: the same for all backbones, the smaller one
inside the larger."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from common.files import content_key
from probes.datasets.base import PreparedDataset
from probes.features.content_hashes import content_hashes


def with_share(data: PreparedDataset, share: float, seed: int) -> PreparedDataset:
    """``data`` whose train is ``share`` of its images (0 to 1), drawn by the seed and the images'
    content, one at least; of classification that share of each class. What is encoded stays the
    whole split, so all shares need one encoding.

    Raises:
        UserError: an image cannot be read.
    """
    if share == 1:
        return data
    whole = data.samples["train"]
    ranks = [
        content_key(["share of train", seed, digest])
        for digest in content_hashes([data.root / sample.image for sample in whole])
    ]
    strata: dict[object, list[int]] = defaultdict(list)
    for place, sample in enumerate(whole):
        strata[sample.target if data.spec.kind == "classification" else None].append(place)
    places = sorted(
        place
        for members in strata.values()
        for place in sorted(members, key=lambda place: (ranks[place], place))[
            : max(1, round(share * len(members)))
        ]
    )
    samples = {**data.samples, "train": [whole[place] for place in places]}
    return replace(data, samples=samples, whole=tuple(whole), places=tuple(places))
