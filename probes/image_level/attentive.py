"""``attentive`` classification: an attention pool with one learned query, and a linear classifier.

Backbones without a trained class token are evaluated this way (V-JEPA, CAPI, AIM). The pool over
the frozen patch tokens is SigLIP's, timm's ``AttentionPoolLatent``. One head for each learning
rate, all trained by AdamW on one frozen pass over random crops of train; the one that is best on a
held-out part of train is scored. Tokens of a whole training set would fill a disk: none are cached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from backbones.base import Backbone
from common.files import derive_seed
from probes.base import Context, TaskResult
from probes.features.cost import EncodeRun
from probes.image_level.classification import score, targets, top1
from probes.image_level.crop_training import train_on_crops
from probes.image_level.encode import autocast, encode_paths, input_size
from probes.image_level.settings import AttentiveSettings
from probes.selection import Candidate, log_scores, select, stratified_split


class AttentiveHeads(nn.ModuleList):
    """A head for each learning rate: tokens (N, L, C) → logits (N, classes) of each."""

    def forward(self, tokens: Tensor) -> list[Tensor]:
        return [head(tokens) for head in self]


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    settings: AttentiveSettings = context.settings
    labels, root = targets(context, "train"), context.data.root
    training, held_out = stratified_split(labels, settings.holdout, context.seed, "holdout=0.5")
    train, val = (
        [root / sample.image for sample in context.data.samples[split]]
        for split in ("train", "val")
    )
    rates = settings.learning_rates
    with context.cost.phase("train"):
        heads = create_heads(context)
        groups = [
            {"params": head.parameters(), "lr": rate, "initial_lr": rate}
            for head, rate in zip(heads, rates, strict=True)
        ]
        train_on_crops(
            context,
            heads,
            torch.optim.AdamW(groups, weight_decay=settings.weight_decay),
            token_encoder(context.backbone),
            ([train[index] for index in training], labels[training]),
            math.ceil(len(training) / settings.batch_size),
        )
    candidates = []
    logits_of_heads = predict(context, heads, [train[index] for index in held_out])
    for head, rate, logits in zip(heads, rates, logits_of_heads, strict=True):
        loss = F.cross_entropy(logits, labels[held_out]).item()
        accuracy = top1(logits, labels[held_out])
        candidates.append(Candidate(head, f"lr_{rate:g}", accuracy, loss, rate))
    log_scores(context.log, "top1", candidates, 0)
    best, reason = select(candidates, "top1", len(held_out))
    (logits,) = predict(context, AttentiveHeads([best.value]), val)
    result = score(context, logits)
    result.notes = [f"learning rate {best.coordinate:g}: {reason}"]
    return result


def create_heads(context: Context) -> AttentiveHeads:
    """Untrained heads, all from the same initial weights."""
    size = input_size(context.settings.encoding(context.device.type).size, context.backbone)
    with torch.no_grad(), autocast(context.device, context.settings.precision):
        tokens = token_encoder(context.backbone)(torch.zeros(1, 3, *size, device=context.device))
    channels = tokens.shape[2]
    num_heads = next(
        number for number in (channels // 64, 8, 4, 2, 1) if number and channels % number == 0
    )
    heads = AttentiveHeads()
    for _ in context.settings.learning_rates:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("attentive", context.seed))
            pool = AttentionPoolLatent(channels, num_heads=num_heads)
            classifier = nn.Linear(channels, len(context.data.classes))
            heads.append(nn.Sequential(nn.LayerNorm(channels), pool, classifier))
    return heads.to(context.device)


def token_encoder(backbone: Backbone) -> Callable[[Tensor], Tensor]:
    """Normalised images → class token and patch tokens of the last block, (N, 1 + patches, C)."""

    def encode(images: Tensor) -> Tensor:
        token, patches = backbone.encode_tokens(images, 1)[0]
        return torch.cat([token[:, None], patches], dim=1)

    return encode


@torch.no_grad()
def predict(context: Context, heads: AttentiveHeads, paths: Sequence[Path]) -> list[Tensor]:
    """(N, classes) float32 logits of each head, on the CPU."""
    backbone, encoding = context.backbone, context.settings.encoding(context.device.type)
    encode, run = token_encoder(backbone), EncodeRun.of(context)
    batches = [
        torch.stack(heads.eval()(tokens)).cpu()
        for tokens in encode_paths(paths, backbone, encode, run, encoding)
    ]
    return list(torch.cat(batches, dim=1))
