"""``retrieval`` of a class, without training: each image of val searches those of its class among
all other images of val, by the cosine of the embeddings that ``knn`` reads.

Leaving the query out of one gallery is what VisBench does (``tasks/high_level/retrieval.py``; its
corpus on Imagenette's val); no image of train is read. ``recall@k`` is the share of queries with an
image of their class among the first k. ``mAP`` is the mean over queries of the average precision of
the complete ranking, without interpolation (scikit-learn's ``average_precision_score``).

Images at equal cosine share their rank, as in the retrieval of captions: no order of equals
decides. An image that is alone in its class searches nothing; VisBench counts it as 0. Without ties
and such images the figures are VisBench's.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import normalize

from cliptex_common.device import float64_device
from cliptex_common.errors import UserError
from probes.base import Context, TaskResult
from probes.image_level.classification import on_device_if_small
from probes.image_level.encode import encode_split
from probes.image_level.label_sets import area, curve
from probes.image_level.metrics import class_retrieval
from probes.image_level.text import CELLS
from reports.records import FLOOR

DIGITS = 9  # of cosines; equal ones have the same


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    samples = context.data.samples["val"]
    embeddings = on_device_if_small(encode_split(context, "val"), context.device)
    vectors = normalize(embeddings.to(float64_device(context.device)).double(), dim=1)
    member = np.zeros((len(samples), len(context.data.classes)), bool)
    for row, sample in zip(member, samples, strict=True):
        row[sample.target] = True
    context.progress.start("searching images of the class", len(samples))
    queries, ranks, precisions, counts = [], [], [], []
    for rows in torch.arange(len(samples)).split(max(1, CELLS // len(samples))):
        cosines = (vectors[rows.to(vectors.device)] @ vectors.T).cpu().numpy().round(DIGITS)
        for query, similar in zip(rows.tolist(), cosines, strict=True):
            right = np.where(member[:, member[query]].any(axis=1), np.int8(1), np.int8(0))
            right[query] = -1  # counts nowhere
            if (right == 1).any():
                queries.append(samples[query].image)
                ranks.append(first_rank(similar[right == 1], similar[right == 0]))
                precisions.append(100 * area(*curve(similar, right, np.ones((1, len(right)))))[0])
                counts.append((right == 1).sum())
        context.progress.advance(len(rows))
    if not queries:
        raise UserError(
            f"no class of {context.data.spec.name} has two images in val; add some, or choose knn"
        )
    per_image = {"image": queries, "first_rank": ranks, "AP": precisions}
    arrays = {name: np.array(values) for name, values in per_image.items()}
    floor = 100 * np.mean(counts) / (len(samples) - 1)
    notes = [
        f"{len(queries)} queries, each among {len(samples) - 1} other images of val;"
        f" {len(samples) - len(queries)} images are alone in their class",
        f"without features: mAP {floor:.1f}, recall@1 {floor:.1f}",
    ]
    metrics = class_retrieval(tuple(queries), arrays).values()
    return TaskResult(metrics, arrays, {FLOOR: floor}, notes=notes)


def first_rank(right: np.ndarray, wrong: np.ndarray) -> float:
    """The expected rank of the first right image over all orders of equals, 0 for the first; see
    ``probes.image_level.text.first_right``.

    Args:
        right, wrong: cosines.
    """
    best = right.max()
    return (wrong > best).sum() + (wrong == best).sum() / ((right == best).sum() + 1)
