"""Retrieval among held-out pairs: whether the contrast is still learned beside the tasks."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1024


def recall(image: Tensor, text: Tensor, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """Recall@k in per cent, both ways (``i2t_R@k``, ``t2i_R@k``).

    Ties count against the matching text, so constant embeddings score 0, as NaN does.

    Args:
        image, text: (N, d) unit-length embeddings; the i-th image belongs to the i-th text.
    """
    metrics: dict[str, float] = {}
    for name, queries, targets in (("i2t", image, text), ("t2i", text, image)):
        ranks = []
        for start in range(0, len(queries), CHUNK):
            scores = queries[start : start + CHUNK] @ targets.T
            own = scores.diagonal(start)[:, None]
            ranks.append((~(scores < own)).sum(1) - 1)
        rank = torch.cat(ranks)
        metrics |= {
            f"{name}_R@{k}": 100.0 * (rank < k).float().mean().item()
            for k in ks
            if k <= len(targets)
        }
    return metrics
