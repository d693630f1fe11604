"""``view-matching``, without training: a point of one view matches the point of the other whose
features are nearest by cosine; how far both are from each other in space, and in the image.

As El Banani et al. (CVPR 2024) evaluate NAVI and ScanNet: of the matches of a pair those count
whose nearest neighbour is clearest before the second nearest. Recall is the share of these within a
distance, a mean over pairs; also by bins of the angle between the cameras.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import normalize

from cliptex_common.dense_maps.pictures import spread_indices, write_grid
from cliptex_common.errors import UserError
from probes.base import Context, TaskResult
from probes.datasets.base import Sample
from probes.matching.metrics import RECALLS, view_pairs
from probes.matching.views import EncodedViews, View
from probes.pictures import GALLERY_IMAGES, SMALL, write_gallery

MAX_ANGLE = 120.0  # degrees, between the views of a sampled pair
EVERY = 4  # images of which a sampled pair is scored
SEED = 8  # of sampled pairs
POINTS = 2048  # that are matched at once
TINY = 1e-9  # nothing is divided by less
PAIRS, PAIR_SIDE = 6, 768  # pairs of the preview, and pixels of their longest side
LINES = 48  # matches of a pair that are drawn
RIGHT, WRONG = (0, 200, 80), (230, 40, 40)
Pair = tuple[Sample, Sample]
EncodedView = tuple[Tensor, View]  # its feature map (C, h, w), and the view


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
        encoded = EncodedViews(context, list(used.values())).all()
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
    preview = draw_pairs(context.work_dir / "preview.png", pictured, kind)
    return TaskResult(metrics, per_image, preview=preview, notes=[f"{len(pairs)} pairs"])


def folder_of(sample: Sample) -> str:
    """The object or the room that a view shows: the first folder."""
    return Path(sample.image).parts[0]


def listed_pairs(samples: Sequence[Sample]) -> list[Pair]:
    """The pairs that the dataset lists, by the object or room of the first view."""
    by_name = {sample.image: sample for sample in samples}
    pairs = [(sample, by_name[name]) for sample in samples for name in sample.target["pairs"]]
    return sorted(pairs, key=lambda pair: folder_of(pair[0]))


def sampled_pairs(samples: Sequence[Sample]) -> list[Pair]:
    """To every fourth image another of its object, at most ``MAX_ANGLE`` degrees away."""
    generator = torch.Generator().manual_seed(SEED)
    pairs = []
    for _, group in groupby(samples, folder_of):
        views = list(group)
        rotations = torch.tensor([view.target["rotation"] for view in views])
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
        torch.tensor(sample.target[name], dtype=torch.float64)
        for name in ("rotation", "translation")
        for sample in (first, second)
    )
    rotation = r1 @ r0.T
    return torch.cat([rotation, (t1 - rotation @ t0)[:, None]], dim=1)


def angle_of(pose: Tensor) -> float:
    """The angle in degrees between two cameras, by their ``relative_pose``."""
    return float(((pose[:, :3].trace() - 1) / 2).clamp(-1, 1).acos().rad2deg())


def match_views(
    first: EncodedView, second: EncodedView, pose: Tensor, matches: int, kind: str
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


def at_points(feature_map: Tensor, view: View, kind: str) -> tuple[Tensor, Tensor]:
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
    distance is the smallest share of that to the second nearest."""
    parts = [(part @ second.T).topk(2, dim=1) for part in first.split(POINTS)]
    distances = (1 - torch.cat([part.values for part in parts])).clamp(min=TINY)
    nearest = torch.cat([part.indices[:, 0] for part in parts])
    clarity = 1 - distances[:, 0] / distances[:, 1]
    source = clarity.topk(min(count, len(first))).indices
    return source, nearest[source]


def project(points: Tensor, camera: Tensor) -> Tensor:
    """Points (N, 3) → pixels (N, 2)."""
    rays = points @ camera.T
    return rays[:, :2] / rays[:, 2:].clamp(min=TINY)


def draw_pairs(
    path: Path, pairs: Mapping[str, tuple[tuple[View, View], PairMatches]], kind: str
) -> Path:
    """Write the preview, some pairs with their matches, and a gallery; the path of the preview.

    Args:
        pairs: name → the views, and their matches.
    """
    recall, unit, limit = RECALLS[kind][0]
    distance = recall.removeprefix("recall_")

    def pictures(views: tuple[View, View], matches: PairMatches) -> dict[str, np.ndarray]:
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
    views: tuple[View, View], first: Tensor, second: Tensor, is_right: Tensor
) -> np.ndarray:
    """Both views, (H, 2W, 3) uint8, and a line from a cell of the first to one of the second for
    each match (N,)."""
    sheet = Image.fromarray(
        np.concatenate([view.pixels.permute(1, 2, 0).numpy() for view in views], axis=1)
    )
    pen = ImageDraw.Draw(sheet)
    starts, ends = pixels_of(views[0], first), pixels_of(views[1], second)
    ends[:, 0] += views[0].pixels.shape[2]
    for start, end, right in zip(starts.tolist(), ends.tolist(), is_right.tolist(), strict=True):
        pen.line([*start, *end], RIGHT if right else WRONG, width=2)
    return np.asarray(sheet)


def pixels_of(view: View, cells: Tensor) -> Tensor:
    """The middle x, y (N, 2) in an image of cells (N,) of the grid over it."""
    height, width = view.points.shape[1:]
    scale = torch.tensor([view.pixels.shape[2] / width, view.pixels.shape[1] / height])
    return (torch.stack([cells % width, cells // width], dim=1) + 0.5) * scale
