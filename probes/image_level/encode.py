"""Whole images and texts to embeddings, by a frozen backbone.

Features of images are encoded once and shared by probes, seeds and runs. They are cached in
float32, as they were computed, so that caching changes no number.

Loader processes decode and resize while the model computes. Images travel as bytes and are scaled
and normalised on the device, so that the loader is not the bottleneck.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, default_convert

from backbones.base import Backbone, DataConfig
from backbones.preprocessing import Preprocessing, in_memory_format, resizing
from backbones.versions import WHOLE_IMAGES, versions
from cliptex_common.device import takes_pinned_memory
from cliptex_common.errors import NonFiniteLoss, UserError
from cliptex_common.files import content_key
from cliptex_common.images import to_rgb
from cliptex_common.out_of_memory import Halving
from cliptex_common.settings import Precision
from probes.base import Context, EncodeRun
from probes.datasets.base import Split
from probes.features.budget import CacheFull
from probes.features.content_hashes import content_hashes
from probes.features.members import image_source
from probes.features.store import CacheKey, Metadata, get_or_build
from probes.image_level.settings import EncodeSettings, Encoding
from probes.layers import position

TEXTS = 256  # that the backbone sees at once
Encode = Callable[[Tensor], Tensor]  # what the backbone takes → features, on the device


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


@torch.inference_mode()
def encode_images(
    backbone: Backbone, paths: Sequence[Path], run: EncodeRun, encoding: Encoding
) -> Tensor:
    """Features of whole images, in the order of ``paths``.

    Returns:
        (len(paths), D) float32 on the CPU, not normalised to unit length.
    Raises:
        UserError: an image cannot be read, or the size does not fit the backbone.
        NonFiniteLoss: the backbone gives an embedding that is not finite.
    """
    batches = encode_paths(paths, backbone, encoder(backbone, encoding), run, encoding)
    embeddings = torch.cat([embedded.cpu() for embedded in batches])
    return check_finite(embeddings, f"image embeddings of {backbone.name}")


def encode_paths(
    paths: Sequence[Path],
    backbone: Backbone,
    encode: Encode,
    run: EncodeRun,
    encoding: Encoding,
) -> Iterator[Tensor]:
    """``encode`` of images in their order, in batches, with progress."""
    images = Images(paths, input_size(encoding.size, backbone), backbone.data)
    run.progress.start("encoding images", len(images))
    for features in encode_batches(images, None, backbone, encode, run, encoding):
        yield features
        run.progress.advance(len(features))


def encode_batches(
    images: Images,
    batches: Sequence[Sequence[int]] | None,
    backbone: Backbone,
    encode: Encode,
    run: EncodeRun,
    encoding: Encoding,
) -> Iterator[Tensor]:
    """``encode`` of each batch of items (None: all in their order), float32 on the device.

    At most ``encoding.batch_size`` images go through the backbone at once, fewer where they do not
    fit the memory of the device.
    """
    if batches is None:
        items = range(len(images))
        size = encoding.batch_size
        batches = [items[start : start + size] for start in items[::size]]
    workers, device, cost = min(run.num_workers, len(batches)), run.device, run.cost
    loader = DataLoader(
        images,
        batch_sampler=batches,  # type: ignore[arg-type]  # ranges do as well
        num_workers=workers,
        collate_fn=default_convert,  # ``Images`` makes complete batches itself
        pin_memory=takes_pinned_memory(device),
        prefetch_factor=max(2, 256 // max(map(len, batches))) if workers else None,
    )
    in_parts = Halving(encoding.batch_size, "encoding images", cost.notes)
    normalise = Preprocessing(backbone.data, device).normalise

    def encode_part(pixels: Tensor) -> Tensor:
        pixels = pixels.to(device, non_blocking=takes_pinned_memory(device))
        pixels = in_memory_format(normalise(pixels), backbone)  # nothing else stays in memory
        return encode(pixels).float()

    for pixels in cost.timed("encode", loader):
        if isinstance(pixels, str):
            raise UserError(pixels)
        with cost.phase("encode"), torch.no_grad(), autocast(device, encoding.precision):
            parts = in_parts(encode_part, pixels)
        cost.images["encode"] += len(pixels)
        yield torch.cat(parts)


def encoder(backbone: Backbone, encoding: Encoding) -> Encode:
    """The function from normalised images to features (N, D).

    With ``blocks`` these are the class tokens of the blocks, then the mean of the last patch
    tokens; ``layers`` are the class tokens of the layers read, shallow to deep.
    """

    def class_tokens(images: Tensor) -> Tensor:
        if not encoding.blocks:
            return torch.cat([token for token, _ in backbone.encode_layers(images)], dim=1)
        layers = backbone.encode_tokens(images, encoding.blocks)
        return torch.cat([*(token for token, _ in layers), layers[-1][1].mean(dim=1)], dim=1)

    if encoding.blocks or encoding.features == "layers":
        return class_tokens
    if encoding.features == "pre_projection":
        return backbone.encode_features
    return backbone.encode_image


def input_size(size: tuple[int, int] | None, backbone: Backbone) -> tuple[int, int]:
    """``size``, or the backbone's own. Raises ``UserError`` when it does not fit the backbone."""
    height, width = size = size or backbone.data.size
    # its own size always fits, even where that is no multiple (EfficientNet-B3 was trained at 300)
    own = tuple(backbone.data.size)
    if size != own and (height % backbone.divisor or width % backbone.divisor):
        raise UserError(
            f"size {height}x{width} does not fit {backbone.name}: choose multiples of"
            f" {backbone.divisor}"
        )
    return size


