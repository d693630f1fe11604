"""``attentive`` classification: an attention pool with one learned query, and a linear classifier.

Backbones without a trained class token are evaluated this way (V-JEPA, CAPI, AIM). The pool over
the frozen tokens is SigLIP's, timm's ``AttentionPoolLatent``, or CAPI's. One head for each learning
rate and weight decay, all trained by AdamW on one frozen pass over random crops of train; the one
that is best on a held-out part of train is scored. Tokens of a whole training set would fill a
disk: none are cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from backbones.backbone import Backbone
from cliptex_common.errors import report_malformed
from cliptex_common.files import derive_seed
from probes.base import Context, Head, TaskResult
from probes.image_level.classification import score, targets, top1
from probes.image_level.encode import Encode, ImageViews, autocast, encoding_of, input_size
from probes.image_level.linear import pair_name, train_heads
from probes.image_level.settings import AttentiveSettings
from probes.select import Candidate, log_scores, select_candidate


class QueryPool(nn.Module):
    """One learned query attends to tokens (N, L, C) → (N, C), as in CAPI's ``eval_classification``.

    Keys and values are one linear layer; the result is not projected.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.empty(channels))
        self.key_value = nn.Linear(channels, 2 * channels)
        for weight in (self.query, self.key_value.weight):
            nn.init.trunc_normal_(weight, std=0.02)
        nn.init.zeros_(self.key_value.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        heads = self.key_value(tokens).unflatten(2, (2, self.num_heads, -1))
        key, value = heads.permute(2, 0, 3, 1, 4)
        query = self.query.view(1, self.num_heads, 1, -1).expand(len(tokens), -1, -1, -1)
        return F.scaled_dot_product_attention(query, key, value).flatten(1)


def create_head(pool: str, channels: int, classes: int) -> nn.Module:
    """An untrained head: tokens (N, L, channels) → logits (N, classes)."""
    num_heads = next(
        number for number in (channels // 64, 8, 4, 2, 1) if number and channels % number == 0
    )
    if pool == "latent":
        latent = AttentionPoolLatent(channels, num_heads=num_heads)
        classifier = nn.Linear(channels, classes)
        return nn.Sequential(nn.LayerNorm(channels), latent, classifier)
    query, classifier = QueryPool(channels, num_heads), nn.Linear(channels, classes)
    nn.init.trunc_normal_(classifier.weight, std=0.02)
    nn.init.zeros_(classifier.bias)
    return nn.Sequential(query, classifier)


def stored_head(head: Head) -> nn.Module:
    """The module of a head that a run has stored."""
    metadata = head.metadata
    with report_malformed("the stored head is damaged", "name that of a finished run"):
        module = create_head(metadata["pool"], metadata["channels"], len(metadata["classes"]))
    head.load_into(module)
    return module


def token_encoder(backbone: Backbone, pool: str) -> Encode:
    """Normalised images → patch tokens of the last block, (N, L, C); for the ``latent`` pool the
    class token comes first."""

    def encode(images: Tensor) -> Tensor:
        token, patches = backbone.encode_tokens(images, 1)[0]
        return patches if pool == "query" else torch.cat([token[:, None], patches], dim=1)

    return encode


class AttentiveHeads(nn.ModuleList):
    """A head for each learning rate: tokens (N, L, C) → logits (N, classes) of each."""

    def forward(self, tokens: Tensor) -> list[Tensor]:
        return [head(tokens) for head in self]


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    settings: AttentiveSettings = context.settings
    data = context.data
    val = [data.root / sample.image for sample in data.samples["val"]]
    if context.head is not None:
        heads = AttentiveHeads([stored_head(context.head)]).to(context.device)
        (logits,) = predict(context, heads, val)
        return score(context, logits)
    labels = targets(context, "train")
    train = [data.root / sample.image for sample in data.samples["train"]]
    with context.cost.phase("train"):
        heads = create_heads(context).to(context.device)
        encode = token_encoder(context.backbone, settings.pool)
        optimizer = adamw(heads, settings)
        advice = "this probe always chooses: add images, or use linear with one learning rate"
        _, held_out = train_heads(context, heads, optimizer, encode, advice)
    candidates = []
    logits_of_heads = predict(context, heads, [train[index] for index in held_out])
    several_decays = len(settings.weight_decays) > 1
    for head, (rate, decay), logits in zip(heads, settings.grid, logits_of_heads, strict=True):
        loss = F.cross_entropy(logits, labels[held_out]).item()
        accuracy = top1(logits, labels[held_out])
        name = pair_name((rate, decay if several_decays else 0.0))
        candidates.append(Candidate(head, name, accuracy, loss, rate))
    log_scores(context.log, "top1", candidates, 0)
    best, reason = select_candidate(candidates, "top1", len(held_out))
    (logits,) = predict(context, AttentiveHeads([best.value]), val)
    tensors: dict[str, Tensor] = best.value.state_dict()
    encoding = asdict(settings.encoding(context.device.type))
    width = best.value[-1].in_features  # type: ignore[index]
    stored = Head.of(context, tensors, encoding=encoding, pool=settings.pool, channels=width)
    return score(context, logits, [f"learning rate {best.coordinate:g}: {reason}"], stored)


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
    encode = token_encoder(context.backbone, context.settings.pool)
    views = ImageViews(context, context.backbone, paths, encoding_of(context), encode=encode)
    context.progress.start("classifying images", len(paths))
    batches = []
    for tokens in views.tensors():
        batches.append(torch.stack(heads.eval()(tokens)).cpu())
        context.progress.advance(len(tokens))
    return list(torch.cat(batches, dim=1))
