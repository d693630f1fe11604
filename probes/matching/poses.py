"""``relative-pose``: an MLP reads the embeddings of two views of an object and says how the camera
turned and moved between them.

As in VisBench 0.27 (``tasks/mid_level/pose.py``, ``data/navi.py``), whose pairs these are where a
scene's annotations list its files by name: a view of either split may be the partner; pairs belong
to the split of their first view. To rotate is to compose with a quaternion (w, x, y, z), q and -q
being one rotation; the MLP is trained on that whose largest component is positive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import groupby, pairwise
from pathlib import PurePath
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize

from cliptex_common.device import upload
from cliptex_common.errors import NonFiniteLoss, UserError
from cliptex_common.files import derive_seed
from probes.base import Context, Head, TaskResult
from probes.datasets.base import Sample, Split
from probes.image_level.classification import on_device_if_small
from probes.image_level.encode import encode_split, layer_columns
from probes.matching.probe import RelativePoseSettings, view_poses
from reports.records import FLOOR, TRAIN_LOSS


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    data, settings = context.data, context.settings
    frames = {"train": list(data.encoded("train")), "val": data.samples["val"]}
    # a share of train is one of its pairs: their partners, and those of val, are of all frames
    every = replace(data, samples=frames, full_train=(), train_indices=())
    samples, count = frames["train"] + frames["val"], len(frames["train"])
    pairs = sample_pairs(samples, count, settings)
    of_val = pairs[:, 0] >= count
    of_train = ~of_val
    if data.train_indices:
        of_train &= torch.isin(pairs[:, 0], torch.tensor(data.train_indices))
    train, val = pairs[of_train], pairs[of_val]
    if min(len(train) - 1, len(val)) < 1:
        raise UserError(
            f"{data.name} has {len(train)} pairs of train and {len(val)} of val with at most"
            f" {settings.max_angle:g}° between the cameras; get more of its views"
        )
    poses, target = (relative_poses(samples, part).float() for part in (train, val))
    features = torch.cat(
        [encode_split(replace(context, data=every), split) for split in get_args(Split)]
    )
    features = on_device_if_small(features, context.device)
    with context.cost.phase("train"):
        mlp = train_mlp(context, features, train, poses)
    with torch.no_grad():
        outputs = [mlp(gather(features, part, context)).cpu() for part in val.split(4096)]
    names = [f"{samples[a].image} → {samples[b].image}" for a, b in val.tolist()]
    objects = np.array([PurePath(name).parts[0] for name in names])
    per_image = {"image": np.array(names), "unit": objects, **errors(torch.cat(outputs), target)}
    metrics = view_poses(tuple(names), per_image).values()
    constant = errors(poses.mean(dim=0).expand_as(target), target)
    floor = view_poses(tuple(names), constant).values()
    notes = [
        f"{len(train)} pairs of train, {len(val)} of val; the floor, the mean pose of train:"
        f" rotation {floor['rotation_error']:.1f}°, translation"
        f" {floor['translation_error']:.3f} m, within 15° {floor['rotation_15']:.1f} %, 30°"
        f" {floor['rotation_30']:.1f} %"
    ]
    columns = layer_columns(context)
    head = Head.of(
        context,
        mlp.state_dict(),
        encoding=asdict(settings.encoding(context.device.type)),
        columns=(columns.start, columns.stop),
        widths=settings.widths,
    )
    bounds = {FLOOR: floor["rotation_error"]}
    return TaskResult(metrics, per_image, bounds, head=head, notes=notes)


def sample_pairs(samples: Sequence[Sample], count: int, settings: RelativePoseSettings) -> Tensor:
    """(P, 2) indices of samples, the first ``count`` of which are of train: to each view another
    one of its scene at most ``max_angle`` away, of train ``partners`` different ones.

    The first partners come from a generator of their own, so more of them leave those of val.
    """
    rotations, _ = cameras(samples)
    first, more = (torch.Generator().manual_seed(settings.pair_seed + i) for i in (0, 1))
    paths = [PurePath(sample.image) for sample in samples]
    pairs: list[tuple[int, int]] = []
    order = sorted(range(len(samples)), key=paths.__getitem__)
    for _, scene in groupby(order, key=lambda index: paths[index].parent):
        views = torch.tensor(list(scene))
        for anchor in views.tolist():
            angles = rotation_angle(compose(rotations[views], inverse(rotations[anchor])))
            weights = ((angles > 0) & (angles <= settings.max_angle) & (views != anchor)).double()
            extra = min(settings.partners, int(weights.sum())) - 1
            if extra < 0:
                continue
            partners = [torch.multinomial(weights, 1, generator=first)]
            weights[partners[0]] = 0
            if anchor < count and extra:
                partners.append(torch.multinomial(weights, extra, generator=more))
            pairs += [(anchor, partner) for partner in views[torch.cat(partners)].tolist()]
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


def cameras(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """From the world to each camera, float64: unit quaternions (N, 4), translations (N, 3)."""
    rotations = torch.tensor([each.target.rotation for each in samples], dtype=torch.float64)
    moves = torch.tensor([each.target.translation for each in samples], dtype=torch.float64)
    return normalize(rotations, dim=1), moves


def relative_poses(samples: Sequence[Sample], pairs: Tensor) -> Tensor:
    """(P, 7) float64 from the first camera's system to the second's: a unit quaternion whose
    largest component is positive, and metres."""
    rotations, moves = cameras(samples)
    first, second = pairs.T
    rotation = compose(rotations[second], inverse(rotations[first]))
    largest = rotation.gather(1, rotation.abs().argmax(dim=1, keepdim=True))
    point = nn.functional.pad(moves[first], (1, 0))
    moved = compose(compose(rotation, point), inverse(rotation))[:, 1:]
    return torch.cat([rotation * largest.sign(), moves[second] - moved], dim=1)


def compose(second: Tensor, first: Tensor) -> Tensor:
    """The product of quaternions (…, 4), which rotates by ``first`` and then by ``second``."""
    second, first = torch.broadcast_tensors(second, first)
    (a, u), (b, v) = ((each[..., :1], each[..., 1:]) for each in (second, first))
    real = a * b - (u * v).sum(dim=-1, keepdim=True)
    return torch.cat([real, a * v + b * u + torch.linalg.cross(u, v)], dim=-1)


def inverse(rotation: Tensor) -> Tensor:
    """That of unit quaternions (…, 4)."""
    return rotation * rotation.new_tensor([1, -1, -1, -1])


def rotation_angle(rotation: Tensor) -> Tensor:
    """How far quaternions (…, 4) of any length rotate, 0 to 180 degrees."""
    return torch.rad2deg(2 * torch.atan2(rotation[..., 1:].norm(dim=-1), rotation[..., 0].abs()))


def errors(outputs: Tensor, target: Tensor) -> dict[str, np.ndarray]:
    """(P,) ``rotation`` in degrees, the angle between the rotations, and ``translation`` in metres,
    of poses (P, 7)."""
    outputs, target = outputs.double(), target.double()
    between = compose(outputs[:, :4], inverse(target[:, :4]))
    distance = (outputs[:, 4:] - target[:, 4:]).norm(dim=1)
    return {"rotation": rotation_angle(between).numpy(), "translation": distance.numpy()}


def gather(features: Tensor, pairs: Tensor, context: Context) -> Tensor:
    """(P, 2 D) features of both views of each pair, on the device."""
    return upload(features[pairs.to(features.device)].flatten(1), context.device)


def create_mlp(width: int, widths: Sequence[int]) -> nn.Sequential:
    """An MLP from both views' features (N, ``width``) to poses (N, 7).

    Args:
        widths: of the hidden layers.
    """
    layers: list[nn.Module] = [nn.BatchNorm1d(width)]
    sides = [width, *widths]
    for inner, outer in pairwise(sides):
        layers += [nn.Linear(inner, outer), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sides[-1], 7))


def stored_mlp(head: Head) -> nn.Module:
    """The MLP of a stored head."""
    mlp = create_mlp(len(head.tensors["0.weight"]), head.metadata["widths"])
    head.load_into(mlp)
    return mlp


def train_mlp(context: Context, features: Tensor, pairs: Tensor, poses: Tensor) -> nn.Module:
    """The trained MLP, ready to predict. Logs the mean loss of each epoch.

    Raises:
        NonFiniteLoss: training diverged.
    """
    settings, device = context.settings, context.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("relative-pose", context.seed))
        mlp = create_mlp(2 * features.shape[1], settings.widths).to(device)
    optimizer = torch.optim.AdamW(mlp.parameters(), settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    order = torch.Generator().manual_seed(context.seed)
    context.progress.start("training the pose MLP", settings.epochs)
    for epoch in range(settings.epochs):
        total = torch.zeros((), device=device)
        for batch in torch.randperm(len(pairs), generator=order).split(settings.batch_size):
            if len(batch) < 2:  # a BatchNorm has no variance of one pair
                continue
            optimizer.zero_grad()
            output = mlp(gather(features, pairs[batch], context))
            loss = mse_loss(output, upload(poses[batch], device))
            loss.backward()
            optimizer.step()
            total += len(batch) * loss.detach()
        schedule.step()
        mean = total.item() / len(pairs)
        if not math.isfinite(mean):
            raise NonFiniteLoss(f"relative-pose: the loss is not finite in {epoch=}")
        context.log.log_metrics({TRAIN_LOSS: mean}, epoch + 1)
        context.progress.advance()
    return mlp.eval()
