"""Global embeddings that are encoded once: shared by linear and zero-shot classification, retrieval, seeds and runs.

They are kept in float32, as they were computed, so that keeping them changes no number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones.base import Backbone
from backbones.files import content_key
from probes.base import Progress
from probes.features import compiling
from probes.features.budget import NoRoom
from probes.features.content_hashes import digests
from probes.features.cost import EncodeCost
from probes.features.store import Recipe, ensure
from probes.image_level.encode import encode_images
from probes.image_level.settings import Precision


def kept_embeddings(
    backbone: Backbone,
    paths: Sequence[Path],
    device: torch.device,
    *,
    about: str,
    size: tuple[int, int] | None = None,
    batch_size: int = 64,
    workers: int = 2,
    precision: Precision = "fp32",
    progress: Progress | None = None,
    cost: EncodeCost | None = None,
) -> Tensor:
    """``probes.image_level.encode.encode_images`` of ``paths``, from the feature cache when they are there.

    Where the cache has no room they are encoded all the same, and not kept.

    Args:
        about: name of the set, for people.
        cost: what had to be encoded is added to it.
        others: see ``encode_images``.
    Returns:
        (len(paths), backbone.embed_dim) float32 on the CPU.
    """

    def encode(chosen: Sequence[Path]) -> Tensor:
        return encode_images(
            backbone, chosen, device, size=size, batch_size=batch_size, workers=workers, precision=precision,
            progress=progress, cost=cost,
        )  # fmt: skip

    def make(wanted: Sequence[Sequence[int]]) -> Iterator[tuple[int, list[Tensor], Mapping[str, Any]]]:
        for shard in wanted:
            for item, embedding in zip(shard, encode([paths[item] for item in shard]), strict=True):
                yield item, [embedding], {}

    cost = cost or EncodeCost()
    if not paths:
        return encode(paths)
    identity = {
        "backbone": backbone.identity(), "images": content_key(digests(paths), 64), "size": size or backbone.data.size,
        "precision": precision, "batch_size": batch_size, "device": device.type, "torch": torch.__version__,
    }  # fmt: skip
    if compiling.wanted():
        identity["compiled"] = True
    recipe = Recipe(
        "embeddings", f"{backbone.name} on {about}", identity, ("fp32",), [4 * backbone.embed_dim] * len(paths)
    )
    with cost.timed():
        try:
            store = ensure(recipe, make)
        except NoRoom:
            return encode(paths)
    try:
        return store.stacked()
    finally:
        store.close()
