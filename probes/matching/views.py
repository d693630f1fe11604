"""``view-matching``, without training: a point of one view of an object or a scene matches the
point of the other whose features are nearest by cosine; how far both are from each other in space,
and in the image.

As El Banani et al. (CVPR 2024) evaluate NAVI and ScanNet: of the matches of a pair those count
whose nearest neighbour is clearest before the second nearest. Recall is the share of these within a
distance, a mean over pairs; also by bins of the angle between the cameras.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import normalize

from backbones.backbone import Preprocessing, in_memory_format
from cliptex_common.device import upload
from cliptex_common.errors import UserError, first_line
from cliptex_common.images import (
    IMAGE_ERRORS,
    join_points,
    open_image,
    spread_indices,
    to_rgb,
    write_grid,
)
from cliptex_common.progress import Silent
from probes.base import Context, TaskResult, map_index
from probes.datasets.base import Sample
from probes.features.views import Encoded, Views
from probes.image_level.encode import autocast
from probes.matching.probe import RECALLS, view_pairs
from probes.pictures import GALLERY_IMAGES, SMALL, write_gallery

SHORT = 1024  # short side to which photographs of objects are reduced first
SIDE = 512  # of the square in which objects are measured
FRAME = 480, 640  # of rooms
SPARSE = 4  # every fourth pixel in a row and in a column has a point


@dataclass(frozen=True)
class PosedImage:
    """A view: an image, and the points in space that it shows, as probe3d prepares them.

    Attributes:
        pixels: (3, H, W) uint8.
        points: (3, h, w) float32, in metres in the camera's system, each of the middle of a cell of
            a grid over the image; z is 0 where it is unknown.
        camera: (3, 3) float32, which projects points to the pixels that errors are measured in.
    """

    pixels: Tensor
    points: Tensor
    camera: Tensor


def object_view(root: Path, sample: Sample, side: int) -> PosedImage:
    """The square around an object of NAVI, resized to ``side`` pixels; errors are in those of a
    square of 512."""
    from torchvision.transforms import InterpolationMode  # slow to import
    from torchvision.transforms.functional import center_crop, resize

    pixels = torch.from_numpy(np.array(to_rgb(reduced(root / sample.image, "BILINEAR"))))
    stored = np.asarray(reduced(root / sample.target.depth, "NEAREST"), np.float32)
    # NAVI stores 655.35 / metres, and 0 where there is none
    depth = np.divide(655.35, stored, out=np.zeros_like(stored), where=stored > 0)
    pixels, metres = (
        center_crop(resize(each, SIDE, InterpolationMode.NEAREST), [SIDE, SIDE])
        for each in (pixels.permute(2, 0, 1), torch.from_numpy(depth)[None])
    )
    focal = sample.target.camera * SIDE
    camera = torch.tensor([[focal, 0, SIDE / 2], [0, focal, SIDE / 2], [0, 0, 1]])
    rows, columns = square_around(metres[0] > 0)
    points = in_space(metres, camera)[:, rows, columns]
    focal *= SIDE / points.shape[1]
    return PosedImage(
        resized(pixels[:, rows, columns], side),
        resized(points, SIDE)[:, ::SPARSE, ::SPARSE],
        torch.diag(torch.tensor([focal, focal, 1.0])),
    )


def scene_view(root: Path, sample: Sample, side: int) -> PosedImage:
    """A frame of ScanNet, resized so that its short side is ``side``; errors are in pixels of 120 ×
    160, as many as there are points."""
    with open_image(root / sample.image) as image:
        size = round(side * FRAME[1] / FRAME[0]), side
        pixels = np.array(to_rgb(image).resize(size, Image.Resampling.BILINEAR))
    with open_image(root / sample.target.depth) as image:
        depth = torch.from_numpy(np.asarray(image, np.float32) / 1000)
    metres = F.interpolate(depth[None, None], scale_factor=1 / SPARSE, mode="nearest")[0]
    camera = torch.tensor(sample.target.camera, dtype=torch.float32)
    camera[:2] /= SPARSE
    return PosedImage(torch.from_numpy(pixels).permute(2, 0, 1), in_space(metres, camera), camera)


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
    its middle, or, where that square leaves the mask, at its bottom right; all where fewer than two
    are True."""
    inside = mask.nonzero()
    if len(inside) < 2:
        return slice(None), slice(None)
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


