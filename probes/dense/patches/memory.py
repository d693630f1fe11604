"""What is remembered of the training images: patches, and what part of each every class has; and
how settings are chosen on some images that are left out of it.

Those follow from the content of the images (``probes.dense.lr_grid.held_out``), and ``val`` has no
say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.files import derive_seed
from probes.base import Context
from probes.dense.lr_grid import held_out
from probes.dense.metrics import class_areas, segmentation_scores
from probes.dense.patches.images import Patches, PatchImages, labels_of, shares
from probes.features.cost import EncodeRun
from probes.image_level.classification import near

MOST_HELD = 200  # images that settings are chosen on


@dataclass
class Memory:
    """Patches of train.

    Attributes:
        features: (M, D) float32; shares: (M, classes) float16, what part of a patch each class has;
            owner: (M,) places of their images in the split. All on the device where they take up to
                a quarter of what is free.
    """

    features: Tensor
    shares: Tensor
    owner: Tensor

    def __len__(self) -> int:
        return len(self.owner)

    def without(self, images: Sequence[int]) -> Memory:
        """The patches of all other images."""
        kept = ~torch.isin(self.owner, torch.tensor(list(images), device=self.owner.device))
        return Memory(
            self.features[kept.to(self.features.device)],
            self.shares[kept.to(self.shares.device)],
            self.owner[kept],
        )


@dataclass
class Standard:
    """Mean and inverse deviation of each feature over a memory; features that do not vary become
    0."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, features: Tensor, wanted: bool) -> Standard:
        """That of ``features``; one that changes nothing where none is ``wanted``."""
        if not wanted:
            return cls(features.new_zeros(1), features.new_ones(1))
        total = square = features.new_zeros(features.shape[1], dtype=torch.float64)
        for part in features.split(2**16):
            total = total + part.double().sum(dim=0)
        mean = total / len(features)
        for part in features.split(2**16):
            square = square + (part.double() - mean).square().sum(dim=0)
        variance = square / len(features)
        scale = torch.where(
            variance <= 1e-12 * (mean**2 + 1e-12), 0.0, variance.clamp_min(1e-24).rsqrt()
        )
        return cls(mean.float(), scale.float())

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean.to(features.device)) * self.scale.to(features.device)


@dataclass
class Held:
    """Images that are left out to choose on, whole."""

    patches: list[Patches]
    truth: list[Tensor]

    def places(self) -> list[int]:
        return [one.index for one in self.patches]


def remember(context: Context, run: EncodeRun, choosing: bool) -> tuple[Memory, Held]:
    """The memory of all of ``train``, within ``memory`` patches, and some of its images whole where
    there is something to choose.

    Patches of which less than half is labelled are left out.

    Raises:
        UserError: an image cannot be read, or none can be held out.
    """
    settings, images, data = context.settings, PatchImages(context, "train"), context.data
    wanted = set(held_out(context)[:MOST_HELD]) if choosing else set()
    most, classes = max(1, settings.memory // len(images)), len(data.classes)
    held, found = Held([], []), list[tuple[int, Tensor, Tensor]]()
    for patches in images.walk(run):
        truth = images.truth(patches)
        if patches.index in wanted:
            held.patches.append(patches)
            held.truth.append(truth)
        share, known = shares(truth, patches, classes, data.spec.ignore_index)
        chosen = known.nonzero().squeeze(1)
        if len(chosen) > most:
            name = data.encoded("train")[patches.index].image
            seed = torch.Generator().manual_seed(derive_seed("memory", context.seed, name))
            chosen = chosen[torch.randperm(len(chosen), generator=seed)[:most].sort().values]
        features = patches.features[chosen.to(patches.features.device)]
        found.append((patches.index, features.cpu(), share[chosen].half()))
    found.sort(key=lambda one: one[0])  # where features are not kept images come by size
    owner = torch.cat([torch.full((len(features),), index) for index, features, _ in found])
    features = near(torch.cat([features for _, features, _ in found]), context.device)
    share = near(torch.cat([share for *_, share in found]), context.device)
    order = sorted(range(len(held.patches)), key=lambda place: held.patches[place].index)
    return Memory(features, share, owner), Held(
        [held.patches[p] for p in order], [held.truth[p] for p in order]
    )


def mean_iou(held: Held, scores: Sequence[Tensor], classes: int, ignore_index: int) -> float:
    """mIoU in percent on the held-out images, of (rows × columns, classes) scores of each."""
    areas = [
        class_areas(labels_of(score, patches).cpu(), truth, classes, ignore_index)
        for score, patches, truth in zip(scores, held.patches, held.truth, strict=True)
    ]
    total = {name: torch.stack([area[name] for area in areas]).numpy() for name in areas[0]}
    return segmentation_scores(total)[0]["mIoU"]