@torch.inference_mode()
def encode_texts(context: Context, texts: Sequence[str]) -> Tensor:
    """Embeddings of texts by the backbone of a task, in their order.

    Returns:
        (len(texts), D) float32 on the CPU, not normalised to unit length.
    Raises:
        UserError: the backbone has no text tower.
        NonFiniteLoss: an embedding is not finite.
    """
    backbone, progress, cost = context.backbone, context.progress, context.cost
    progress.start("encoding texts", len(texts))
    parts = []
    in_parts = Halving(TEXTS, "encoding texts", cost.notes)
    for start in range(0, len(texts), TEXTS):
        batch = texts[start : start + TEXTS]
        with cost.phase("text"), autocast(context.device, context.settings.precision):
            parts += in_parts(lambda part: backbone.encode_text(part).float().cpu(), batch)
        progress.advance(len(batch))
    return check_finite(torch.cat(parts), f"text embeddings of {backbone.name}")


class Images(Dataset[Tensor]):
    """Decoded, resized and centre-cropped images: (3, H, W) uint8."""

    def __init__(self, paths: Sequence[Path], size: tuple[int, int], data: DataConfig) -> None:
        self.paths = [str(path) for path in paths]
        self.transform = resizing(replace(data, size=size), data.interpolation)

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        """The file of an item."""
        return self.paths[index]

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(image_source(self.path(index))) as image:
            rgb = to_rgb(image)
        return self.transform(rgb)

    def __getitems__(self, indices: list[int]) -> Tensor | str:
        """A batch, or the message of an error: an exception in a loader process would arrive as a
        page of traceback."""
        images = []
        for index in indices:
            try:
                images.append(self[index])
            except Exception as error:
                return (
                    f"cannot read {self.path(index)} ({str(error).splitlines()[0]}); was it changed"
                    " just now?"
                )
        # channels last, as they lie in memory, and at once into memory that processes share
        batch: Tensor = default_collate([image.permute(1, 2, 0) for image in images])
        return batch.permute(0, 3, 1, 2)


def square_side(settings: EncodeSettings, backbone: Backbone) -> int:
    """Side of the square that images are squeezed to: the size of the settings, or the backbone's
    own, rounded up to its divisor."""
    size = settings.size or min(backbone.data.size)
    return math.ceil(size / backbone.divisor) * backbone.divisor


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """bfloat16 arithmetic where ``precision`` is ``bf16``."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def check_finite(embeddings: Tensor, name: str) -> Tensor:
    """``embeddings``. Raises ``NonFiniteLoss`` where one is not finite."""
    if not bool(embeddings.isfinite().all()):
        raise NonFiniteLoss(f"{name} are not finite")
    return embeddings
