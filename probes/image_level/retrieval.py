"""``retrieval``: captions by image and images by caption, by cosine; recall at 1, 5 and 10.

An image is right if any of its captions is among the first k (the field's reading for Flickr30k and COCO). Ties count
against the query, so that a backbone which gives every image the same embedding scores nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from probes.base import Context, TaskResult
from probes.features.cost import EncodeCost
from probes.image_level.classification import encode_split
from probes.image_level.encode import encode_texts
from probes.image_level.flops import linear_flops, text_flops
from probes.image_level.settings import RECALL_AT as AT
from probes.image_level.settings import RetrievalSettings

CHUNK = 4096  # rows and columns of the similarity matrix that are in memory at once (128 MiB); never changes a rank
TIE = 1e-9  # cosines nearer than this are equal: far above the rounding of float64, far below that of the embeddings


def run(context: Context) -> TaskResult:
    """See ``probes.image_level.probe``."""
    settings: RetrievalSettings = context.settings
    samples = context.data.samples["val"]
    texts = [settings.template.replace("{}", caption) for sample in samples for caption in sample.target]
    owner = torch.tensor([index for index, sample in enumerate(samples) for _ in sample.target])
    started, cost = time.perf_counter(), EncodeCost()
    images = encode_split(context, "val", settings, cost)
    encoded = time.perf_counter()
    captions = encode_texts(
        context.backbone, texts, context.device, precision=settings.precision, progress=context.progress
    )
    scored = time.perf_counter()
    i2t, t2i = retrieval_ranks(images, captions, owner)
    return TaskResult(
        metrics={f"i2t_R@{k}": recall(i2t, k) for k in AT} | {f"t2i_R@{k}": recall(t2i, k) for k in AT},
        per_image={
            "image": np.array([sample.image for sample in samples]),
            "i2t_rank": i2t.numpy(),
            "t2i_rank": by_image(t2i, owner, len(samples)),
        },
        cost=cost.added_to(
            {
                "text_seconds": scored - encoded,
                "eval_seconds": time.perf_counter() - started,
                "text_flops": text_flops(context, settings, texts),
                "eval_flops": linear_flops(images.shape[1], len(texts), 0, len(samples)),
            }
        ),
        notes=[f"{len(samples)} images, {len(texts)} captions"],
    )


def retrieval_ranks(images: Tensor, captions: Tensor, owner: Tensor, *, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """Rank of the right answer for every query, 0 for the first.

    Args:
        images: (N, D) and captions: (M, D) embeddings of any length; every image has at least one caption.
        owner: (M,) index of the image that each caption describes.
        chunk: at most this many rows and columns of similarities are in memory; never changes a rank.
    Returns:
        i2t (N,): how many captions of other images are at least as near as the nearest own one.
        t2i (M,): how many other images are at least as near as the own one.
    """
    # float64, so that the order of summation, which depends on the chunk, stays far below what counts as a tie
    images, captions = normalize(images.double(), dim=1), normalize(captions.double(), dim=1)
    own = torch.cat(
        [(c * images[o]).sum(dim=1) for c, o in zip(captions.split(chunk), owner.split(chunk), strict=True)]
    )
    nearest_own = torch.full((len(images),), -torch.inf, dtype=torch.float64).scatter_reduce(0, owner, own, "amax")
    i2t = torch.zeros(len(images), dtype=torch.int64)
    t2i = torch.zeros(len(captions), dtype=torch.int64)
    for top in range(0, len(images), chunk):
        rows = slice(top, top + chunk)
        numbers = torch.arange(len(images))[rows, None]
        for left in range(0, len(captions), chunk):
            columns = slice(left, left + chunk)
            similarity = images[rows] @ captions[columns].T
            other = numbers != owner[None, columns]
            i2t[rows] += (other & (similarity >= nearest_own[rows, None] - TIE)).sum(dim=1)
            t2i[columns] += (other & (similarity >= own[None, columns] - TIE)).sum(dim=0)
    return i2t, t2i


def recall(ranks: Tensor, k: int) -> float:
    """Share of queries whose right answer is among the first ``k``, in percent."""
    return 100 * (ranks < k).double().mean().item()


def by_image(ranks: Tensor, owner: Tensor, images: int) -> np.ndarray:
    """(M,) caption ranks → (images, captions of an image), -1 where an image has fewer captions than another."""
    groups: Sequence[list[int]] = [[] for _ in range(images)]
    for rank, image in zip(ranks.tolist(), owner.tolist(), strict=True):
        groups[image].append(rank)
    table = np.full((images, max(map(len, groups))), -1, dtype=np.int64)
    for row, group in zip(table, groups, strict=True):
        row[: len(group)] = group
    return table
