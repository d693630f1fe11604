"""Features of whole images that are encoded once and shared by probes, seeds and runs.

They are cached in float32, as they were computed, so that caching changes no number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from backbones.base import Backbone
from backbones.versions import WHOLE_IMAGES, versions
from common.files import content_key
from probes.base import Context, EncodeRun
from probes.datasets.base import Split
from probes.features.budget import CacheFull
from probes.features.content_hashes import content_hashes
from probes.features.store import CacheKey, Metadata, get_or_build
from probes.image_level.encode import encode_images
from probes.image_level.settings import Encoding
from probes.layers import position


def encode_split(context: Context, split: Split, members: Tensor | None = None) -> Tensor:
    """Features of the images of a split, in the order of its samples; see ``cached_embeddings``.

    Args:
        members: indices of samples; None for all.
    """
    data = context.data
    samples, name = data.encoded(split), str(split)
    if members is not None:
        samples = [data.samples[split][index] for index in members]
        name = f"held-out part of {split}"
    embeddings = cached_embeddings(
        context.backbone,
        [data.root / sample.image for sample in samples],
        context,
        context.settings.encoding(context.device.type),
        f"{data.spec.name} ({name})",
    )
    embeddings = embeddings[:, layer_columns(context)]
    return embeddings[list(data.train_indices)] if samples is data.full_train else embeddings


def layer_columns(context: Context) -> slice:
    """The columns of the features that a task reads: those of its layer, or all."""
    layer = position(context.settings, context.backbone)
    if layer is None:
        return slice(None)
    channels = context.backbone.channels
    start = sum(channels[:layer])
    return slice(start, start + channels[layer])


def cached_embeddings(
    backbone: Backbone, paths: Sequence[Path], run: EncodeRun, encoding: Encoding, name: str
) -> Tensor:
    """``encode_images`` through the feature cache; without caching where the disk has no room.

    Args:
        name: of the set of images, for people.
    Returns:
        (len(paths), D) float32 on the CPU; memory-mapped where it is a single file.
    """

    def build(shards: Sequence[Sequence[int]]) -> Iterator[tuple[int, list[Tensor], Metadata]]:
        for shard in shards:
            embeddings = encode_images(backbone, [paths[item] for item in shard], run, encoding)
            for item, embedding in zip(shard, embeddings, strict=True):
                yield item, [embedding], {}

    identity = {
        "backbone": backbone.identity(),
        "images": content_key(content_hashes(paths), 64),
        **asdict(encoding),
        "size": encoding.size or backbone.data.size,
        "device": run.device.type,
        "libraries": versions(*WHOLE_IMAGES),
    }
    # disk space: as long as the embedding, or a token for each block and a mean
    width = max(backbone.embed_dim, *backbone.channels)
    if encoding.features == "layers":
        width = sum(backbone.channels)
    if encoding.blocks:
        width = (encoding.blocks + 1) * max(backbone.channels)
    sizes = [4 * width] * len(paths)
    key = CacheKey("embeddings", f"{backbone.name} on {name}", identity, ("fp32",), sizes)
    with run.cost.phase("encode"):
        try:
            store = get_or_build(key, build)
        except CacheFull:
            return encode_images(backbone, paths, run, encoding)
    try:
        return store.stacked()
    finally:
        store.close()
