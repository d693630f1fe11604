"""``retrieval``: captions by image and images by caption, by cosine; recall at 1, 5 and 10.

An image is right if any of its captions is among the first k (the field's reading for Flickr30k and
COCO). A caption that
stands under several images is right for each of them, and each of them for it: the text is the
same, so no model could tell them apart. Answers that are equally near share their places (the
expected rank over all orders): no order of equals decides, and a backbone which gives every image
the same embedding has the mean rank of chance, which is no hit.

What peers do: clip-benchmark (``zeroshot_retrieval.recall_at_k``) counts a caption as right for its
own image only and leaves ties to ``torch.topk``; open_clip (``get_clip_metrics``) likewise, by
``argsort``. Without captions that come twice and without ties the figures are theirs (tested).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import normalize

from probes.base import Context, TaskResult
from probes.features.cost import EncodeRun
from probes.image_level.embeddings import encode_split
from probes.image_level.encode import encode_texts, text_flops
from probes.image_level.linear import linear_flops
from probes.image_level.settings import RECALL_AT, RetrievalSettings

CELLS = 2**24  # of the similarity matrix that are in memory at once (128 MiB)
# cosines nearer than this are equal: far above the rounding of float64, far below that of the
# embeddings
TIE = 1e-9


def run(context: Context) -> TaskResult:
    """See ``probes.image_level.probe``."""
    settings: RetrievalSettings = context.settings
    samples = context.data.samples["val"]
    texts = [
        settings.template.replace("{}", caption) for sample in samples for caption in sample.target
    ]
    owner = torch.tensor([index for index, sample in enumerate(samples) for _ in sample.target])
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    started, encoding = time.perf_counter(), EncodeRun.of(context)
    images = encode_split(context, "val", encoding)
    encoded = time.perf_counter()
    captions = encode_texts(context.backbone, texts, encoding, settings.precision)
    scored = time.perf_counter()
    i2t, t2i = retrieval_ranks(
        images, captions, owner, torch.tensor([numbers[text] for text in texts])
    )
    per_image = {
        "image": np.array([sample.image for sample in samples]),
        "i2t_rank": i2t.numpy(),
        "t2i_rank": by_image(t2i, owner, len(samples)),
    }
    costs = encoding.cost.added_to(
        {
            "text_seconds": scored - encoded,
            "eval_seconds": time.perf_counter() - started,
            "text_flops": text_flops(context, texts),
            "eval_flops": linear_flops(images.shape[1], len(texts), 0, len(samples)),
        }
    )
    metrics = {
        f"{way}_R@{k}": recall(ranks, k)
        for way, ranks in (("i2t", i2t), ("t2i", t2i))
        for k in RECALL_AT
    }
    metrics["mean_R@1"] = (metrics["i2t_R@1"] + metrics["t2i_R@1"]) / 2
    notes = [f"{len(samples)} images, {len(texts)} captions ({len(numbers)} different)"]
    return TaskResult(metrics, per_image, cost=costs, notes=notes)


def retrieval_ranks(
    images: Tensor,
    captions: Tensor,
    owner: Tensor,
    text: Tensor | None = None,
    *,
    cells: int = CELLS,
) -> tuple[Tensor, Tensor]:
    """Rank of the first right answer for every query, 0 for the first; see ``first_right``.

    Args:
        images: (N, D) and captions: (M, D) embeddings of any length; every image has at least one
            caption.
        owner: (M,) index of the image that each caption describes.
        text: (M,) number of each caption's text, the same for the same text; None where no two are
            the same.
        cells: of the similarity matrix, which are in memory at once (but for a single query's);
            never changes a rank.
    Returns:
        i2t (N,) and t2i (M,), float64.
    """
    # float64, so that the order of summation, which depends on the cells, stays far below what
    # counts as a tie
    images, captions = normalize(images.double(), dim=1), normalize(captions.double(), dim=1)
    place, of_image = np.arange(len(captions)), owner.numpy()
    text_of, ones = place if text is None else text.numpy(), np.ones(len(captions))
    # (images, captions): how many captions of the image say the same
    right = csr_array((ones, (of_image, text_of))) @ csr_array((ones, (text_of, place)))
    return first_right(images, captions, right, cells), first_right(
        captions, images, right.T.tocsr(), cells
    )


def first_right(queries: Tensor, answers: Tensor, right: csr_array, cells: int) -> Tensor:
    """(queries,) float64: with ``a`` wrong answers that are nearer than the nearest right one, and
    ``t`` wrong and ``r`` right ones that are as near, ``a + t / (r + 1)``, the mean over all
    orders."""
    ranks = []
    for rows in torch.arange(len(queries)).split(max(1, cells // len(answers))):
        similarity, is_right = (
            queries[rows] @ answers.T,
            torch.from_numpy(right[rows.numpy()].toarray() > 0),
        )
        difference = similarity - similarity.masked_fill(~is_right, -torch.inf).amax(
            dim=1, keepdim=True
        )
        tied, nearer = (
            difference.abs() <= TIE,
            (difference > TIE).sum(dim=1),
        )  # no right one is nearer
        ranks.append(
            nearer + (tied & ~is_right).sum(dim=1).double() / ((tied & is_right).sum(dim=1) + 1)
        )
    return torch.cat(ranks)


def recall(ranks: Tensor, k: int) -> float:
    """Share of queries whose right answer is among the first ``k``, in percent."""
    return 100 * (ranks < k).double().mean().item()


def by_image(ranks: Tensor, owner: Tensor, images: int) -> np.ndarray:
    """(M,) caption ranks → (images, captions of an image), -1 where an image has fewer captions
    than another."""
    groups: Sequence[list[float]] = [[] for _ in range(images)]
    for rank, image in zip(ranks.tolist(), owner.tolist(), strict=True):
        groups[image].append(rank)
    table = np.full((images, max(map(len, groups))), -1.0)
    for row, group in zip(table, groups, strict=True):
        row[: len(group)] = group
    return table
