"""``keypoints`` correspondence, without training: a point of one image is where the other's
features are nearest by cosine.

PCK@α (percentage of correct keypoints): a match counts when it is within α times the longer side of
the object's box in the target (Yang and Ramanan 2013). Main figure: the share of a pair, averaged
over pairs, as SPair-71k's authors evaluate (Min et al. 2019); beside it the share of all points.
Similarities are interpolated bilinearly between patches before the best is taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from common.errors import UserError
from probes.base import Context, TaskResult
from probes.features.cost import EncodeRun
from probes.image_level.encode import Images, autocast, normalised
from probes.image_level.linear import linear_flops
from probes.image_level.settings import CorrespondenceSettings

ALPHAS = ("0.05", "0.1")
BETWEEN = 8  # places from one patch to the next


class Upright(Images):
    """Images turned as their EXIF says, resized to a square without keeping their shape: (3, side,
    side) uint8."""

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.path(index)) as image:
            return self.transform(ImageOps.exif_transpose(image).convert("RGB"))


def run(context: Context) -> TaskResult:
    """See ``probes.image_level.probe``."""
    spec, root, encoding, started = (
        context.data.spec,
        context.data.root,
        EncodeRun.of(context),
        time.perf_counter(),
    )
    usable = {sample.image for sample in context.data.samples["val"]}
    pairs = [
        (sample.image, pair)
        for sample in context.data.samples["val"]
        for pair in sample.target
        if pair["image"] in usable  # the others were skipped, and are told of
    ]
    context.progress.start("matching keypoints", len(pairs))
    names, errors, positions = [], [], 0
    for group in by_folder(pairs):
        maps = feature_maps(
            context,
            sorted({name for source, pair in group for name in (source, pair["image"])}),
            encoding,
        )
        for source, pair in group:
            context.progress.advance()
            one, two = ((maps[name], upright_size(root / name)) for name in (source, pair["image"]))
            errors.append(pixel_errors(one, two, pair) / longer_side(pair["box"]))
            names.append(f"{source} → {pair['image']}")
            positions += len(pair["source"]) * two[0][0].numel()
    if not errors:
        raise UserError(f"{spec.name} has no pair with points to match; get the dataset again")
    points = np.array([len(each) for each in errors])
    right = {name: np.array([(each <= float(name)).sum() for each in errors]) for name in ALPHAS}
    metrics = {f"PCK@{name}": 100 * float((each / points).mean()) for name, each in right.items()}
    metrics["PCK@0.1_point"] = 100 * float(right["0.1"].sum() / points.sum())
    per_image = {
        "image": np.array(names),
        "points": points,
        **{f"right_{name}": each for name, each in right.items()},
    }
    cost = encoding.cost.added_to(
        {
            "eval_seconds": time.perf_counter() - started - encoding.cost.seconds,
            "eval_flops": linear_flops(
                context.backbone.channels[context.settings.layer], 1, 0, positions
            ),
        }
    )
    notes = [f"{len(errors)} pairs, {points.sum()} points"]
    return TaskResult(metrics, per_image, cost=cost, notes=notes)


def by_folder(
    pairs: Sequence[tuple[str, Mapping[str, Any]]],
) -> Iterator[list[tuple[str, Mapping[str, Any]]]]:
    """Pairs whose source is in one folder (a category, an object), whose maps are in memory
    together."""

    def folder(pair: tuple[str, Mapping[str, Any]]) -> str:
        return str(Path(pair[0]).parent)

    for _, group in groupby(sorted(pairs, key=folder), folder):
        yield list(group)


def side_of(context: Context) -> int:
    """Of the square that the backbone sees, pixels."""
    divisor = context.backbone.divisor
    return math.ceil((context.settings.size or min(context.backbone.data.size)) / divisor) * divisor


@torch.inference_mode()
def feature_maps(context: Context, names: Sequence[str], run: EncodeRun) -> dict[str, Tensor]:
    """Image → its feature map, (C, h, w) float16 on the device."""
    settings: CorrespondenceSettings = context.settings
    backbone, side = context.backbone, side_of(context)
    if not -len(backbone.channels) <= settings.layer < len(backbone.channels):
        raise UserError(
            f"backbone {backbone.name!r} has {len(backbone.channels)} feature maps, no layer"
            f" {settings.layer}"
        )
    images = Upright(
        [context.data.root / name for name in names],
        (side, side),
        replace(backbone.data, squash=True),
    )
    length = settings.encoding(context.device.type).batch_size
    batches = [
        range(start, min(start + length, len(names))) for start in range(0, len(names), length)
    ]
    found: dict[str, Tensor] = {}
    with run.cost.timed():
        for items, pixels in zip(batches, normalised(images, batches, backbone, run), strict=True):
            with autocast(context.device, settings.precision):
                maps = run.cost.run(lambda part: backbone(part)[settings.layer], pixels)
            found |= {names[item]: one.half() for item, one in zip(items, maps, strict=True)}
    return found


def upright_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image turned as its EXIF says."""
    with Image.open(path) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(0x0112, 1) >= 5 else (width, height)


def longer_side(box: Sequence[float]) -> float:
    return max(box[2] - box[0], box[3] - box[1])


@torch.inference_mode()
def pixel_errors(
    source: tuple[Tensor, tuple[int, int]],
    target: tuple[Tensor, tuple[int, int]],
    told: Mapping[str, Any],
) -> np.ndarray:
    """How far from its true place each point is found in the target, (K,) pixels of the target's
    file.

    Args:
        source, target: feature map (C, h, w), and (width, height) of the image.
        told: ``source`` and ``target`` points.
    """
    (one, one_size), (two, two_size) = source, target
    device = one.device
    points = torch.tensor(told["source"], dtype=torch.float32, device=device)
    grid = 2 * points / torch.tensor(one_size, device=device) - 1
    features = F.grid_sample(
        one[None].float(),
        grid[None, None],
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    queries = F.normalize(features[0, :, 0].T, dim=1)
    likeness = (queries @ F.normalize(two.float(), dim=0).flatten(1)).unflatten(1, two.shape[1:])
    # from the centre of the first patch to that of the last: beyond, nothing is known that is
    # nearer to one place than to another
    rows, columns = ((count - 1) * BETWEEN + 1 for count in two.shape[1:])
    fine = (
        F.interpolate(likeness[None], (rows, columns), mode="bilinear", align_corners=True)[0]
        .flatten(1)
        .argmax(dim=1)
    )
    places = torch.stack([fine % columns, fine // columns], dim=1) / BETWEEN + 0.5
    found = (
        places
        * torch.tensor(two_size, device=device)
        / torch.tensor(two.shape[:0:-1], device=device)
    )
    truth = torch.tensor(told["target"], dtype=torch.float32, device=device)
    return (found - truth).norm(dim=1).cpu().numpy()
