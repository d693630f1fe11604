"""AnyUp's network in the words of its paper (Wimmer et al. 2025), with the names of the weights of
its source; and its golden record, ``anyup.json``.

    python -m tests.probes.upsamplers.anyup_module CHECKOUT

computes the record with the source's own code, a checkout of github.com/wimmerth/anyup.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RECORD = Path(__file__).with_name("anyup.json")
WIDTH, HEADS, WINDOW = 128, 4, 0.1


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [
            (nn.GroupNorm(8, WIDTH), nn.SiLU(), nn.Conv2d(WIDTH, WIDTH, 1, bias=False))
            for _ in range(2)
        ]
        self.block = nn.Sequential(*layers[0], *layers[1])

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.block(maps)


class Unification(nn.Module):
    """Each channel of the features is compared with one basis of filters."""

    def __init__(self) -> None:
        super().__init__()
        self.basis = nn.Parameter(torch.empty(WIDTH, 1, 5, 5))

    def forward(self, features: Tensor) -> Tensor:
        each = features.flatten(0, 1)[:, None]
        inside = F.conv2d(torch.ones_like(each[:1]), torch.ones_like(self.basis[:1]), padding=2)
        responses = F.conv2d(each, self.basis, padding=2) / inside
        # (N, channels, filters, h, w), which the source reads as (N, filters, channels, h, w)
        read = responses.reshape(len(features), WIDTH, -1, *features.shape[2:])
        return read.softmax(dim=1).mean(dim=2)


class Rotary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.freqs = nn.Parameter(torch.empty(2, WIDTH))

    def forward(self, maps: Tensor) -> Tensor:
        axes = [torch.linspace(0, 1, side).to(maps) for side in maps.shape[2:]]
        angle = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1) @ self.freqs
        values = maps.movedim(1, -1)
        first, second = values.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
        return (values * angle.cos() + turned * angle.sin()).movedim(-1, 1)


def compute_attention_mask(size: Any, low: Any) -> Tensor:
    """Cells that a pixel does not see, (pixels, cells)."""
    axes = []
    for new, old in zip(size, low, strict=True):
        position = ((torch.arange(new) + 0.5) / new)[:, None]
        start = ((position - WINDOW).clamp(0, 1) * old).floor()
        end = ((position + WINDOW).clamp(0, 1) * old).ceil()
        axes.append((torch.arange(old) >= start) & (torch.arange(old) < end))
    return ~(axes[0][:, None, :, None] & axes[1][None, :, None]).flatten(2).flatten(0, 1)


compute_attention_mask.cache_clear = lambda: None  # type: ignore[attr-defined]


class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_q, self.norm_k = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cross_attn = CrossAttention()
        self.conv2d = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, **_: Any) -> Tensor:
        size, own = queries.shape[2:], self.cross_attn
        mask = compute_attention_mask(size, keys.shape[2:])
        q, k, v = (each.flatten(2).mT for each in (self.conv2d(queries), keys, values))
        _, weights = own.attention(own.norm_q(q), own.norm_k(k), k, attn_mask=mask.to(q.device))
        return (weights @ v).mT.unflatten(2, size)


def encoder(channels: int, kernel: int) -> nn.Sequential:
    options: Any = {"padding": kernel // 2, "padding_mode": "reflect", "bias": False}
    return nn.Sequential(nn.Conv2d(channels, WIDTH, kernel, **options), Block(), Block())


class AnyUp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_encoder, self.rope = encoder(3, 1), Rotary()
        self.query_encoder, self.key_encoder = encoder(WIDTH, 1), encoder(WIDTH, 1)
        self.key_features_encoder = nn.Sequential(Unification(), Block(), Block())
        self.aggregation, self.cross_decode = encoder(2 * WIDTH, 3), Decoder()

    def forward(self, image: Tensor, features: Tensor, output_size: Any) -> Any:
        encoded = self.rope(self.image_encoder(image))
        queries = F.adaptive_avg_pool2d(self.query_encoder(encoded), output_size)
        keys = F.adaptive_avg_pool2d(self.key_encoder(encoded), features.shape[2:])
        own = self.key_features_encoder(F.normalize(features, dim=1))
        return self.cross_decode(queries, self.aggregation(torch.cat([keys, own], 1)), features)


def seeded(model: nn.Module) -> nn.Module:
    """``model`` with random weights that follow from their names."""
    for name, weight in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        weight.data = 0.2 * torch.randn(weight.shape, generator=generator)
    return model.eval().requires_grad_(False)


def inputs() -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Images with ImageNet's mean and deviation, a map of them, and the size of the result."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 24, 32, generator=generator)
    return images, torch.randn(2, 5, 6, 8, generator=generator), (12, 16)


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    from anyup.model import AnyUp as Source  # type: ignore[import-not-found]

    images, features, size = inputs()
    upsampled = seeded(Source())(images, features, size)
    values = [float(f"{value:.7g}") for value in upsampled.flatten()[::31].tolist()]
    RECORD.write_text(json.dumps({"values": values}))
