"""Views: images with the points in space that their pixels show, as probe3d prepares them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from backbones.backbone import Preprocessing, in_memory_format
from cliptex_common.device import upload
from cliptex_common.errors import UserError, first_line
from cliptex_common.images import IMAGE_ERRORS, open_image, to_rgb
from cliptex_common.progress import Silent
from probes.base import Context
from probes.datasets.base import Sample
from probes.features.views import Encoded, Views
from probes.image_level.encode import autocast
from probes.layers import map_index

SHORT = 1024  # short side to which photographs of objects are reduced first
SIDE = 512  # of the square in which objects are measured
FRAME = 480, 640  # of rooms
SPARSE = 4  # every fourth pixel in a row and in a column has a point


@dataclass(frozen=True)
class View:
    """An image, and the points that it shows.

    Attributes:
        pixels: (3, H, W) uint8.
        points: (3, h, w) float32, in metres in the camera's system, each of the middle of a cell of
            a grid over the image; z is 0 where it is unknown.
        camera: (3, 3) float32, which projects points to the pixels that errors are measured in.
    """

    pixels: Tensor
    points: Tensor
    camera: Tensor


def object_view(root: Path, sample: Sample, side: int) -> View:
    """The square around an object of NAVI, resized to ``side`` pixels; errors are in those of a
    square of 512."""
    pixels = torch.from_numpy(np.array(to_rgb(reduced(root / sample.image, "BILINEAR"))))
    stored = np.asarray(reduced(root / sample.files[0], "NEAREST"), np.float32)
    # NAVI stores 655.35 / metres, and 0 where there is none
    depth = np.divide(655.35, stored, out=np.zeros_like(stored), where=stored > 0)
    pixels, metres = (
        center_crop(resize(each, SIDE, InterpolationMode.NEAREST), [SIDE, SIDE])
        for each in (pixels.permute(2, 0, 1), torch.from_numpy(depth)[None])
    )
    focal = sample.target["camera"] * SIDE
    camera = torch.tensor([[focal, 0, SIDE / 2], [0, focal, SIDE / 2], [0, 0, 1]])
    rows, columns = square_around(metres[0] > 0)
    points = in_space(metres, camera)[:, rows, columns]
    focal *= SIDE / points.shape[1]
    return View(
        resized(pixels[:, rows, columns], side),
        resized(points, SIDE)[:, ::SPARSE, ::SPARSE],
        torch.diag(torch.tensor([focal, focal, 1.0])),
    )


def scene_view(root: Path, sample: Sample, side: int) -> View:
    """A frame of ScanNet, resized so that its short side is ``side``; errors are in pixels of 120 ×
    160, as many as there are points."""
    with open_image(root / sample.image) as image:
        size = round(side * FRAME[1] / FRAME[0]), side
        pixels = np.array(to_rgb(image).resize(size, Image.Resampling.BILINEAR))
    with open_image(root / sample.files[0]) as image:
        depth = torch.from_numpy(np.asarray(image, np.float32) / 1000)
    metres = F.interpolate(depth[None, None], scale_factor=1 / SPARSE, mode="nearest")[0]
    camera = torch.tensor(sample.target["camera"], dtype=torch.float32)
    camera[:2] /= SPARSE
    return View(torch.from_numpy(pixels).permute(2, 0, 1), in_space(metres, camera), camera)


def reduced(path: Path, method: str) -> Image.Image:
    """An image as it was held, its short side reduced to 1024 pixels."""
    with open_image(path) as image:
        upright = ImageOps.exif_transpose(image)
    factor = SHORT / min(upright.size)
    size = int(upright.width * factor), int(upright.height * factor)
    return upright.resize(size, Image.Resampling[method])


def resized(values: Tensor, side: int) -> Tensor:
    """(C, H, W) at ``side`` × ``side`` pixels, by OpenCV's nearest neighbours."""
    array = np.ascontiguousarray(values.permute(1, 2, 0).numpy())
    array = cv2.resize(array, (side, side), interpolation=cv2.INTER_NEAREST)
    return torch.from_numpy(array).permute(2, 0, 1)


def square_around(mask: Tensor) -> tuple[slice, slice]:
    """Rows and columns of the square around what is True in a square mask (side, side), which is in
    its middle, or, where that square leaves the mask, at its bottom right."""
    inside = mask.nonzero()
    start, end = inside.amin(dim=0), inside.amax(dim=0)
    side = (end - start).max()
    missing = side - (end - start)
    first = start - missing // 2
    if first.min() < 0 or (first + side).max() > len(mask):
        first = (start - missing).clamp(min=0)
    rows, columns = (slice(int(each), int(each + side)) for each in first)
    return rows, columns


def in_space(metres: Tensor, camera: Tensor) -> Tensor:
    """The points (3, h, w) at the depths (1, h, w) of the middle of each pixel."""
    height, width = metres.shape[1:]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    rays = torch.stack([x, y, torch.ones_like(x)]) * metres
    return (camera.inverse() @ rays.flatten(1)).unflatten(1, (height, width))


VIEWS: Mapping[str, Callable[[Path, Sample, int], View]] = {
    "object-views": object_view,
    "scene-views": scene_view,
}


class EncodedViews(Views):
    """Views and their feature maps, (C, h, w) float32 on the device.

    An image that is no whole number of patches is padded on all sides with the mean colour, and its
    map is stretched over the image without them.
    """

    context: Context

    def __init__(self, context: Context, samples: Sequence[Sample]) -> None:
        self.samples = samples
        encoding = context.settings.encoding(context.device.type)
        name = f"{context.backbone.name} on {context.data.spec.name}"
        super().__init__(context, name, encoding.batch_size, [()] * len(samples))
        self._normalise = Preprocessing(context.backbone.data, context.device).normalise

    def load(self, item: int) -> View:
        data, sample = self.context.data, self.samples[item]
        try:
            return VIEWS[data.spec.kind](data.root, sample, self.context.settings.size)
        except IMAGE_ERRORS as error:
            raise UserError(
                f"cannot read {data.root / sample.image} or its depth ({first_line(error)})"
            ) from error

    def encode(self, batch: Any) -> Encoded:
        context, backbone = self.context, self.context.backbone
        device, index = context.device, map_index(context.settings, context.backbone)
        pixels = upload(torch.stack([view.pixels for view in batch]), device)
        with autocast(device, context.settings.precision):
            padded = pad_to(self._normalise(pixels), backbone.divisor)
            maps = backbone(in_memory_format(padded, backbone))[index]
        return [maps.float()], [{"view": view} for view in batch]

    def all(self) -> list[tuple[Tensor, View]]:
        """The map, on the device, and the view of each sample, in their order."""
        items = self.items([range(len(self.samples))], progress=Silent())
        device = self.context.device
        return [(upload(feature_map, device), about["view"]) for _, (feature_map,), about in items]


def pad_to(images: Tensor, divisor: int) -> Tensor:
    """Images (N, 3, H, W) with zeros on all sides, as many as make H and W multiples of
    ``divisor``."""
    rows, columns = (-side % divisor for side in images.shape[-2:])
    return F.pad(images, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
