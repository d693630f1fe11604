"""Phases of the probes on whole images; each follows the probe's own module."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from probes.features.search import nearest
from probes.image_level.attentive import adamw, token_encoder
from probes.image_level.attentive import create_heads as create_attentive_heads
from probes.image_level.correspondence import folder_of
from probes.image_level.encode import Encode, square_side
from probes.image_level.few_shot import LeastSquares
from probes.image_level.linear import (
    LinearHeads,
    Pair,
    Samples,
    Standardiser,
    create_heads,
    evaluate_grid,
    sgd,
)
from probes.image_level.random_crops import train_step
from probes.image_level.zero_shot import templates_for
from probes.memory.plan import CPU, MemoryPlan, Phases


def linear(plan: MemoryPlan) -> Phases:
    """See ``probes.image_level.linear``."""
    settings = plan.settings
    if settings.random_crops:
        yield from random_crops(plan)
        return
    width = plan.embed("train", "val")
    yield "encoding"
    count = plan.images("train")
    train = Samples(plan.resident(count, width), _rows(count), plan.classes)
    if len(settings.grid) > 1:
        heads = _train_linear(plan, train, settings.grid)
        evaluate_grid(heads, settings.grid, _first(train, 2**16), CPU)
        del heads
    heads = _train_linear(plan, train, settings.grid[:1])
    yield "training"
    with torch.no_grad():
        heads(torch.empty(min(4096, plan.images("val")), width))
    yield "scoring"


def _train_linear(plan: MemoryPlan, samples: Samples, grid: Sequence[Pair]) -> LinearHeads:
    """Two steps of ``train_linear``."""
    width, size = samples.features.shape[1], min(plan.settings.batch_size, len(samples))
    weights = [torch.zeros(width, samples.classes) for _ in grid]
    heads = LinearHeads(Standardiser.identity(width), weights)
    optimizer = sgd([heads], plan.settings, grid, size)
    for _ in range(2):
        inputs, targets = samples.batch(_rows(size), CPU)
        train_step(heads, optimizer, inputs, targets, 1.0)
    return heads


def _first(samples: Samples, count: int) -> Samples:
    return replace(samples, members=_rows(min(len(samples), count)))


def random_crops(plan: MemoryPlan) -> Phases:
    """See ``probes.image_level.random_crops``."""
    settings = plan.settings
    grids = create_heads(plan.on_cpu)
    _train_on_crops(plan, grids, sgd(grids, settings, settings.grid, settings.batch_size))
    yield "training"
    plan.embed("train", "val")
    yield "encoding"


def attentive(plan: MemoryPlan) -> Phases:
    """See ``probes.image_level.attentive``."""
    encode = token_encoder(plan.backbone, plan.settings.pool)
    heads = create_attentive_heads(plan.on_cpu)
    _train_on_crops(plan, heads, adamw(heads, plan.settings), encode)
    yield "training"
    held_out = math.ceil(plan.settings.holdout * plan.images("train"))
    with torch.no_grad():
        for images, part in ((held_out, heads), (plan.images("val"), heads[:1])):
            for tokens in plan.encode(images, encode):
                torch.stack(part.eval()(tokens))
    yield "scoring"


def _train_on_crops(
    plan: MemoryPlan,
    heads: nn.Module,
    optimizer: torch.optim.Optimizer,
    encode: Encode | None = None,
) -> None:
    size = plan.settings.batch_size
    for inputs in plan.encode(2 * size, encode, size):
        train_step(heads, optimizer, inputs, _rows(size), 1.0)


def knn(plan: MemoryPlan) -> Phases:
    """See ``probes.image_level.knn``."""
    width = plan.embed("train", "val")
    yield "encoding"
    settings = plan.settings
    train, val = (
        normalize(plan.resident(plan.images(split), width), dim=1) for split in ("train", "val")
    )
    if len(settings.neighbours) > 1:
        count = math.ceil(settings.holdout * len(train))
        held_out, memory = train[_rows(count)], train[_rows(len(train) - count)]
        _vote(plan, held_out, memory)
        del held_out, memory
    _vote(plan, val, train)
    yield "search"


def _rows(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.int64)


def _vote(plan: MemoryPlan, queries: Tensor, memory: Tensor) -> None:
    part = queries[:4096]
    similar, _ = nearest(part, memory, max(plan.settings.neighbours), prepare=torch.clone)
    weights = similar.double().exp()
    ballot = torch.zeros(len(part), plan.classes, dtype=torch.float64)
    ballot.scatter_add_(1, torch.empty(weights.shape, dtype=torch.int64), weights)


def few_shot(plan: MemoryPlan) -> Phases:
    """See ``probes.image_level.few_shot``."""
    width = plan.embed("train", "val")
    yield "encoding"
    targets = Counter(sample.target for sample in plan.context.data.samples["train"])
    shots = sum(min(count, plan.settings.shots) for count in targets.values())
    fits = LeastSquares(torch.empty(shots, width), _rows(shots), plan.classes)
    if len(plan.settings.l2) > 1:
        fits.leave_one_out(1.0)
    yield "fit"
    fits.scores(torch.empty(min(4096, plan.images("val")), width), 1.0)
    yield "scoring"


def with_texts(plan: MemoryPlan) -> Phases:
    """Of zero-shot classification, association and retrieval: they compare on the CPU."""
    plan.embed_texts(_count_texts(plan))
    yield "encoding texts"
    plan.embed("val")
    yield "encoding"


zero_shot = association = retrieval = with_texts


def _count_texts(plan: MemoryPlan) -> int:
    samples, kind = plan.context.data.samples["val"], plan.probe.kind
    if kind == "classification":
        _, templates = templates_for(plan.settings.templates, plan.context.data.spec)
        return plan.classes * len(templates)
    if kind == "association":
        return len({number for sample in samples for number, *_ in sample.target})
    return sum(len(sample.target) for sample in samples)


def correspondence(plan: MemoryPlan) -> Phases:
    """See ``probes.image_level.correspondence``."""
    settings = plan.settings
    side = square_side(settings, plan.backbone)
    plan.context = replace(plan.context, settings=replace(settings, size=side))
    samples = plan.context.data.samples["val"]
    images = max(Counter(folder_of((each.image, {})) for each in samples).values())

    def encode(pixels: Tensor) -> Tensor:
        return plan.backbone(pixels)[settings.layer]

    with torch.inference_mode():
        (single,) = plan.encode(1, encode)
        maps = torch.empty(images, *single.shape[1:], dtype=torch.float16)  # of a category
        for batch in plan.encode(images, encode):
            batch.half()
    yield "encoding"
    del maps
