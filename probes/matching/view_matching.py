"""``view-matching``, without training: a point of one view matches the point of the other whose
features are nearest by cosine; how far both are from each other in space, and in the image.

As El Banani et al. (CVPR 2024) evaluate NAVI and ScanNet: of the matches of a pair those count
whose nearest neighbour is clearest before the second nearest. Recall is the share of these within a
distance, a mean over pairs; also by bins of the angle between the cameras.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import normalize

from cliptex_common.errors import UserError
from probes.base import Context, TaskResult
from probes.datasets.base import Sample
from probes.matching.metrics import RECALLS, view_pairs
from probes.matching.views import EncodedViews, View

MAX_ANGLE = 120.0  # degrees, between the views of a sampled pair
EVERY = 4  # images of which a sampled pair is scored
SEED = 8  # of sampled pairs
POINTS = 2048  # that are matched at once
TINY = 1e-9  # nothing is divided by less
Pair = tuple[Sample, Sample]
EncodedView = tuple[Tensor, View]  # its feature map (C, h, w), and the view


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    kind, samples = context.data.spec.kind, context.data.samples["val"]
    is_sampled = getattr(context.settings, "pairs", "listed") == "sampled"
    pairs = sampled_pairs(samples) if is_sampled else listed_pairs(samples)
    if not pairs:
        raise UserError(f"{context.data.spec.name} has no pair to match")
    context.progress.start("matching views", len(pairs))
    names, units, rows = [], [], []
    for _, group in groupby(pairs, lambda pair: folder_of(pair[0])):
        members = list(group)
        used = {sample.image: sample for pair in members for sample in pair}
        encoded = EncodedViews(context, list(used.values())).all()
        views = dict(zip(used, encoded, strict=True))
        for first, second in members:
            images, pose = [first.image, second.image], relative_pose(first, second)
            encoded_views = views[first.image], views[second.image]
            errors = match_errors(*encoded_views, pose, context.settings.matches, kind)
            recalls = [
                (errors[unit] < limit).float().mean().item() for _, unit, limit in RECALLS[kind]
            ]
            rows.append([*recalls, angle_of(pose)])
            names.append(" → ".join(images))
            units.append(folder_of(first) if kind == "object-views" else images)
            context.progress.advance()
    columns = [name for name, _, _ in RECALLS[kind]] + ["angle"]
    per_image = {"image": np.array(names), "unit": np.array(units)}
    per_image |= dict(zip(columns, np.array(rows).T, strict=True))
    values = view_pairs(kind, tuple(names), per_image).values()
    metrics = {name: value for name, value in values.items() if not np.isnan(value)}
    return TaskResult(metrics, per_image, notes=[f"{len(pairs)} pairs"])


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


def match_errors(
    first: EncodedView, second: EncodedView, pose: Tensor, matches: int, kind: str
) -> dict[str, Tensor]:
    """The errors of the clearest matches, ``m`` and ``px`` → (N,) float32 on the device: how far a
    point of the first view is from its match, in the second camera's system and image.

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
    return {unit: error.norm(dim=1) for unit, error in zip(("m", "px"), errors, strict=True)}


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
