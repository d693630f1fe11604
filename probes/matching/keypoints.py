"""``keypoints`` correspondence, without training: a point of one image matches the position in the
other whose features are nearest by cosine.

PCK@α (percentage of correct keypoints): a match counts when it is within α times the longer side of
the object's box in the target (Yang and Ramanan 2013). Main figure: the share of a pair, averaged
over pairs, as SPair-71k's authors evaluate (Min et al. 2019); beside it the share of all points.
Similarities are interpolated bilinearly between patches before the best is taken; with
``positions=corners`` the best patch counts, by its upper left corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cliptex_common.errors import UserError
from cliptex_common.images import image_size
from probes.base import Context, TaskResult, map_index
from probes.datasets.ground_truth import KeypointPair
from probes.image_level.encode import ImageViews, square_side
from probes.image_level.metrics import correspondence
from probes.image_level.settings import CorrespondenceSettings

ALPHAS = ("0.05", "0.1")
STEPS = 8  # positions from one patch to the next
SourceAndPair = tuple[str, KeypointPair]  # the source's image first
ImageMap = tuple[Tensor, tuple[int, int]]  # see ``encode_maps``


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    usable = {sample.image for sample in context.data.samples["val"]}
    pairs = [
        (sample.image, pair)
        for sample in context.data.samples["val"]
        for pair in sample.target.pairs
        if pair.image in usable  # unreadable images are reported with the data
    ]
    context.progress.start("matching keypoints", len(pairs))
    units, errors = [], []
    for _, category in groupby(sorted(pairs, key=folder_of), folder_of):
        group = list(category)
        images = {name for source, pair in group for name in (source, pair.image)}
        maps = encode_maps(context, sorted(images))
        for source, pair in group:
            context.progress.advance()
            x1, y1, x2, y2 = pair.box
            both = maps[source], maps[pair.image]
            points = pair.source, pair.target
            distances = pixel_errors(*both, *points, context.settings.positions == "corners")
            errors.append(distances / max(x2 - x1, y2 - y1))
            units.append((source, pair.image))
    if not errors:
        name = context.data.spec.name
        raise UserError(f"{name} has no pair to match; download the dataset again")
    counts = np.array([len(distances) for distances in errors])
    names = np.array([f"{source} → {target}" for source, target in units])
    per_image = {"image": names, "unit": np.array(units), "points": counts}
    for alpha in ALPHAS:
        right = [(distances <= float(alpha)).sum() for distances in errors]
        per_image[f"right_{alpha}"] = np.array(right)
    metrics = correspondence(tuple(names), per_image).values()
    notes = [f"{len(errors)} pairs, {counts.sum()} points"]
    return TaskResult(metrics, per_image, notes=notes)


def folder_of(pair: SourceAndPair) -> str:
    """The folder of the source: a category, whose maps are in memory together."""
    return str(Path(pair[0]).parent)


@torch.inference_mode()
def encode_maps(context: Context, names: Sequence[str]) -> dict[str, ImageMap]:
    """Image → its feature map, (C, h, w) float32 on the device, and (width, height) in pixels.

    Raises:
        NonFiniteLoss: a feature is not finite.
    """
    settings: CorrespondenceSettings = context.settings
    backbone, index = context.backbone, map_index(settings, context.backbone)
    side = square_side(settings, backbone)
    paths = [context.data.root / name for name in names]
    encoding = replace(settings.encoding(context.device.type), size=(side, side))

    def encode(pixels: Tensor) -> Tensor:
        return backbone(pixels)[index]

    views = ImageViews(context, backbone, paths, encoding, encode=encode, squash=True)
    maps = [each for batch in views.finite_tensors() for each in batch]
    return dict(zip(names, zip(maps, map(image_size, paths), strict=True), strict=True))


@torch.inference_mode()
def pixel_errors(
    source: ImageMap,
    target: ImageMap,
    source_points: Sequence[Sequence[float]],
    target_points: Sequence[Sequence[float]],
    at_corners: bool = False,
) -> np.ndarray:
    """Distance of each match from the true point, (K,) pixels of the target's file.

    Args:
        source, target: see ``encode_maps``.
        source_points, target_points: K points (x, y) in pixels.
        at_corners: features are read, and matches are, as if maps reached from corner to corner of
            images, without interpolation.
    """
    (source_map, source_size), (target_map, target_size) = source, target
    device = source_map.device
    points = torch.tensor(source_points, dtype=torch.float32, device=device)
    grid = 2 * points / torch.tensor(source_size, device=device) - 1
    features = F.grid_sample(
        source_map[None],
        grid[None, None],
        mode="bilinear",
        padding_mode="border",
        align_corners=at_corners,
    )
    queries = F.normalize(features[0, :, 0].T, dim=1)
    keys = F.normalize(target_map, dim=0).flatten(1)
    similarity = (queries @ keys).unflatten(1, target_map.shape[1:])
    steps, offset = (1, 0.0) if at_corners else (STEPS, 0.5)
    # from the centre of the first patch to that of the last: beyond them every position is equally
    # near
    rows, columns = ((count - 1) * steps + 1 for count in target_map.shape[1:])
    fine = F.interpolate(similarity[None], (rows, columns), mode="bilinear", align_corners=True)[0]
    best = fine.flatten(1).argmax(dim=1)
    cells = torch.stack([best % columns, best // columns], dim=1) / steps + offset
    size = torch.tensor(target_size, device=device)
    matches = cells * size / torch.tensor(target_map.shape[:0:-1], device=device)
    true = torch.tensor(target_points, dtype=torch.float32, device=device)
    return (matches - true).norm(dim=1).cpu().numpy()
