"""``attentive`` classification: an attention pool with one learned query, and a linear classifier.

Backbones without a trained class token are evaluated this way (V-JEPA, CAPI, AIM). The pool over
the frozen tokens is SigLIP's, timm's ``AttentionPoolLatent``, or CAPI's. One head for each learning
rate and weight decay, all trained by AdamW on one frozen pass over random crops of train; the one
that is best on a held-out part of train is scored. Tokens of a whole training set would fill a
disk: none are cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.files import derive_seed
from probes.base import Context, TaskResult
from probes.image_level.attention_pool import create_head, token_encoder
from probes.image_level.classification import score, targets, top1
from probes.image_level.encode import autocast, encode_paths, input_size
from probes.image_level.linear import pair_name
from probes.image_level.random_crops import train_on_crops
from probes.image_level.settings import AttentiveSettings
from probes.predictor import attentive_head
from probes.selection import Candidate, log_scores, select, stratified_split


class AttentiveHeads(nn.ModuleList):
    """A head for each learning rate: tokens (N, L, C) → logits (N, classes) of each."""

    def forward(self, tokens: Tensor) -> list[Tensor]:
        return [head(tokens) for head in self]


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    settings: AttentiveSettings = context.settings
    data, labels = context.data, targets(context, "train")
    training, held_out = stratified_split(labels, settings.holdout, context.seed, "holdout=0.5")
    train, val = (
        [data.root / sample.image for sample in data.samples[split]] for split in ("train", "val")
    )
    with context.cost.phase("train"):
        heads = create_heads(context).to(context.device)
        train_on_crops(
            context,
            heads,
            adamw(heads, settings),
            token_encoder(context.backbone, settings.pool),
            training,
        )
    candidates = []
    logits_of_heads = predict(context, heads, [train[index] for index in held_out])
    several_decays = len(settings.weight_decays) > 1
    for head, (rate, decay), logits in zip(heads, settings.grid, logits_of_heads, strict=True):
        loss = F.cross_entropy(logits, labels[held_out]).item()
        accuracy = top1(logits, labels[held_out])
        name = pair_name((rate, decay if several_decays else 0.0))
        candidates.append(Candidate(head, name, accuracy, loss, rate))
    log_scores(context.log, "top1", candidates, 0)
    best, reason = select(candidates, "top1", len(held_out))
    (logits,) = predict(context, AttentiveHeads([best.value]), val)
    result = score(context, logits)
    result.head = attentive_head(best.value, context)
    result.notes = [f"learning rate {best.coordinate:g}: {reason}"]
    return result


def adamw(heads: AttentiveHeads, settings: AttentiveSettings) -> torch.optim.AdamW:
    """An optimizer in which each head has the rate and the decay of its pair."""
    groups = []
    for head, (rate, decay) in zip(heads, settings.grid, strict=True):
        for is_bias in (False, True):
            named = head.named_parameters()
            parameters = [each for name, each in named if name.endswith("bias") == is_bias]
            decays = settings.decay_biases or not is_bias
            rates = {"lr": rate, "initial_lr": rate, "weight_decay": decay if decays else 0.0}
            groups.append({"params": parameters, **rates})
    return torch.optim.AdamW(groups, betas=(0.9, settings.beta2), eps=settings.epsilon)


def create_heads(context: Context) -> AttentiveHeads:
    """Untrained heads, all from the same initial weights."""
    settings: AttentiveSettings = context.settings
    size = input_size(settings.encoding(context.device.type).size, context.backbone)
    encode = token_encoder(context.backbone, settings.pool)
    with torch.no_grad(), autocast(context.device, settings.precision):
        tokens = encode(torch.zeros(1, 3, *size, device=context.device))
    heads = AttentiveHeads()
    for _ in settings.grid:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("attentive", context.seed))
            heads.append(create_head(settings.pool, tokens.shape[2], len(context.data.classes)))
    return heads


@torch.no_grad()
def predict(context: Context, heads: AttentiveHeads, paths: Sequence[Path]) -> list[Tensor]:
    """(N, classes) float32 logits of each head, on the CPU."""
    backbone, encoding = context.backbone, context.settings.encoding(context.device.type)
    encode = token_encoder(backbone, context.settings.pool)
    batches = [
        torch.stack(heads.eval()(tokens)).cpu()
        for tokens in encode_paths(paths, backbone, encode, context, encoding)
    ]
    return list(torch.cat(batches, dim=1))
