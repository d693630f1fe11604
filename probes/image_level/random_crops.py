"""Linear heads on the tokens of a frozen backbone, all of them trained at once on one pass over
fresh random crops.

DINOv2's linear classification of ImageNet (Oquab et al. 2024; ``dinov2/eval/linear.py`` of
facebookresearch/dinov2): heads on the class tokens of the last n blocks, without and with the mean
of the last patch tokens, one for each learning rate; ``RandomResizedCrop`` and a flip, SGD with
momentum, a cosine to zero, no weight decay. Weights start from N(0, 0.01²).

It chooses the best head on the validation set; here a part of train that no head has seen decides,
so that ``val`` is looked at once. The head that wins is not trained again on that part: it would
cost another pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import (
    Compose,
    InterpolationMode,
    PILToTensor,
    RandomHorizontalFlip,
    RandomResizedCrop,
)

from backbones.base import DataConfig
from common.errors import NonFiniteLoss
from common.files import atomic_write, derive_seed
from probes.base import Context, TaskResult
from probes.features.cost import EncodeRun
from probes.image_level.classification import (
    Pair,
    at_the_edge,
    best_of,
    grid_of,
    held_out_scores,
    held_out_split,
    name_of,
    score,
    targets,
)
from probes.image_level.embeddings import encode_split
from probes.image_level.encode import Images, autocast, encoder, fitting, normalised
from probes.image_level.linear import Grid, Linear, Samples, Standardiser, cosine, linear_flops
from probes.image_level.settings import LinearSettings
from probes.predictor import linear_head

SAVE_EVERY = 300.0  # seconds of training that a killed process loses at most


class RandomCrops(Images):
    """Item k is the k-th random crop ever drawn: of the images in one shuffled order after the
    other, (3, H, W) uint8.

    Order and crops follow from the seed and k alone, whatever loads them and wherever training goes
    on.
    """

    def __init__(
        self, paths: Sequence[Path], size: tuple[int, int], data: DataConfig, seed: int
    ) -> None:
        super().__init__(paths, size, data)
        self.seed = seed
        self.transform = Compose(
            [
                RandomResizedCrop(size, interpolation=InterpolationMode.BICUBIC),
                RandomHorizontalFlip(),
                PILToTensor(),
            ]
        )
        self._order: tuple[int, list[int]] = (-1, [])

    def index(self, draw: int) -> int:
        """Which image the ``draw``-th crop is of."""
        epoch, place = divmod(draw, len(self.paths))
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(derive_seed("order", self.seed, epoch))
            self._order = epoch, torch.randperm(len(self.paths), generator=generator).tolist()
        return self._order[1][place]

    def __getitem__(self, draw: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("crop", self.seed, draw))
            return super().__getitem__(draw)

    def path(self, draw: int) -> str:
        return self.paths[self.index(draw)]


@dataclass
class Kind:
    """The heads that read one part of the tokens: ``columns`` of what ``encoder`` gives."""

    name: str
    columns: slice
    model: Linear
    training: Grid


def run(context: Context) -> TaskResult:
    """See ``probes.image_level.probe``."""
    settings: LinearSettings = context.settings
    grid = grid_of(settings)
    classes, encoding, started = (
        len(context.data.classes),
        EncodeRun.of(context),
        time.perf_counter(),
    )
    labels = targets(context, "train")
    kept, held = held_out_split(labels, settings, context.seed)
    paths = [context.data.root / sample.image for sample in context.data.samples["train"]]
    kinds = start(context, grid, classes)
    with encoding.cost.timed():
        flops = train(context, kinds, [paths[index] for index in kept], labels[kept], encoding)
    trained = time.perf_counter()

    features = encode_split(context, "train", encoding, held)
    scores = [
        pair
        for kind in kinds
        for pair in held_out_scores(
            kind.model, Samples(features[:, kind.columns], labels[held], classes), context.device
        )
    ]
    names = [f"{kind.name}_{name_of(pair)}" for kind in kinds for pair in grid]
    found = {f"select/top1/{name}": top1 for name, (top1, _) in zip(names, scores, strict=True)}
    context.log.log_metrics(found, iterations(context, len(kept)))
    best = best_of(scores)
    kind, place = kinds[best // len(grid)], best % len(grid)
    val = encode_split(context, "val", encoding)[:, kind.columns]
    logits = [kind.model.logits(part.to(context.device))[place].cpu() for part in val.split(1024)]
    result = score(context, torch.cat(logits))
    result.cost = encoding.cost.added_to(
        {
            "train_seconds": trained - started,
            "eval_seconds": time.perf_counter() - trained,
            "train_flops": flops,
            "eval_flops": linear_flops(val.shape[1], classes, 0, len(val)),
        }
    )
    result.head = linear_head(
        kind.model, place, settings.encoding(context.device.type), kind.columns, context
    )
    result.notes = [
        f"{names[best]}: best of {len(names)} heads on {len(held)} held-out training images (top1"
        f" {scores[best][0]:.1f})" + at_the_edge(grid[place][0], settings.learning_rates),
        "DINOv2 itself chooses the head on val",
    ]
    return result


def iterations(context: Context, images: int) -> int:
    """Of the whole training."""
    settings: LinearSettings = context.settings
    return settings.epochs * (settings.epoch_length or math.ceil(images / settings.batch_size))


def start(context: Context, grid: Sequence[Pair], classes: int) -> list[Kind]:
    """The heads before training, each from a seed of its own, so that it is the same whoever else
    is trained."""
    settings: LinearSettings = context.settings
    how, device = settings.encoding(context.device.type), context.device
    image = torch.zeros(1, 3, *fitting(how.size, context.backbone), device=device)
    with torch.inference_mode():
        tokens = context.backbone.encode_tokens(image, how.blocks)
    widths = [token.shape[1] for token, _ in tokens]
    kinds = []
    for blocks, pooled in product(settings.blocks, settings.average_pool):
        columns = slice(
            sum(widths[: how.blocks - blocks]), sum(widths) + (widths[-1] if pooled else 0)
        )
        width, name = (
            columns.stop - columns.start,
            f"blocks_{blocks}" + ("_avgpool" if pooled else ""),
        )
        weight = torch.empty(width, len(grid), classes)
        for place, pair in enumerate(grid):
            seed = torch.Generator().manual_seed(
                derive_seed("head", context.seed, name, *map(repr, pair))
            )
            weight[:, place] = torch.empty(width, classes).normal_(0, 0.01, generator=seed)
        model = Linear(
            Standardiser.identity(width),
            weight.to(device),
            torch.zeros(len(grid), classes, device=device),
        )
        kinds.append(
            Kind(name, columns, model, Grid(model, grid, settings.batch_size, settings.momentum))
        )
    return kinds


def train(
    context: Context, kinds: Sequence[Kind], paths: Sequence[Path], labels: Tensor, run: EncodeRun
) -> float:
    """Train all heads, from where a killed process has left them; returns the operations of the
    heads alone.

    Raises:
        NonFiniteLoss: every head diverged; one that does so alone is left to lose.
    """
    settings: LinearSettings = context.settings
    backbone, device, length = context.backbone, context.device, settings.batch_size
    how = settings.encoding(device.type)
    crops = RandomCrops(paths, fitting(how.size, backbone), backbone.data, context.seed)
    file, whole = context.work_dir / "heads.pt", iterations(context, len(paths))
    epoch = whole // settings.epochs
    state = load(file, kinds, device)
    encode = encoder(backbone, how)
    context.progress.start(
        f"training {sum(len(kind.training.rates) for kind in kinds)} heads on random crops", whole
    )
    context.progress.advance(state["iteration"])
    batches = [range(i * length, (i + 1) * length) for i in range(state["iteration"], whole)]
    saved = time.monotonic()
    for draws, pixels in zip(batches, normalised(crops, batches, backbone, run), strict=True):
        with torch.no_grad(), autocast(device, how.precision):
            parts = [run.cost.run(encode, part).float() for part in pixels.split(how.batch_size)]
        tokens = torch.cat(parts)
        truth = labels[[crops.index(draw) for draw in draws]].to(device)
        for number, kind in enumerate(kinds):
            losses = kind.training.step(
                tokens[:, kind.columns], truth, cosine(state["iteration"] / whole)
            )
            state["losses"][number] += losses / length
        state["iteration"] += 1
        context.progress.advance()
        if done := state["iteration"] % epoch == 0:
            mean = torch.cat(state["losses"]) / epoch
            if not bool(mean.isfinite().any()):
                raise NonFiniteLoss(
                    "linear: the loss of every head is not finite at iteration"
                    f" {state['iteration']}"
                )
            context.log.log_metrics(
                {"train/loss": mean.nan_to_num(torch.inf).min().item()}, state["iteration"]
            )
            state["losses"] = [torch.zeros_like(each) for each in state["losses"]]
        if done or time.monotonic() - saved > SAVE_EVERY:
            with atomic_write(file) as temporary:
                torch.save(state, temporary)
            saved = time.monotonic()
    shapes = [kind.model.weight.shape for kind in kinds]
    return sum(
        grid * linear_flops(width, classes, length * whole) for width, grid, classes in shapes
    )


def load(file: Path, kinds: Sequence[Kind], device: torch.device) -> dict[str, Any]:
    """What training goes on from: ``iteration`` (those done), ``losses`` of the epoch so far, and
    the heads' tensors, which are those of ``kinds``."""
    heads = [[kind.model.weight, kind.model.bias, *kind.training.momenta] for kind in kinds]
    losses = [torch.zeros(len(kind.training.rates), device=device) for kind in kinds]
    if not file.is_file():
        return {"iteration": 0, "losses": losses, "heads": heads}
    left = torch.load(file, map_location=device, weights_only=True)
    for own, others in zip(heads, left["heads"], strict=True):
        for tensor, other in zip(own, others, strict=True):
            tensor.copy_(other)
    return {**left, "heads": heads}
