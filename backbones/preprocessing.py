"""Images as a backbone takes them: resized, cropped, normalised."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from backbones.backbone import Backbone, DataConfig
from cliptex_common.images import to_rgb


class Preprocessing:
    """An image → (3, H, W) float32 at the backbone's own size, normalised.

    Args:
        device: of the pixels that ``normalise`` is given, usually.

    Attributes:
        resize: an RGB image → (3, H, W) uint8, resized and cropped.
    """

    def __init__(self, data: DataConfig, device: torch.device | None = None) -> None:
        self.resize = resizing(data, data.interpolation)
        self.mean, self.std = (
            255 * torch.tensor(values, device=device).view(3, 1, 1)
            for values in (data.mean, data.std)
        )

    def __call__(self, image: Image.Image) -> Tensor:
        return self.normalise(self.resize(to_rgb(image)))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels (…, 3, H, W) from 0 to 255, of any type, as the backbone takes them."""
        centred = pixels.float() - self.mean.to(pixels.device)
        return centred.div_(self.std.to(pixels.device))


def resizing(data: DataConfig, interpolation: str) -> Callable[[Image.Image], Tensor]:
    """timm's evaluation transform: an image → its channels (C, H, W), in the image's own type.

    The image is resized so that the centre crop of ``data.size`` keeps the share ``crop_pct`` of
    the side that fits tighter. With ``squash`` it is resized to that size and changes its shape.
    """
    return create_transform(
        (3, *data.size),
        interpolation=interpolation,
        crop_pct=1.0 if data.squash else data.crop_pct,
        crop_mode="squash" if data.squash else "center",
        normalize=False,
    )


def in_memory_format(images: Tensor, backbone: Backbone) -> Tensor:
    """``images`` as they are computed fastest: channels last, unless it is a plain ViT."""
    return images.contiguous(
        memory_format=torch.contiguous_format if backbone.is_plain else torch.channels_last
    )
