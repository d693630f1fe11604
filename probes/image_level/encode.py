"""Whole images and texts to embeddings, by a frozen backbone.

Features of images are encoded once and shared by probes, seeds and runs. They are stored in
float32, as they were computed, so that the store changes no number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import default_collate

from backbones.backbone import Backbone, Preprocessing, in_memory_format, resizing
from cliptex_common.device import Halving, takes_pinned_memory
from cliptex_common.errors import NonFiniteLoss, UserError, first_line
from cliptex_common.files import content_key
from cliptex_common.images import open_image, to_rgb
from cliptex_common.process import IMAGE_LIBRARIES, versions
from cliptex_common.settings import Precision
from probes.base import Context, EncodeContext, requested_map
from probes.datasets.base import Split
from probes.features.files import CacheFull, content_hashes, image_source
from probes.features.store import CacheKey, cast_features
from probes.features.views import Encoded, Views
from probes.image_level.settings import EncodeSettings, Encoding

EDITS = ("border", "squash", "upright")  # of images, which most tasks leave as they are
TEXTS = 256  # that the backbone sees at once
Encode = Callable[[Tensor], Tensor]  # what the backbone takes → features, on the device


def encode_split(context: Context, split: Split, members: Tensor | None = None) -> Tensor:
    """Features of the images of a split, in the order of its samples; see ``ImageViews``.

    Args:
        members: indices of samples; None for all.
    """
    data, name = context.data, str(split)
    trained_on, encoding = data.trained_on, encoding_of(context)
    if trained_on and encoding == encoding_of(context.training) and data.root == trained_on.root:
        index = {sample.image: row for row, sample in enumerate(trained_on.samples[split])}
        rows = [index.get(sample.image, -1) for sample in data.samples[split]]
        if -1 not in rows:  # all are images of that dataset, encoded in the same way: once
            return encode_split(context.training, split)[rows]
    samples, used = data.encoded(split), data.train_indices if split == "train" else ()
    if members is not None:
        samples, used = [data.samples[split][index] for index in members], ()
        name = f"held-out part of {split}"
    paths = [data.root / sample.image for sample in samples]
    views = ImageViews(context, context.backbone, paths, encoding, f"{data.spec.name} ({name})")
    embeddings = views.embeddings()[:, layer_columns(context)]
    return embeddings[list(used)] if used else embeddings


def encoding_of(context: Context) -> Encoding:
    """How the images of a task are encoded."""
    encoding: Encoding = context.settings.encoding(context.device.type)
    transfer = context.data.spec.transfer if context.data.trained_on else {}
    return replace(encoding, **{name: transfer[name] for name in EDITS if name in transfer})


def layer_columns(context: Context) -> slice:
    """The columns of the features that a task reads: those of its layer, or all."""
    layer = requested_map(context.settings, context.backbone)
    if layer is None:
        return slice(None)
    channels = context.backbone.channels
    start = sum(channels[:layer])
    return slice(start, start + channels[layer])


class ImageViews(Views):
    """Whole images, resized and centre-cropped to one size.

    They are loaded as (3, H, W) uint8, which are scaled and normalised on the device, so that
    loading is not the bottleneck.

    Args:
        encoding: how they are encoded.
        name: of the set of images, for people.
        encode: normalised images → features, which are not stored; None for those that ``encoding``
            says.
        squash: whether images become squares without keeping their shape, as a backbone may want it
            anyway.

    Raises:
        UserError: the size does not fit the backbone.
    """

    def __init__(
        self,
        context: EncodeContext,
        backbone: Backbone,
        paths: Sequence[Path],
        encoding: Encoding,
        name: str = "images",
        encode: Encode | None = None,
        squash: bool = False,
    ) -> None:
        self.backbone, self.paths, self.encoding = backbone, [str(path) for path in paths], encoding
        self.size, self.are_stored = input_size(encoding.size, backbone), encode is None
        data = backbone.data
        squash = squash or encoding.squash or data.squash
        self._data = replace(data, size=self.size, squash=squash)
        self._encode = encode or encoder(backbone, encoding)
        self._normalise = Preprocessing(backbone.data, context.device).normalise
        sizes = [self.size] * len(self.paths)
        super().__init__(context, f"{backbone.name} on {name}", encoding.batch_size, sizes)

    @cached_property
    def transform(self) -> Any:
        """A part of an image → (3, H, W) uint8."""
        return resizing(self._data, self._data.interpolation)

    def prepare(self) -> None:
        # before processes load, each of which would import what a transform needs
        _ = self.transform, self.backbone.token_blocks

    def path(self, item: int) -> str:
        """The file of an item."""
        return self.paths[item]

    def image(self, item: int) -> Image.Image:
        """The part of an item's file that is seen, before it is resized: here all but a border."""
        with open_image(image_source(self.path(item))) as image:
            turned = ImageOps.exif_transpose(image) if self.encoding.upright else image
            rgb, border = to_rgb(turned), self.encoding.border
        return ImageOps.crop(rgb, border) if border else rgb

    def load(self, item: int) -> Tensor:
        try:
            return self.transform(self.image(item))
        except Exception as error:
            reason = f"{self.path(item)} ({first_line(error)})"
            raise UserError(f"cannot read {reason}; was it changed just now?") from error

    def collate(self, views: list[Tensor]) -> Tensor:
        # channels last, as they lie in memory, and at once into memory that processes share
        return default_collate([image.permute(1, 2, 0) for image in views]).permute(0, 3, 1, 2)

    def encode(self, batch: Tensor) -> Encoded:
        device = self.context.device
        pixels = batch.to(device, non_blocking=takes_pinned_memory(device))
        with autocast(device, self.encoding.precision):
            # nothing else stays in memory
            pixels = in_memory_format(self._normalise(pixels), self.backbone)
            return [self._encode(pixels).float()], [{}] * len(batch)

    def key(self) -> CacheKey:
        backbone, encoding = self.backbone, self.encoding
        fields = asdict(encoding).items()
        identity = {
            "backbone": backbone.identity(),
            "images": content_key(content_hashes(list(map(Path, self.paths))), 64),
            **{name: value for name, value in fields if name not in EDITS or value},
            "size": self.size,
            "device": self.context.device.type,
            "libraries": versions(*IMAGE_LIBRARIES),
        }
        # disk space: as long as the embedding, or a token for each block and a mean
        width = max(backbone.embed_dim, *backbone.channels)
        if encoding.features == "layers":
            width = sum(backbone.channels)
        if encoding.blocks:
            width = (encoding.blocks + 1) * max(backbone.channels)
        sizes = [4 * width] * len(self.paths)
        return CacheKey("embeddings", self.name, identity, ("fp32",), sizes)

    def embeddings(self) -> Tensor:
        """(images, D) float32 on the CPU, not normalised to unit length; mapped from the store, or
        computed where the disk has no room.

        Raises:
            UserError: an image cannot be read.
            NonFiniteLoss: the backbone gives an embedding that is not finite.
        """
        try:
            store = self.open()
        except CacheFull:
            computed = {item: embedding for item, (embedding,), _ in self.items([self.every])}
            return torch.stack([computed[item] for item in self.every])
        try:
            return store.stacked()
        finally:
            store.close()

    @property
    def every(self) -> range:
        """All items."""
        return range(len(self.paths))

    def tensors(self, batches: Sequence[Sequence[int]] | None = None) -> Iterator[Tensor]:
        """The features of each batch, float32 on the device; by default of all images in their
        order. Unchecked, so that a training need not wait for the device."""
        for parts in self.computed(self.batches([self.every]) if batches is None else batches):
            yield torch.cat([features for (features,), _ in parts])

    def finite_tensors(self, batches: Sequence[Sequence[int]] | None = None) -> Iterator[Tensor]:
        """``tensors``. Raises ``NonFiniteLoss`` for features that are not finite."""
        for features in self.tensors(batches):
            yield from cast_features([features], "fp32", self.name)


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
    # methods are looked up when images come: until then a deferred backbone is not built
    if encoding.features == "pre_projection":
        return lambda images: backbone.encode_features(images)
    return lambda images: backbone.encode_image(images)


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
    embeddings = torch.cat(parts)
    if not bool(embeddings.isfinite().all()):
        raise NonFiniteLoss(f"text embeddings of {backbone.name} are not finite")
    return embeddings


def square_side(settings: EncodeSettings, backbone: Backbone) -> int:
    """Side of the square that images are squeezed to: the size of the settings, or the backbone's
    own, rounded up to its divisor."""
    size = settings.size or min(backbone.data.size)
    return math.ceil(size / backbone.divisor) * backbone.divisor


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """bfloat16 arithmetic where ``precision`` is ``bf16``."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