VIEW_LOADERS: Mapping[str, Callable[[Path, Sample, int], PosedImage]] = {
    "object-views": object_view,
    "scene-views": scene_view,
}


class PosedViews(Views):
    """The feature maps of ``PosedImage``s, (C, h, w) float32 on the device, with the images as
    their metadata.

    An image that is no whole number of patches is padded on all sides with the mean colour, and its
    map is stretched over the image without them.
    """

    context: Context

    def __init__(self, context: Context, samples: Sequence[Sample]) -> None:
        self.samples = samples
        encoding = context.settings.encoding(context.device.type)
        name = f"{context.backbone.name} on {context.data.spec.name}"
        one_size = [()] * len(samples)  # all views of a task: they share batches
        super().__init__(context, name, encoding.batch_size, one_size)
        self._normalise = Preprocessing(context.backbone.data, context.device).normalise

    def load(self, item: int) -> PosedImage:
        data, sample = self.context.data, self.samples[item]
        try:
            return VIEW_LOADERS[data.spec.kind](data.root, sample, self.context.settings.size)
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

    def all(self) -> list[tuple[Tensor, PosedImage]]:
        """The map, on the device, and the view of each sample, in their order."""
        items = self.items([range(len(self.samples))], progress=Silent())
        device = self.context.device
        return [(upload(feature_map, device), about["view"]) for _, (feature_map,), about in items]


