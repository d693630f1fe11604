"""Phases of the probes on patches; each follows its module in ``probes.dense.patches``."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from mmengine.registry import DefaultScope
from torch import Tensor
from torch.nn.functional import cross_entropy

from probes.dense.patches.images import QUERIES, DenseEncoder, PatchImages
from probes.dense.patches.in_context import attend
from probes.dense.patches.knn import key_maker, vote
from probes.dense.patches.memory import MOMENT_ROWS, ROWS, class_count
from probes.dense.patches.open_vocabulary import class_synonyms
from probes.dense.patches.pixels import Patches, average_windows, label_map
from probes.features.search import nearest
from probes.image_level.linear import Standardiser
from probes.image_level.zero_shot import templates_for
from probes.memory.dense import encode_maps, encoded
from probes.memory.plan import MemoryPlan, Phases

HISTORY = 16  # vectors as long as the parameters that L-BFGS with a history of 5 remembers


def remember(plan: MemoryPlan) -> tuple[PatchImages, Tensor, Tensor]:
    """Encode val and train; val's images, and features and labels of the memory of train."""
    settings = plan.settings
    passes = getattr(settings, "passes", 0)
    train = PatchImages(plan.context, "train", crops=passes)
    val = PatchImages(plan.context, "val")
    with DefaultScope.overwrite_default_scope("mmseg"):
        for images in (train, val):
            encode_maps(images.dataset.encoder, images.dataset.sizes())
    rows = train.most_patches(max(1, settings.memory // len(train)))
    width = sum(plan.backbone.channels[-len(train.strides) :])
    if getattr(settings, "votes", "shares") == "pixels":
        side = val.score_side // round(math.sqrt(_patches(val)[0]))
        labels = plan.resident(rows, side * side, dtype=torch.uint8)
    else:
        labels = plan.resident(rows, class_count(plan.context), dtype=torch.float16)
    return val, plan.resident(rows, width, dtype=train.dtype), labels


def _patches(images: PatchImages) -> tuple[int, tuple[int, int], tuple[int, int]]:
    """Of the largest image: number of patches, their grid, and the size of its label map."""
    stride = images.stride or images.strides[-1]
    size = max(images.dataset.sizes(), key=math.prod)
    grid = math.ceil(size[0] / stride), math.ceil(size[1] / stride)
    side = images.score_side
    source = images.dataset.source
    width, height = max(map(source.own_size, range(min(len(source), 200))), key=math.prod)
    return math.prod(grid), grid, (side, side) if side else (height, width)


def _queries(images: PatchImages, width: int) -> list[Patches]:
    """Images that are predicted together, see ``grouped``."""
    count, grid, size = _patches(images)
    number = min(len(images), math.ceil(QUERIES / count))
    extent = (float(grid[0]), float(grid[1]))
    return [
        Patches(index, torch.empty(count, width), grid, extent, size) for index in range(number)
    ]


def _standardise(features: Tensor) -> Standardiser:
    features[:MOMENT_ROWS].double().square()
    return Standardiser.identity(features.shape[1])


def knn(plan: MemoryPlan) -> Phases:
    """See ``probes.dense.patches.knn``."""
    settings = plan.settings
    images, features, labels = remember(plan)
    yield "encoding"
    standardise = _standardise(features)
    count = max(settings.neighbours)
    for distance in settings.distances:
        make_keys = key_maker(standardise, distance)
        offset = torch.empty(len(features)) if distance == "l2" else None
        group = _queries(images, features.shape[1])
        queries = make_keys(torch.cat([patches.features for patches in group]))
        _, index = nearest(queries, features, count, offset, prepare=_uploaded(make_keys))
        for patches in group[:1]:
            neighbour_labels = labels[index[: len(patches.features)]]
            if settings.votes == "shares":
                label_map(neighbour_labels.float().mean(dim=1), patches)
            else:
                vote(neighbour_labels, plan.context)
    yield "search"


def _uploaded(prepare: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``prepare`` of a copy: rows of the memory in float32."""
    return lambda part: prepare(part.clone())


def in_context(plan: MemoryPlan) -> Phases:
    """See ``probes.dense.patches.in_context``."""
    images, features, labels = remember(plan)
    yield "encoding"
    group = _queries(images, features.shape[1])
    queries = torch.cat([patches.features for patches in group])
    shares = attend(queries, features, labels, plan.settings)
    label_map(shares[: len(group[0].features)], group[0])
    yield "search"


def logreg(plan: MemoryPlan) -> Phases:
    """See ``probes.dense.patches.logreg``."""
    images, features, labels = remember(plan)
    yield "encoding"
    standardise = _standardise(features)
    target = labels.argmax(dim=1)
    parameters = torch.zeros(features.shape[1] + 1, plan.classes, requires_grad=True)
    history = [torch.empty_like(parameters) for _ in range(HISTORY)]
    for _ in range(2):
        logits = standardise(features[:ROWS].float()) @ parameters[:-1] + parameters[-1]
        cross_entropy(logits, target[:ROWS], reduction="sum").backward()
        del logits
    yield "training"
    del history
    with torch.no_grad():
        group = _queries(images, features.shape[1])
        label_map(group[0].features @ parameters[:-1], group[0])
    yield "evaluation"


def open_vocabulary(plan: MemoryPlan) -> Phases:
    """See ``probes.dense.patches.open_vocabulary``."""
    settings, context = plan.settings, plan.context
    synonyms = class_synonyms(context.data.classes, settings.background)
    _, templates = templates_for(settings.templates, context.data.spec)
    names = sum(map(len, synonyms))
    plan.embed_texts(names * len(templates))
    yield "encoding texts"
    encoder = DenseEncoder(plan.backbone, settings.precision, settings.slide)
    images = PatchImages(context, "val", encoder)
    config, sizes = images.dataset.encoder, images.dataset.sizes()
    with torch.inference_mode(), DefaultScope.overwrite_default_scope("mmseg"):
        encode_maps(config, sizes, encoder)
        yield "encoding"
        count, grid, size = _patches(images)
        (single,) = encoded(config, [torch.empty(3, *sizes[0], dtype=torch.uint8)], encoder)
        windows = single.shape[1] // plan.backbone.embed_dim
        features = torch.empty(count, windows, plan.backbone.embed_dim)
        similar = features @ torch.empty(plan.backbone.embed_dim, names)
        patches = Patches(0, features, grid, (float(grid[0]), float(grid[1])), size)
        if settings.slide:
            maps = similar.permute(1, 2, 0).unflatten(2, grid)
            average_windows(maps, (sizes[0][0], sizes[0][1]), settings.slide)
        else:
            label_map(similar[:, 0], patches)
    yield "evaluation"
