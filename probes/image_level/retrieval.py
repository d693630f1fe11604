"""``retrieval``: captions by image and images by caption, by cosine; recall at 1, 5 and 10.

An image is right if any of its captions is among the first k (the field's reading for Flickr30k and
COCO). A caption that describes several images is right for each of them, and each of them for it:
no model could tell equal texts apart. Answers at equal cosine share their ranks (the expected rank
over all orders), so that no order of equals decides: a backbone which gives every image the same
embedding has the mean rank of chance, which is no hit.

clip-benchmark (``zeroshot_retrieval.recall_at_k``) counts a caption as right for its own image only
and leaves ties to ``torch.topk``; open_clip (``get_clip_metrics``) likewise, by ``argsort``.
Without repeated captions and ties the figures are theirs (tested).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from probes.base import Context, TaskResult
from probes.image_level.encode import encode_split, encode_texts
from probes.image_level.metrics import retrieval
from probes.image_level.settings import RetrievalSettings

CELLS = 2**24  # of the similarity matrix that are in memory at once (128 MiB)
# cosines nearer than this are equal: far above the rounding of float64, far below that of the
# embeddings
TIE = 1e-9


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    settings: RetrievalSettings = context.settings
    samples = context.data.samples["val"]
    texts = [
        settings.template.replace("{}", caption) for sample in samples for caption in sample.target
    ]
    owner = torch.tensor([index for index, sample in enumerate(samples) for _ in sample.target])
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    images = encode_split(context, "val")
    captions = encode_texts(context, texts)
    text_numbers = torch.tensor([numbers[text] for text in texts])
    i2t, t2i = retrieval_ranks(images, captions, owner, text_numbers)
    per_image = {
        "image": np.array([sample.image for sample in samples]),
        "i2t_rank": i2t.numpy(),
        "t2i_rank": by_image(t2i, owner, len(samples)),
    }
    metrics = retrieval(tuple(per_image["image"]), per_image).values()
    notes = [f"{len(samples)} images, {len(texts)} captions ({len(numbers)} different)"]
    return TaskResult(metrics, per_image, notes=notes)


def retrieval_ranks(
    images: Tensor, captions: Tensor, owner: Tensor, text: Tensor
) -> tuple[Tensor, Tensor]:
    """Rank of the first right answer for every query, 0 for the first; see ``first_right``.

    Args:
        images: (N, D) and captions: (M, D) embeddings of any length; every image has at least one
            caption.
        owner: (M,) index of the image that each caption describes.
        text: (M,) number of each caption's text, the same for the same text.
    Returns:
        i2t (N,) and t2i (M,), float64.
    """
    # float64, so that the order of summation, which depends on ``CELLS``, stays far below what
    # counts as a tie
    images, captions = normalize(images.double(), dim=1), normalize(captions.double(), dim=1)
    index, counts = np.arange(len(captions)), np.ones(len(captions))
    # (images, captions): how many captions of the image have the same text
    right = csr_array((counts, (owner.numpy(), text.numpy()))) @ csr_array(
        (counts, (text.numpy(), index))
    )
    i2t = first_right(images, captions, right)
    return i2t, first_right(captions, images, right.T.tocsr())


def first_right(queries: Tensor, answers: Tensor, right: csr_array) -> Tensor:
    """(queries,) float64 expected rank of the first right answer over all orders of equals.

    With ``a`` wrong answers that are nearer than the nearest right one, and ``t`` wrong and ``r``
    right ones that are as near, it is ``a + t / (r + 1)``.
    """
    ranks = []
    for rows in torch.arange(len(queries)).split(max(1, CELLS // len(answers))):
        similarity = queries[rows] @ answers.T
        is_right = torch.from_numpy(right[rows.numpy()].toarray() > 0)
        best = similarity.masked_fill(~is_right, -torch.inf).amax(dim=1, keepdim=True)
        difference = similarity - best
        nearer = (difference > TIE).sum(dim=1)  # none of them is right
        tied = difference.abs() <= TIE
        wrong, equal = (tied & ~is_right).sum(dim=1), (tied & is_right).sum(dim=1)
        ranks.append(nearer + wrong.double() / (equal + 1))
    return torch.cat(ranks)


def by_image(ranks: Tensor, owner: Tensor, images: int) -> np.ndarray:
    """(M,) caption ranks → (images, captions of an image), filled with -1."""
    groups = ranks[owner.argsort(stable=True)].split(owner.bincount(minlength=images).tolist())
    return pad_sequence(list(groups), batch_first=True, padding_value=-1.0).double().numpy()