def pad_to(images: Tensor, divisor: int) -> Tensor:
    """Images (N, 3, H, W) with zeros on all sides, as many as make H and W multiples of
    ``divisor``."""
    rows, columns = (-side % divisor for side in images.shape[-2:])
    return F.pad(images, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


MAX_ANGLE = 120.0  # degrees, between the views of a sampled pair
EVERY = 4  # images of which a sampled pair is scored
SEED = 8  # of sampled pairs
POINTS = 2048  # that are matched at once
TINY = 1e-9  # nothing is divided by less
FARTHEST = 2.0  # 1 - cosine of opposite features
PAIRS, PAIR_SIDE = 6, 768  # pairs of the preview, and pixels of their longest side
LINES = 48  # matches of a pair that are drawn
RIGHT, WRONG = (0, 200, 80), (230, 40, 40)
SamplePair = tuple[Sample, Sample]
MapAndImage = tuple[Tensor, PosedImage]  # feature map (C, h, w), and the image


@dataclass(frozen=True)
class PairMatches:
    """The clearest matches of a pair of views, the clearest first.

    Attributes:
        errors: ``m`` and ``px`` → (N,) float32 on the device: how far a point of the first view is
            from its match, in the second camera's system and image.
        cells: of both views, (N,) int64: numbers in the grid of points, row by row.
        moved: (N, 3) float32, the points of the first view in the second camera's system.
    """

    errors: Mapping[str, Tensor]
    cells: tuple[Tensor, Tensor]
    moved: Tensor


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    kind, samples = context.data.spec.kind, context.data.samples["val"]
    is_sampled = getattr(context.settings, "pairs", "listed") == "sampled"
    pairs = sampled_pairs(samples) if is_sampled else listed_pairs(samples)
    if not pairs:
        raise UserError(f"{context.data.spec.name} has no pair to match")
    context.progress.start("matching views", len(pairs))
    names: list[str] = []
    units, rows = [], []
    shown, pictured = set(spread_indices(len(pairs), GALLERY_IMAGES)), {}
    for _, group in groupby(pairs, lambda pair: folder_of(pair[0])):
        members = list(group)
        used = {sample.image: sample for pair in members for sample in pair}
        encoded = PosedViews(context, list(used.values())).all()
        views = dict(zip(used, encoded, strict=True))
        for first, second in members:
            images, pose = [first.image, second.image], relative_pose(first, second)
            encoded_views = views[first.image], views[second.image]
            matches = match_views(*encoded_views, pose, context.settings.matches, kind)
            recalls = [
                (matches.errors[unit] < limit).float().mean().item()
                for _, unit, limit in RECALLS[kind]
            ]
            name = " → ".join(images)
            if len(names) in shown:
                pictured[name] = (encoded_views[0][1], encoded_views[1][1]), matches
            rows.append([*recalls, angle_of(pose)])
            names.append(name)
            units.append(folder_of(first) if kind == "object-views" else images)
            context.progress.advance()
    columns = [name for name, _, _ in RECALLS[kind]] + ["angle"]
    per_image = {"image": np.array(names), "unit": np.array(units)}
    per_image |= dict(zip(columns, np.array(rows).T, strict=True))
    values = view_pairs(kind, tuple(names), per_image).values()
    metrics = {name: value for name, value in values.items() if not np.isnan(value)}
    notes, unscored = [f"{len(pairs)} pairs"], int(np.isnan(per_image[columns[0]]).sum())
    if unscored == len(pairs):
        raise UserError(f"no pair of {context.data.spec.name} has a depth in both views")
    if unscored:
        notes.append(f"{unscored} of them have no score: one view has no depth where it is seen")
    preview = draw_pairs(context.work_dir / "preview.png", pictured, kind)
    return TaskResult(metrics, per_image, preview=preview, notes=notes)


def folder_of(sample: Sample) -> str:
    """The object or the room that a view shows: the first folder."""
    return Path(sample.image).parts[0]


def listed_pairs(samples: Sequence[Sample]) -> list[SamplePair]:
    """The pairs that the dataset lists, by the object or room of the first view."""
    by_name = {sample.image: sample for sample in samples}
    pairs = [(sample, by_name[name]) for sample in samples for name in sample.target.pairs]
    return sorted(pairs, key=lambda pair: folder_of(pair[0]))


def sampled_pairs(samples: Sequence[Sample]) -> list[SamplePair]:
    """To every fourth image another of its object, at most ``MAX_ANGLE`` degrees away."""
    generator = torch.Generator().manual_seed(SEED)
    pairs = []
    for _, group in groupby(samples, folder_of):
        views = list(group)
        rotations = torch.tensor([view.target.rotation for view in views])
        for index, view in enumerate(views):
            relative = rotations[index] @ rotations.mT
            cosine = relative.diagonal(dim1=1, dim2=2).sum(dim=1) / 2 - 0.5
            angles = cosine.clamp(-1, 1).acos().rad2deg()
            candidates = ((angles > 0) & (angles <= MAX_ANGLE)).float()
            candidates[index] = 0
            if not candidates.any():
                raise UserError(f"{view.image} has no other view within {MAX_ANGLE:g} degrees")
            partner = int(torch.multinomial(candidates, 1, generator=generator))
            pairs.append((view, views[partner]))
    return pairs[::EVERY]


def relative_pose(first: Sample, second: Sample) -> Tensor:
    """(3, 4) float64, from the first camera's system to the second's."""
    r0, r1, t0, t1 = (
        torch.tensor(getattr(sample.target, name), dtype=torch.float64)
        for name in ("rotation", "translation")
        for sample in (first, second)
    )
    rotation = r1 @ r0.T
    return torch.cat([rotation, (t1 - rotation @ t0)[:, None]], dim=1)


def angle_of(pose: Tensor) -> float:
    """The angle in degrees between two cameras, by their ``relative_pose``."""
    return float(((pose[:, :3].trace() - 1) / 2).clamp(-1, 1).acos().rad2deg())


def match_views(
    first: MapAndImage, second: MapAndImage, pose: Tensor, matches: int, kind: str
) -> PairMatches:
    """The clearest matches of two views.

    Args:
        pose: see ``relative_pose``.
        matches: how many.
        kind: of dataset.
    """
    features0, points0 = at_points(*first, kind)
    features1, points1 = at_points(*second, kind)
    camera, pose = (each.to(points0.device, torch.float32) for each in (second[1].camera, pose))
    source, target = clearest_matches(features0, features1, matches)
    moved = points0[source] @ pose[:, :3].T + pose[:, 3]
    matched = points1[target]
    errors = moved - matched, project(moved, camera) - project(matched, camera)
    lengths = {unit: error.norm(dim=1) for unit, error in zip(("m", "px"), errors, strict=True)}
    known0, known1 = ((view.points[2] > 0).flatten().nonzero()[:, 0] for _, view in (first, second))
    return PairMatches(lengths, (known0[source.cpu()], known1[target.cpu()]), moved.cpu())


def at_points(feature_map: Tensor, view: PosedImage, kind: str) -> tuple[Tensor, Tensor]:
    """Unit features (N, C) and coordinates (N, 3) of the known points of a view.

    Args:
        feature_map: (C, h, w).
    """
    device = feature_map.device
    height, width = view.points.shape[1:]
    is_known = view.points[2] > 0
    points = view.points[:, is_known].T.to(device)
    if kind == "object-views":
        fine = F.interpolate(feature_map[None], (height, width), mode="bicubic")[0]
        features = fine[:, is_known.to(device)]
    else:  # zeros beyond the border
        pixels = project(points, view.camera.to(device))
        grid = 2 * pixels / torch.tensor([width, height], device=device) - 1
        features = F.grid_sample(feature_map[None], grid[None, None], align_corners=False)[0, :, 0]
    return normalize(features.T, dim=1), points


def clearest_matches(first: Tensor, second: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices (N,) in the first and the second of at most ``count`` matches of unit features (K, C)
    and (L, C): each of the first is matched with its nearest in the second, and those count whose
    distance is the smallest share of that to the second nearest; of one alone this is the farthest
    that features can be. None where either has none."""
    if not len(second):
        first = first[:0]
        second = first.new_zeros(1, first.shape[1])
    parts = [(part @ second.T).topk(min(2, len(second)), dim=1) for part in first.split(POINTS)]
    distances = (1 - torch.cat([part.values for part in parts])).clamp(min=TINY)
    nearest = torch.cat([part.indices[:, 0] for part in parts])
    clarity = 1 - distances[:, 0] / (distances[:, 1] if len(second) > 1 else FARTHEST)
    source = clarity.topk(min(count, len(first))).indices
    return source, nearest[source]


def project(points: Tensor, camera: Tensor) -> Tensor:
    """Points (N, 3) → pixels (N, 2)."""
    rays = points @ camera.T
    return rays[:, :2] / rays[:, 2:].clamp(min=TINY)


def draw_pairs(
    path: Path, pairs: Mapping[str, tuple[tuple[PosedImage, PosedImage], PairMatches]], kind: str
) -> Path:
    """Write the preview, some pairs with their matches, and a gallery; the path of the preview.

    Args:
        pairs: name → the views, and their matches.
    """
    recall, unit, limit = RECALLS[kind][0]
    distance = recall.removeprefix("recall_")

    def pictures(
        views: tuple[PosedImage, PosedImage], matches: PairMatches
    ) -> dict[str, np.ndarray]:
        shown = spread_indices(len(matches.moved), LINES)
        first, second = (cells[shown] for cells in matches.cells)
        # a point that is unknown is at the camera, and nearest to none
        distances = torch.cdist(matches.moved[shown], views[1].points.flatten(1).T)
        is_right = (matches.errors[unit][shown] < limit).cpu()
        return {
            "image": side_by_side(views, first[:0], first[:0], is_right[:0]),
            "truth": side_by_side(views, first, distances.argmin(dim=1), torch.ones_like(is_right)),
            "prediction": side_by_side(views, first, second, is_right),
        }

    images = ((name, pictures(*pair)) for name, pair in pairs.items())
    write_gallery(path.parent, images, side=2 * SMALL)
    names = [list(pairs)[index] for index in spread_indices(len(pairs), PAIRS)]
    rows = [[pictures(*pairs[name])["prediction"]] for name in names]
    captions = [name.replace("→", "to") for name in names]  # the font has no arrow
    title = f"matches: green within {distance[:-2]} {distance[-2:]}, others red"
    return write_grid(path, [title], rows, captions, side=PAIR_SIDE)


def side_by_side(
    views: tuple[PosedImage, PosedImage], first: Tensor, second: Tensor, is_right: Tensor
) -> np.ndarray:
    """Both views, (H, 2W, 3) uint8, and a line from a cell of the first to one of the second for
    each match (N,)."""
    photos = [view.pixels.permute(1, 2, 0).numpy() for view in views]
    points = pixels_of(views[0], first).tolist(), pixels_of(views[1], second).tolist()
    colours = [RIGHT if right else WRONG for right in is_right.tolist()]
    return join_points(photos, *points, colours)


def pixels_of(view: PosedImage, cells: Tensor) -> Tensor:
    """The middle x, y (N, 2) in an image of cells (N,) of the grid over it."""
    height, width = view.points.shape[1:]
    scale = torch.tensor([view.pixels.shape[2] / width, view.pixels.shape[1] / height])
    return (torch.stack([cells % width, cells // width], dim=1) + 0.5) * scale
