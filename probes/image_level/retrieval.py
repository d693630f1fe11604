"""``retrieval``: captions by image and images by caption, by cosine; recall at 1, 5 and 10.

An image is right if any of its captions is among the first k (the field's reading for Flickr30k and COCO). A caption that
stands under several images is right for each of them, and each of them for it: the text is the same, so no model could tell
them apart. Answers that are equally near share their places (the expected rank over all orders), so that a backbone which
gives every image the same embedding is at chance, neither below nor above.

What peers do: clip-benchmark (``zeroshot_retrieval.recall_at_k``) counts a caption as right for its own image only and
leaves ties to ``torch.topk``; open_clip (``get_clip_metrics``) likewise, by ``argsort``. Without captions that come twice
and without ties the figures are theirs (tested).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from probes.base import Context, TaskResult
from probes.features.cost import EncodeCost
from probes.image_level.embeddings import encode_split
from probes.image_level.encode import encode_texts, text_flops
from probes.image_level.linear import linear_flops
from probes.image_level.settings import RECALL_AT, RetrievalSettings

CHUNK = 4096  # rows and columns of the similarity matrix that are in memory at once (128 MiB); never changes a rank
TIE = 1e-9  # cosines nearer than this are equal: far above the rounding of float64, far below that of the embeddings


def run(context: Context) -> TaskResult:
    """See ``probes.image_level.probe``."""
    settings: RetrievalSettings = context.settings
    samples = context.data.samples["val"]
    texts = [settings.template.replace("{}", caption) for sample in samples for caption in sample.target]
    owner = torch.tensor([index for index, sample in enumerate(samples) for _ in sample.target])
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    started, cost = time.perf_counter(), EncodeCost()
    images = encode_split(context, "val", cost)
    encoded = time.perf_counter()
    captions = encode_texts(
        context.backbone, texts, context.device, precision=settings.precision, progress=context.progress
    )
    scored = time.perf_counter()
    i2t, t2i = retrieval_ranks(images, captions, owner, torch.tensor([numbers[text] for text in texts]))
    per_image = {
        "image": np.array([sample.image for sample in samples]),
        "i2t_rank": i2t.numpy(),
        "t2i_rank": by_image(t2i, owner, len(samples)),
    }
    costs = cost.added_to({
        "text_seconds": scored - encoded,
        "eval_seconds": time.perf_counter() - started,
        "text_flops": text_flops(context, texts),
        "eval_flops": linear_flops(images.shape[1], len(texts), 0, len(samples)),
    })  # fmt: skip
    metrics = {f"{way}_R@{k}": recall(ranks, k) for way, ranks in (("i2t", i2t), ("t2i", t2i)) for k in RECALL_AT}
    notes = [f"{len(samples)} images, {len(texts)} captions ({len(numbers)} different)"]
    return TaskResult(metrics, per_image, cost=costs, notes=notes)


def retrieval_ranks(
    images: Tensor, captions: Tensor, owner: Tensor, text: Tensor | None = None, *, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Rank of the first right answer for every query, 0 for the first: with ``a`` wrong answers that are nearer than the
    nearest right one, and ``t`` wrong and ``r`` right ones that are as near, ``a + t / (r + 1)``, the mean over all orders.

    Args:
        images: (N, D) and captions: (M, D) embeddings of any length; every image has at least one caption.
        owner: (M,) index of the image that each caption describes.
        text: (M,) number of each caption's text, the same for the same text; None where no two are the same.
        chunk: at most this many rows and columns of similarities are in memory; never changes a rank.
    Returns:
        i2t (N,) and t2i (M,), float64.
    """
    # float64, so that the order of summation, which depends on the chunk, stays far below what counts as a tie
    images, captions = normalize(images.double(), dim=1), normalize(captions.double(), dim=1)
    text = torch.arange(len(captions)) if text is None else text

    def blocks() -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        """(rows, columns, similarities, which of them are of right answers)."""
        for top in range(0, len(images), chunk):
            mine = (owner >= top) & (owner < top + chunk)
            says = torch.zeros(min(chunk, len(images) - top), int(text.max()) + 1, dtype=torch.bool)
            says[owner[mine] - top, text[mine]] = True
            for left in range(0, len(captions), chunk):
                rows, columns = slice(top, top + chunk), slice(left, left + chunk)
                yield rows, columns, images[rows] @ captions[columns].T, says[:, text[columns]]

    nearest = [torch.full((len(each),), -torch.inf, dtype=torch.float64) for each in (images, captions)]
    for rows, columns, similarity, right in blocks():
        similarity = similarity.masked_fill(~right, -torch.inf)
        for best, part, dim in zip(nearest, (rows, columns), (1, 0), strict=True):
            best[part] = torch.maximum(best[part], similarity.amax(dim))
    nearer, wrong, same = ([torch.zeros_like(best) for best in nearest] for _ in range(3))
    for rows, columns, similarity, right in blocks():
        for way, (part, dim) in enumerate(((rows, 1), (columns, 0))):
            difference = similarity - nearest[way][part].unsqueeze(dim)
            tied = difference.abs() <= TIE
            nearer[way][part] += (difference > TIE).sum(dim)  # no right one is
            wrong[way][part] += (tied & ~right).sum(dim)
            same[way][part] += (tied & right).sum(dim)
    i2t, t2i = (a + t / (r + 1) for a, t, r in zip(nearer, wrong, same, strict=True))
    return i2t, t2i


def recall(ranks: Tensor, k: int) -> float:
    """Share of queries whose right answer is among the first ``k``, in percent."""
    return 100 * (ranks < k).double().mean().item()


def by_image(ranks: Tensor, owner: Tensor, images: int) -> np.ndarray:
    """(M,) caption ranks → (images, captions of an image), -1 where an image has fewer captions than another."""
    groups: Sequence[list[float]] = [[] for _ in range(images)]
    for rank, image in zip(ranks.tolist(), owner.tolist(), strict=True):
        groups[image].append(rank)
    table = np.full((images, max(map(len, groups))), -1.0)
    for row, group in zip(table, groups, strict=True):
        row[: len(group)] = group
    return table
