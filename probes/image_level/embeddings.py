"""Features of whole images that are encoded once: shared by linear and zero-shot classification,
retrieval, seeds and runs.

They are kept in float32, as they were computed, so that keeping them changes no number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from backbones.base import Backbone
from backbones.versions import WHOLE_IMAGES, versions
from common.files import content_key
from probes.base import Context
from probes.datasets.base import Split
from probes.features.budget import CacheFull
from probes.features.content_hashes import content_hashes
from probes.features.cost import EncodeRun
from probes.features.store import CacheKey, get_or_build
from probes.image_level.encode import encode_images
from probes.image_level.settings import Encoding


def encode_split(
    context: Context, split: Split, run: EncodeRun, members: Tensor | None = None
) -> Tensor:
    """Features of the images of one split (or of ``members``, the held-out part of it), in the
    order of its samples: see ``kept_embeddings``."""
    data = context.data
    chosen = (
        data.encoded(split)
        if members is None
        else [data.samples[split][index] for index in members]
    )
    about = (
        f"{context.data.spec.name} ({split if members is None else f'held-out part of {split}'})"
    )
    paths = [data.root / sample.image for sample in chosen]
    found = kept_embeddings(
        context.backbone, paths, run, context.settings.encoding(run.device.type), about
    )
    return found[list(data.places)] if chosen is data.whole else found


def kept_embeddings(
    backbone: Backbone, paths: Sequence[Path], run: EncodeRun, how: Encoding, about: str
) -> Tensor:
    """``encode_images``, from the feature cache when they are there; where it has no room they are
    not kept.

    Args:
        about: name of the set, for people.
    Returns:
        (len(paths), D) float32 on the CPU; mapped, not read, where it is a single file.
    """

    def build(
        wanted: Sequence[Sequence[int]],
    ) -> Iterator[tuple[int, list[Tensor], Mapping[str, Any]]]:
        for shard in wanted:
            for item, embedding in zip(
                shard,
                encode_images(backbone, [paths[item] for item in shard], run, how),
                strict=True,
            ):
                yield item, [embedding], {}

    if not paths:
        return encode_images(backbone, paths, run, how)
    identity = {
        "backbone": backbone.identity(),
        "images": content_key(content_hashes(paths), 64),
        **asdict(how),
        "size": how.size or backbone.data.size,
        "device": run.device.type,
        "libraries": versions(*WHOLE_IMAGES),
    }
    # for the room it takes: as long as the embedding, or a token for each block and a mean
    width = (
        (how.blocks + 1) * max(backbone.channels)
        if how.blocks
        else max(backbone.embed_dim, *backbone.channels)
    )
    key = CacheKey(
        "embeddings", f"{backbone.name} on {about}", identity, ("fp32",), [4 * width] * len(paths)
    )
    with run.cost.timed():
        try:
            store = get_or_build(key, build)
        except CacheFull:
            return encode_images(backbone, paths, run, how)
    try:
        return store.stacked()
    finally:
        store.close()
