"""Whole images and texts to embeddings, by a frozen backbone: what linear classification, zero-shot
and retrieval stand on.

Decoding and resizing happen in loader processes while the model computes; images travel as bytes
and are scaled and normalised on the device, so that the loader never is the slow part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_convert

from backbones.base import Backbone, DataConfig
from backbones.cliptex.cost import count_flops
from common.errors import NonFiniteLoss, UserError
from common.images import to_rgb
from probes.base import Context
from probes.features.cost import EncodeRun
from probes.features.members import image_source
from probes.image_level.settings import Encoding, Precision

PLAIN = Encoding()


@torch.inference_mode()
def encode_images(
    backbone: Backbone, paths: Sequence[Path], run: EncodeRun, how: Encoding = PLAIN
) -> Tensor:
    """Features of whole images, in the order of ``paths``.

    Returns:
        (len(paths), D) float32 on the CPU, not normalised to unit length.
    Raises:
        UserError: an image cannot be read, or the size does not fit the backbone.
        NonFiniteLoss: the backbone gives an embedding that is not finite.
    """
    images = Images(paths, fitting(how.size, backbone), backbone.data)
    batches = [
        range(start, min(start + how.batch_size, len(paths)))
        for start in range(0, len(paths), how.batch_size)
    ]
    embeddings = torch.empty(0, backbone.embed_dim)
    run.progress.start("encoding images", len(images))
    encode = encoder(backbone, how)
    for places, pixels in zip(batches, normalised(images, batches, backbone, run), strict=True):
        with autocast(run.device, how.precision):
            embedded = run.cost.run(encode, pixels).float().cpu()
        if not places.start:
            embeddings = torch.empty(len(images), embedded.shape[1])
        embeddings[places.start : places.stop] = embedded
        run.progress.advance(len(places))
    return finite(embeddings, f"image embeddings of {backbone.name}")


def encoder(backbone: Backbone, how: Encoding) -> Callable[[Tensor], Tensor]:
    """Normalised images → what ``how`` asks for, (N, D); of blocks all class tokens, and the mean
    of the last patch tokens."""

    def tokens_in_a_row(images: Tensor) -> Tensor:
        layers = backbone.encode_tokens(images, how.blocks)
        return torch.cat([*(token for token, _ in layers), layers[-1][1].mean(dim=1)], dim=1)

    if how.blocks:
        return tokens_in_a_row
    return backbone.encode_features if how.features == "pre_projection" else backbone.encode_image


def fitting(size: tuple[int, int] | None, backbone: Backbone) -> tuple[int, int]:
    """``size``, or the backbone's own. Raises ``UserError`` when it cannot take it."""
    height, width = size = size or backbone.data.size
    # its own size always fits, even where that is no multiple (EfficientNet-B3 was trained at 300)
    if size != tuple(backbone.data.size) and (
        height % backbone.divisor or width % backbone.divisor
    ):
        raise UserError(
            f"size {height}x{width} does not fit {backbone.name}: choose multiples of"
            f" {backbone.divisor}"
        )
    return size


def normalised(
    images: Images, batches: Sequence[Sequence[int]], backbone: Backbone, run: EncodeRun
) -> Iterator[Tensor]:
    """Batches of items, loaded in order, as the backbone takes them: (N, 3, H, W) float32 on the
    device."""
    # a plain ViT has one stride; everything else is convolutional, and convolutions are faster on
    # channels-last images
    memory = torch.channels_last if len(backbone.strides) > 1 else torch.contiguous_format
    mean, std = (
        255 * torch.tensor(each, device=run.device).view(3, 1, 1)
        for each in (backbone.data.mean, backbone.data.std)
    )
    loaded = DataLoader(
        images,
        batch_sampler=batches,  # type: ignore[arg-type]  # ranges do as well
        num_workers=min(run.num_workers, len(batches)),
        collate_fn=default_convert,  # ``Images`` makes whole batches itself
        pin_memory=run.device.type == "cuda",
        prefetch_factor=(
            max(2, 256 // max(map(len, batches))) if run.num_workers and batches else None
        ),
    )
    for batch in loaded:
        if isinstance(batch, str):
            raise UserError(batch)
        pixels = (batch.to(run.device, non_blocking=True).float() - mean) / std
        yield pixels.contiguous(memory_format=memory)


@torch.inference_mode()
def encode_texts(
    backbone: Backbone,
    texts: Sequence[str],
    run: EncodeRun,
    precision: Precision = "fp32",
    batch_size: int = 256,
) -> Tensor:
    """Embeddings of texts, in their order: (len(texts), D) float32 on the CPU, not normalised to
    unit length.

    Raises:
        UserError: the backbone has no text tower.
        NonFiniteLoss: an embedding is not finite.
    """
    run.progress.start("encoding texts", len(texts))
    parts = []
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        with autocast(run.device, precision):
            parts.append(backbone.encode_text(batch).float().cpu())
        run.progress.advance(len(batch))
    return finite(torch.cat(parts), f"text embeddings of {backbone.name}")


@torch.inference_mode()
def text_flops(context: Context, texts: Sequence[str]) -> float:
    """Floating-point operations of encoding so many texts: one is counted (see
    ``backbones.cliptex.cost``)."""
    with autocast(context.device, context.settings.precision):
        return float(len(texts) * count_flops(lambda: context.backbone.encode_text(texts[:1])))


class Images(Dataset[Tensor]):
    """Decoded, resized and centre-cropped images: (3, H, W) uint8."""

    def __init__(self, paths: Sequence[Path], size: tuple[int, int], data: DataConfig) -> None:
        self.paths = [str(path) for path in paths]
        self.transform = prepare(size, data)

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        """The file that an item is made of."""
        return self.paths[index]

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(image_source(self.path(index))) as image:
            rgb = to_rgb(image)
        return self.transform(rgb)

    def __getitems__(self, indices: list[int]) -> Tensor | str:
        """A batch; or, since an error from a loader process would arrive as a page of traceback,
        what went wrong."""
        images = []
        for index in indices:
            try:
                images.append(self[index])
            except Exception as error:
                return (
                    f"cannot read {self.path(index)} ({str(error).splitlines()[0]}); was it changed"
                    " just now?"
                )
        return torch.stack(images)


def prepare(size: tuple[int, int], data: DataConfig) -> Callable[[Image.Image], Tensor]:
    """timm's evaluation transform: an RGB image → (3, H, W) uint8. Resized so that the centre crop
    of ``size`` keeps the share ``crop_pct`` of the side that fits tighter; with ``squash`` resized
    to ``size`` without keeping its shape."""
    return create_transform(
        (3, *size),
        interpolation=data.interpolation,
        crop_pct=1.0 if data.squash else data.crop_pct,
        crop_mode="squash" if data.squash else "center",
        normalize=False,
    )


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def finite(embeddings: Tensor, what: str) -> Tensor:
    if not bool(embeddings.isfinite().all()):
        raise NonFiniteLoss(f"{what} are not finite")
    return embeddings
