"""``linear`` classification on random crops: linear heads on the tokens of a frozen backbone.

DINOv2's linear classification of ImageNet (Oquab et al. 2024; ``dinov2/eval/linear.py`` of
facebookresearch/dinov2): heads on the class tokens of the last n blocks, without and with the mean
of the last patch tokens, one for each learning rate; ``RandomResizedCrop`` and a flip, SGD with
momentum, a cosine to zero, no weight decay. Weights start from N(0, 0.01²).

DINOv2 chooses the best head on the validation set. Here a part of train decides that no head was
trained on, so that ``val`` is used once. The chosen head is not trained again on that part, which
would cost another pass.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor, nn

from common.files import derive_seed
from probes.base import Context, TaskResult
from probes.image_level.classification import score, targets
from probes.image_level.crop_training import train_on_crops
from probes.image_level.embeddings import encode_split
from probes.image_level.encode import encoder, input_size
from probes.image_level.linear import (
    LinearHeads,
    Pair,
    Samples,
    Standardiser,
    evaluate_grid,
    sgd_groups,
)
from probes.image_level.settings import LinearSettings
from probes.predictor import linear_head
from probes.selection import Candidate, log_scores, select, stratified_split


class TokenHeads(nn.ModuleList):
    """Several ``LinearHeads``, each on its own columns of the tokens."""

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """(N, D) → the logits (N, C) of each head."""
        return [logits for heads in self for logits in heads(tokens)]


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    settings: LinearSettings = context.settings
    device, labels = context.device, targets(context, "train")
    training, held_out = stratified_split(
        labels, settings.holdout, context.seed, "random_crops=false"
    )
    train = context.data.samples["train"]
    paths = [context.data.root / train[index].image for index in training]
    epoch_length = settings.epoch_length or math.ceil(len(paths) / settings.batch_size)
    grids = create_heads(context)
    groups = [
        group for heads in grids for group in sgd_groups(heads, settings.grid, settings.batch_size)
    ]
    with context.cost.phase("train"):
        train_on_crops(
            context,
            TokenHeads(grids),
            torch.optim.SGD(groups, momentum=settings.momentum),
            encoder(context.backbone, settings.encoding(device.type)),
            (paths, labels[training]),
            epoch_length,
        )
    features = encode_split(context, "train", held_out)
    samples = Samples(features, labels[held_out], len(context.data.classes))
    candidates: list[Candidate[Pair]] = []
    for heads in grids:
        candidates += evaluate_grid(heads, settings.grid, samples, device)
    log_scores(context.log, "top1", candidates, settings.epochs * epoch_length)
    best, reason = select(candidates, "top1", len(held_out))
    choice, number = divmod(candidates.index(best), len(settings.grid))
    val = encode_split(context, "val")
    with torch.no_grad():
        logits = [grids[choice](part.to(device))[number].cpu() for part in val.split(1024)]
    result = score(context, torch.cat(logits))
    result.head = linear_head(grids[choice], number, context)
    result.notes = [f"{best.name}: {reason}", "DINOv2 itself chooses the head on val"]
    return result


def create_heads(context: Context) -> list[LinearHeads]:
    """Untrained heads; the initial weights of each depend on the seed and its own name alone."""
    settings: LinearSettings = context.settings
    encoding, device = settings.encoding(context.device.type), context.device
    size = input_size(encoding.size, context.backbone)
    with torch.inference_mode():
        tokens = context.backbone.encode_tokens(
            torch.zeros(1, 3, *size, device=device), encoding.blocks
        )
    widths = [token.shape[1] for token, _ in tokens]
    grids = []
    for blocks, pooled in product(settings.blocks, settings.average_pool):
        name = f"blocks_{blocks}" + ("_avgpool" if pooled else "")
        start = sum(widths[: encoding.blocks - blocks])
        columns = slice(start, sum(widths) + (widths[-1] if pooled else 0))
        width, weights = columns.stop - start, []
        for pair in settings.grid:
            seed = derive_seed("head", context.seed, name, *map(repr, pair))
            generator = torch.Generator().manual_seed(seed)
            weight = torch.empty(width, len(context.data.classes))
            weights.append(weight.normal_(0, 0.01, generator=generator))
        identity = Standardiser.identity(width).to(device)
        grids.append(LinearHeads(identity, weights, columns, f"{name}_").to(device))
    return grids
