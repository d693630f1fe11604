"""Heads of attentive classification: an attention pool with one learned query, and a linear
classifier."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from backbones.base import Backbone


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


def token_encoder(backbone: Backbone, pool: str) -> Callable[[Tensor], Tensor]:
    """Normalised images → patch tokens of the last block, (N, L, C); for the ``latent`` pool the
    class token comes first."""

    def encode(images: Tensor) -> Tensor:
        token, patches = backbone.encode_tokens(images, 1)[0]
        return patches if pool == "query" else torch.cat([token[:, None], patches], dim=1)

    return encode
