"""Whole images and texts to embeddings, by a frozen backbone; what linear classification, zero-shot and retrieval
stand on.

Decoding and resizing happen in loader processes while the model computes; images travel as bytes and are scaled and
normalised on the device, so that the loader never is the slow part of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, get_args

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from backbones.base import Backbone, DataConfig
from backbones.errors import NonFiniteLoss, UserError
from probes.base import Progress
from probes.features.compiling import compiled
from probes.features.cost import EncodeCost
from probes.image_level.settings import Precision


@torch.inference_mode()
def encode_images(
    backbone: Backbone,
    paths: Sequence[Path],
    device: torch.device,
    *,
    size: tuple[int, int] | None = None,
    batch_size: int = 64,
    workers: int = 2,
    precision: Precision = "fp32",
    progress: Progress | None = None,
    cost: EncodeCost | None = None,
) -> Tensor:
    """Embeddings of whole images, in the order of ``paths``.

    Args:
        size: (height, width) that the model sees; None for the backbone's own.
        workers: loader processes (0 = in this one); never changes the result.
        precision: of the model's arithmetic; ``bfloat16`` by autocast.
        cost: what is encoded is added to it.
    Returns:
        (len(paths), backbone.embed_dim) float32 on the CPU, not normalised to unit length.
    Raises:
        UserError: an image cannot be read, or ``size`` does not fit the backbone.
        NonFiniteLoss: the backbone gives an embedding that is not finite.
    """
    height, width = size = size or backbone.data.size
    # its own size always fits, even where that is no multiple (EfficientNet-B3 was trained at 300)
    if (height, width) != tuple(backbone.data.size) and (height % backbone.divisor or width % backbone.divisor):
        raise UserError(f"size {height}x{width} does not fit {backbone.name}: choose multiples of {backbone.divisor}")
    images = Images(paths, size, backbone.data)
    # a plain ViT has one stride; everything else is convolutional, and convolutions are faster on channels-last images
    memory = torch.channels_last if len(backbone.strides) > 1 else torch.contiguous_format
    mean, std = (
        255 * torch.tensor(each, device=device).view(3, 1, 1) for each in (backbone.data.mean, backbone.data.std)
    )
    embeddings = torch.empty(len(images), backbone.embed_dim)
    if progress:
        progress.start("encoding images", len(images))
    cost, quick = cost or EncodeCost(), compiled(backbone.encode_image, backbone.name)
    filled = 0
    for batch in loader(images, batch_size, workers, device):
        pixels = (batch.to(device, non_blocking=True).float() - mean) / std
        with autocast(device, precision):
            embedded = cost.run(backbone.encode_image, pixels.contiguous(memory_format=memory), quick)
        embeddings[filled : filled + len(batch)] = embedded.float().cpu()
        filled += len(batch)
        if progress:
            progress.advance(len(batch))
    return finite(embeddings, f"image embeddings of {backbone.name}")


@torch.inference_mode()
def encode_texts(
    backbone: Backbone,
    texts: Sequence[str],
    device: torch.device,
    *,
    batch_size: int = 256,
    precision: Precision = "fp32",
    progress: Progress | None = None,
) -> Tensor:
    """Embeddings of texts, in their order: (len(texts), D) float32 on the CPU, not normalised to unit length.

    Raises:
        UserError: the backbone has no text tower.
        NonFiniteLoss: an embedding is not finite.
    """
    if progress:
        progress.start("encoding texts", len(texts))
    parts = []
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        with autocast(device, precision):
            parts.append(backbone.encode_text(batch).float().cpu())
        if progress:
            progress.advance(len(batch))
    return finite(torch.cat(parts), f"text embeddings of {backbone.name}")


class Images(Dataset[Tensor]):
    """Decoded, resized and centre-cropped images: (3, H, W) uint8."""

    def __init__(self, paths: Sequence[Path], size: tuple[int, int], data: DataConfig) -> None:
        self.paths = [str(path) for path in paths]
        self.size = size
        self.data = data
        self.interpolation = InterpolationMode(data.interpolation)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            rgb = image.convert("RGB")
        if self.data.squash:
            return transforms.pil_to_tensor(transforms.resize(rgb, list(self.size), self.interpolation))
        return transforms.pil_to_tensor(fit(rgb, self.size, self.data.crop_pct, self.interpolation))

    def __getitems__(self, indices: list[int]) -> Tensor | str:
        """A batch; or, since an error from a loader process would arrive as a page of traceback, what went wrong."""
        try:
            return torch.stack([self[index] for index in indices])
        except Exception:
            for index in indices:
                try:
                    self[index]
                except Exception as error:
                    return f"cannot read {self.paths[index]} ({str(error).splitlines()[0]}); was it changed just now?"
            raise


def square(size: int | None) -> tuple[int, int] | None:
    """(size, size), or None for the backbone's own."""
    return None if size is None else (size, size)


def fit(image: Image.Image, size: tuple[int, int], crop_pct: float, interpolation: InterpolationMode) -> Image.Image:
    """Resize so that the centre crop of ``size`` (height, width) keeps the share ``crop_pct`` of the side that fits
    tighter.

    For square sizes this is the field's usual ``Resize(floor(size / crop_pct))`` of the short side and
    ``CenterCrop(size)``.
    """
    width, height = image.size
    wanted_height, wanted_width = (math.floor(side / crop_pct) for side in size)
    if wanted_height * width >= wanted_width * height:  # the height fits tighter
        resized = (wanted_height, max(wanted_width, int(wanted_height * width / height)))
    else:
        resized = (max(wanted_height, int(wanted_width * height / width)), wanted_width)
    return transforms.center_crop(transforms.resize(image, list(resized), interpolation), list(size))


def loader(images: Images, batch_size: int, workers: int, device: torch.device) -> Any:
    """Batches in order. PyTorch gives each loader process one thread."""
    batches = DataLoader(
        images,
        batch_size=batch_size,
        num_workers=min(workers, math.ceil(len(images) / batch_size)),
        collate_fn=whole,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers and images else None,
    )
    for batch in batches:
        if isinstance(batch, str):
            raise UserError(batch)
        yield batch


def whole(batch: Any) -> Tensor | str:
    """``Images`` makes whole batches itself."""
    return batch


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    if precision not in get_args(Precision):
        raise UserError(f"precision {precision!r} is not known; choose {' or '.join(get_args(Precision))}")
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def finite(embeddings: Tensor, what: str) -> Tensor:
    if not bool(embeddings.isfinite().all()):
        raise NonFiniteLoss(f"{what} are not finite")
    return embeddings
