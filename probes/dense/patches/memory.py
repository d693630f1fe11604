"""The memory of training patches with their labels, and the images held out to choose settings on.

Held-out images follow from their content (``probes.selection``); ``val`` has no say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.files import derive_seed
from probes.base import Context
from probes.dense.metrics import class_areas, segmentation_scores
from probes.dense.patches.images import Patches, PatchImages, class_shares, label_map
from probes.features.cost import EncodeRun
from probes.image_level.classification import on_device_if_small
from probes.image_level.linear import Standardiser
from probes.selection import held_out_by_content

MAX_HELD_OUT = 200  # images that settings are chosen on
ROWS = 2**16


@dataclass
class Memory:
    """Patches of train, on the device where they take up to a quarter of its free memory.

    Attributes:
        features: (M, D) float32.
        shares: (M, classes) float16, the part of a patch that each class has.
        owner: (M,) index of the image in the split, on the CPU.
    """

    features: Tensor
    shares: Tensor
    owner: Tensor

    def __len__(self) -> int:
        return len(self.owner)

    def without(self, images: Sequence[HeldOutImage]) -> Memory:
        """The patches of all other images."""
        rest = ~torch.isin(self.owner, torch.tensor([image.patches.index for image in images]))
        features = self.features[rest.to(self.features.device)]
        return Memory(features, self.shares[rest.to(self.shares.device)], self.owner[rest])


@dataclass
class HeldOutImage:
    """An image to choose settings on: all its patches, and its (H, W) labels."""

    patches: Patches
    labels: Tensor


def standardiser(features: Tensor) -> Standardiser:
    """From the mean and deviation of (M, D) features, on their own device."""
    total = square = features.new_zeros(features.shape[1], dtype=torch.float64)
    for part in features.split(ROWS):
        total = total + part.double().sum(dim=0)
    mean = total / len(features)
    for part in features.split(ROWS):
        square = square + (part.double() - mean).square().sum(dim=0)
    return Standardiser.from_moments(mean, square / len(features))


def remember(context: Context, choosing: bool) -> tuple[Memory, list[HeldOutImage]]:
    """The memory of all of ``train``, and held-out images if a setting is to be chosen.

    Patches of which less than half is labelled are left out.

    Raises:
        UserError: an image cannot be read, or none can be held out.
    """
    settings, images, data = context.settings, PatchImages(context, "train"), context.data
    held_out = set(held_out_by_content(context)[:MAX_HELD_OUT]) if choosing else set()
    limit, classes = max(1, settings.memory // len(images)), len(data.classes)
    chosen_on: list[HeldOutImage] = []
    parts: list[tuple[int, Tensor, Tensor]] = []
    for patches in images.walk(EncodeRun.of(context)):
        labels = images.labels(patches)
        if patches.index in held_out:
            chosen_on.append(HeldOutImage(patches, labels))
        shares, is_labelled = class_shares(labels, patches, classes, data.spec.ignore_index)
        rows = is_labelled.nonzero().squeeze(1)
        if len(rows) > limit:
            name = data.encoded("train")[patches.index].image
            generator = torch.Generator().manual_seed(derive_seed("memory", context.seed, name))
            rows = rows[torch.randperm(len(rows), generator=generator)[:limit].sort().values]
        features = patches.features[rows.to(patches.features.device)]
        parts.append((patches.index, features.cpu(), shares[rows].half()))
    # without a cache the images come in the order of their size
    parts.sort(key=lambda part: part[0])
    chosen_on.sort(key=lambda image: image.patches.index)
    owner = torch.cat([torch.full((len(features),), index) for index, features, _ in parts])
    features = torch.cat([features for _, features, _ in parts])
    shares = torch.cat([shares for *_, shares in parts])
    features, shares = (on_device_if_small(each, context.device) for each in (features, shares))
    return Memory(features, shares, owner), chosen_on


def mean_iou(images: Sequence[HeldOutImage], scores: Sequence[Tensor], context: Context) -> float:
    """mIoU in percent on held-out images, of (rows × columns, classes) scores of each."""
    classes, ignore_index = len(context.data.classes), context.data.spec.ignore_index
    areas = [
        class_areas(label_map(score, image.patches).cpu(), image.labels, classes, ignore_index)
        for score, image in zip(scores, images, strict=True)
    ]
    total = {name: torch.stack([area[name] for area in areas]).numpy() for name in areas[0]}
    return segmentation_scores(total)[0]["mIoU"]
