"""The bank of training patches with their labels, and the images held out to choose settings on.

Held-out images follow from their content (``probes.select``); ``val`` has no say. There is one
copy of the features: whoever standardises or normalises them does so a part at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cliptex_common.device import CPU
from cliptex_common.files import derive_seed
from cliptex_common.metrics import class_areas, confusion
from probes.base import Context
from probes.dense.patches.images import PatchImages, in_groups
from probes.dense.patches.pixels import Patches, class_shares, pixel_labels
from probes.dense.patches.probe import has_void_class
from probes.dense.segmentation import segmentation_scores
from probes.image_level.classification import on_device_if_small
from probes.select import held_out_by_content

ROWS = 2**16  # of the memory at once


@dataclass
class Memory:
    """Patches of train, on the device where they take up to a quarter of its free memory.

    Attributes:
        features: (M, D), in the precision of the cache where one map is read as it is.
        labels: (M, classes) float16, the part of a patch that each class has; or (M, pixels of a
            patch), the class of each pixel.
        owner: (M,) index of the image in the split, on the CPU.
        is_void: (M,) patches that are standardised with the others and nothing more, on the CPU.
    """

    features: Tensor
    labels: Tensor
    owner: Tensor
    is_void: Tensor

    def __len__(self) -> int:
        return len(self.owner)

    def unused(self, held_out: Sequence[int] = ()) -> Tensor:
        """(M,) whether a patch is void, or of a held-out image."""
        is_held_out = torch.zeros(int(self.owner.max()) + 1, dtype=torch.bool)
        is_held_out[torch.tensor(held_out, dtype=torch.int64)] = True
        return self.is_void | is_held_out[self.owner]


def class_count(context: Context) -> int:
    """Of the classes that can be predicted, with void where it is one."""
    return len(context.data.classes) + has_void_class(context.settings)


def held_out_images(context: Context) -> list[int]:
    """Indices in ``train`` of the images to choose on: ``held_out`` of them, at most.

    Raises:
        UserError: there are fewer than two different images.
    """
    return sorted(held_out_by_content(context)[: context.settings.held_out])


def remember(context: Context, pixels: bool = False) -> Memory:
    """The memory of all of ``train``.

    Args:
        pixels: labels are those of pixels, not shares of classes.
    Raises:
        UserError: an image cannot be read, or ``votes=pixels`` does not fit.
    """
    settings, data = context.settings, context.data
    passes, sampling = getattr(settings, "passes", 0), getattr(settings, "sampling", "even")
    # cached maps are on the CPU, and so is what is remembered of them
    images = PatchImages(context, "train", crops=passes, device=CPU)
    limit, classes = max(1, settings.memory // len(images)), len(data.classes)
    stored: dict[str, Tensor] = {}
    count, most = 0, images.most_patches(limit)
    for number, patches in enumerate(images.walk()):
        if not number:  # what fills the store has its own progress before
            context.progress.start("remembering patches", len(images))
        labels = images.labels(patches)
        shares, remembered = class_shares(
            labels,
            patches,
            classes,
            data.spec.ignore_index,
            settings.void,
            void_first=data.spec.label_offset < 0,
        )
        is_void = ~remembered & (settings.void == "vote")
        rows = (remembered | is_void).nonzero().squeeze(1)
        if len(rows) > limit:
            name = data.encoded("train")[patches.index].image
            key = (name, patches.crop) if passes else (name,)
            generator = torch.Generator().manual_seed(derive_seed("memory", context.seed, *key))
            if sampling == "rare":
                noise = torch.rand(len(rows), generator=generator)
                chosen = rarest(shares[rows], noise, limit)
            else:
                chosen = torch.randperm(len(rows), generator=generator)[:limit]
            rows = rows[chosen.sort().values]
        columns = {
            "features": patches.features[rows].to(images.dtype),
            "labels": shares[rows].half(),
            "owner": torch.full((len(rows),), patches.index),
            "is_void": is_void[rows],
        }
        if pixels:
            ordered = order_labels(labels, context)
            columns["labels"] = pixel_labels(ordered, patches)[rows]
        for name, values in columns.items():
            if not count:
                # memory that is never written to is never taken
                stored[name] = values.new_empty(most, *values.shape[1:])
            stored[name][count : count + len(rows)] = values
        count += len(rows)
        context.progress.advance()
    stored = {name: values[:count] for name, values in stored.items()}
    for name in ("features", "labels"):
        stored[name] = on_device_if_small(stored[name], context.device)
    return Memory(**stored)


def rarest(shares: Tensor, noise: Tensor, count: int) -> Tensor:
    """Indices of ``count`` of an image's patches, rarer classes first, as Open-Hummingbird samples.

    A patch's score is the number of patches that show one of its classes, summed over its classes,
    times noise; the lowest are taken.

    Args:
        shares: (N, classes) part of a patch that each class has.
        noise: (N,) even in [0, 1).
    """
    shown = (shares > 0).float()
    scores = shown @ shown.sum(dim=0) * noise
    return scores.topk(count, largest=False).indices


def order_labels(labels: Tensor, context: Context) -> Tensor:
    """Labels as a vote orders them, of which the first of equals wins: as they are stored, void
    first where it is stored as 0, else last. Void pixels that count as background have the first
    class."""
    classes, spec = len(context.data.classes), context.data.spec
    void = 0 if context.settings.void == "background" else classes
    labels = torch.where(labels == spec.ignore_index, void, labels)
    # void, number ``classes``, becomes 0 where it is stored as 0, and all others one more
    ordered = (labels + (spec.label_offset < 0)) % (classes + 1)
    return ordered.to(torch.uint8 if classes < 256 else torch.int16)


def classes_of(ordered: Tensor, context: Context) -> Tensor:
    """The inverse of ``order_labels``: classes, and ``len(classes)`` for void."""
    shift = int(context.data.spec.label_offset < 0)
    return (ordered.long() - shift) % (len(context.data.classes) + 1)


def mean_iou(
    images: PatchImages,
    items: Sequence[int],
    predict: Callable[[Sequence[Patches]], Iterable[Iterable[Tensor]]],
) -> list[float]:
    """mIoU in percent of some candidates on some images.

    Args:
        predict: images → for each of them the (H, W) label map of every candidate.
    """
    context = images.context
    classes, ignore_index = class_count(context), context.data.spec.ignore_index

    def counts_of(group: Sequence[Patches]) -> Iterator[Tensor]:
        """Of each image and candidate: full maps of all images of a group would take much."""
        for patches, maps in zip(group, predict(group), strict=True):
            labels = images.labels(patches)
            yield torch.stack(
                [confusion(each.cpu(), labels, classes, ignore_index) for each in maps]
            )

    totals: Any = 0
    for _, counts in in_groups(images.walk(items), counts_of, context.cost.notes):
        totals = totals + counts
        context.progress.advance()
    return [segmentation_scores(class_areas(each))[0]["mIoU"] for each in totals]
