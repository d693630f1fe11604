"""Boundaries that people marked, scored as BSDS500's benchmark scores them (Martin, Fowlkes, Malik,
PAMI 2004; Arbeláez, Maire, Fowlkes, Malik, PAMI 2011).

Ground truth is (H, W): 2¹⁶ times the number of people, plus 2ⁱ where the i-th marked a boundary; 0
where unknown. A crop or a resized image keeps who marked what.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cliptex_common.images import scalar_picture, scale_bar
from cliptex_common.metrics import Arrays
from probes.datasets.base import PreparedDataset
from probes.dense.computed import OneScaleSettings
from probes.dense.task import DenseTask, Draw, Drawing
from reports.records import CEILING, Metric

if TYPE_CHECKING:
    from scipy.spatial import KDTree
    from torch import Tensor

THRESHOLDS = np.arange(1, 100) / 100
TOLERANCE = 0.0075  # of the diagonal: how far matched pixels may be apart
PEOPLE = 16  # bits of who marked a pixel


def agreement(values: Any) -> Any:
    """The share of people who marked a pixel, of an integer array or tensor as ``read`` gives it;
    0 where unknown."""
    marks = sum(values >> person & 1 for person in range(PEOPLE))
    return marks / (values >> PEOPLE).clip(1)


class Boundaries(DenseTask):
    """A probability a pixel. F is the harmonic mean of precision (pixels predicted that match those
    of any person) and recall (pixels of each person that are matched): at the best threshold for
    all images (ODS), for each image (OIS); AP is the area below precision over recall. The ceiling
    is what people have, each scored by the others.

    The loss is that of RCF (Liu et al., CVPR 2017, eq. 1, λ = 1.1): a pixel is a boundary if at
    least half of the people marked it, none if nobody did, and else does not count; both kinds
    weigh the same in total.
    """

    name, level, is_picture = "boundaries", "low", False
    metrics: ClassVar[Mapping[str, Metric]] = {
        "ODS": Metric(),
        "OIS": Metric(shown=True),
        "AP": Metric(shown=True),
    }
    outcomes: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "hit": (0, 158, 115),
        "false alarm": (213, 94, 0),
        "missed": (86, 180, 233),
    }
    settings = OneScaleSettings

    def read(self, path: str) -> np.ndarray:  # type: ignore[override]
        """Of BSDS's ``.mat``: ``groundTruth``, a cell with a struct for each person."""
        from scipy.io import loadmat

        try:
            cells = loadmat(path)["groundTruth"][0]
            maps = [cell[0, 0]["Boundaries"] > 0 for cell in cells]
        except OSError:
            raise
        except Exception as error:  # of many kinds, for damaged files
            raise ValueError(f"it is no ground truth of BSDS ({error})") from error
        marks = sum(np.float32(1 << person) * each for person, each in enumerate(maps))
        return marks + np.float32(len(maps) << PEOPLE)

    def loss(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        from torch.nn import functional as F

        share = agreement(target.long())
        positive, negative = share >= 0.5, (share == 0) & (target > 0)
        counts = [each.sum() for each in (positive, negative)]
        total = counts[0] + counts[1]
        weight = (positive * counts[1] + 1.1 * negative * counts[0]) / total.clamp(min=1)
        entropy = F.binary_cross_entropy_with_logits(
            prediction, positive.to(prediction), weight, reduction="sum"
        )
        return entropy, total

    def predict(self, output: Tensor) -> Tensor:
        return output[:, 0].sigmoid()

    def score(self, prediction: Tensor, target: Tensor) -> dict[str, Any]:
        """``counts`` (99, 4) at each threshold and ``people`` (4,) of each person among the others;
        see ``matches``."""
        from scipy.spatial import KDTree

        values = target[0].long().cpu().numpy()
        people = range(int(values.max()) >> PEOPLE)
        maps = [(values >> person & 1) > 0 for person in people]
        trees = [KDTree(np.argwhere(each)) for each in maps]
        edges = suppress(prediction[0].cpu().double().numpy())
        reach = TOLERANCE * float(np.hypot(*edges.shape))
        counts, last = np.zeros((len(THRESHOLDS), 4), np.int32), np.zeros(edges.shape, bool)
        for row, threshold in enumerate(THRESHOLDS):
            mask = edges >= threshold
            is_new = not row or (mask != last).any()
            counts[row] = matches(mask, trees, reach) if is_new else counts[row - 1]
            last = mask
        others = [trees[:person] + trees[person + 1 :] for person in people]
        each = [matches(*pair, reach) for pair in zip(maps, others, strict=True)]
        return {"counts": counts, "people": np.sum(each, axis=0, dtype=np.int32)}

    def metrics_of(self, arrays: Arrays, notes: list[str]) -> dict[str, float]:
        f = float(f_measure(arrays["people"].sum(axis=0))[2])
        notes.append(f"people, each scored by the others, have F {f:.1f}")
        metrics = super().metrics_of(arrays, notes)
        return metrics | {CEILING + next(iter(self.metrics)): f}

    def summary(self, arrays: Arrays, weights: np.ndarray) -> dict[str, Any]:
        """As in ``edgesEvalDir`` of P. Dollár's toolbox, which is BSDS's own ``boundaryBench``: ODS
        interpolates linearly between thresholds, AP between recalls, in steps of 0.01."""
        counts = arrays["counts"].astype(np.float64)
        best = f_measure(counts)[2].argmax(axis=1)
        chosen = counts[np.arange(len(counts)), best]
        precision, recall, _ = f_measure(np.tensordot(weights, counts, axes=1))
        step = np.linspace(0, 1, 100)
        ods = np.zeros(len(weights))
        for at in range(1, len(THRESHOLDS)):
            p, r = (
                each[:, at, None] * step + each[:, at - 1, None] * (1 - step)
                for each in (precision, recall)
            )
            ods = np.maximum(ods, (200 * p * r / np.maximum(p + r, 1e-12)).max(axis=1))
        areas = [area_below(*pair) for pair in zip(precision, recall, strict=True)]
        return {"ODS": ods, "OIS": f_measure(weights @ chosen)[2], "AP": np.array(areas)}

    def best_constant(self, pixels: np.ndarray, data: PreparedDataset) -> Any:
        return np.float32(0)

    def constant_score(self, constant: Any, per_image: Mapping[str, np.ndarray]) -> float | None:
        return 0.0  # no pixel is a boundary

    def constant_name(self, constant: Any, data: PreparedDataset) -> str:
        return "no boundary"

    def drawing(self, classes: Sequence[str], targets: Sequence[np.ndarray]) -> Drawing:
        """Strength in per cent, of the ground truth the share of people."""

        def draw(maps: np.ndarray) -> np.ndarray:
            values = maps[0]
            if values.max() > 1:
                values = agreement(values.astype(np.int64))
            return scalar_picture(values, 0, 1, np.ones(values.shape, bool))

        return draw, scale_bar(0, 100, " % of people")

    def described(self, maps: np.ndarray) -> str:
        values = maps[0].astype(np.int64)
        share = 100 * (agreement(values) > 0).mean()
        return f"{values.max() >> PEOPLE} people; {share:.3g} % of the pixels are somebody's line"

    def outcome(self, draw: Draw, target: np.ndarray, prediction: np.ndarray) -> np.ndarray:
        """Strength in grey. Lines of at least 0.5 are hits within the tolerance of anybody's line;
        missed is what half of the people marked. Scores assign pixels one to one, this does not."""
        from scipy.ndimage import binary_dilation, distance_transform_edt

        share = agreement(target[0].astype(np.int64))
        lines = thin(suppress(prediction[0].astype(np.float64)) >= 0.5)
        reach = TOLERANCE * float(np.hypot(*lines.shape))
        is_hit, is_reached = (
            mask.any() & (distance_transform_edt(~mask) <= reach) for mask in (share > 0, lines)
        )
        picture = (255 * prediction[0].clip(0, 1)).astype(np.uint8)[..., None].repeat(3, axis=2)
        masks = lines & is_hit, lines & ~is_hit, (share >= 0.5) & ~is_reached
        for mask, colour in zip(masks, self.outcomes.values(), strict=True):
            picture[binary_dilation(mask)] = colour
        return picture


def f_measure(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision and recall as shares, and F in per cent, of (…, 4) counts; see ``matches``."""
    right, predicted, recalled, marked = np.moveaxis(counts, -1, 0)
    precision, recall = right / np.maximum(predicted, 1), recalled / np.maximum(marked, 1)
    f = 200 * precision * recall / np.maximum(precision + recall, 1e-12)
    return precision, recall, f


def area_below(precision: np.ndarray, recall: np.ndarray) -> float:
    """Area in per cent below precision over recall, both (thresholds,)."""
    recall, index = np.unique(recall, return_index=True)
    at = np.arange(101) / 100
    return float(np.interp(at, recall, precision[index], left=0, right=0).sum())


def matches(mask: np.ndarray, people: Sequence[KDTree], reach: float) -> tuple[int, ...]:
    """Of a map of boundaries, which is thinned: pixels that match those of any person, all, and of
    all people pixels that are matched, and all.

    Args:
        mask: (H, W) bool.
        people: the pixels that each person marked.
        reach: how far matched pixels may be apart, in pixels.
    """
    from scipy.spatial import KDTree

    tree = KDTree(np.argwhere(thin(mask)))
    each = [match(tree, person, reach) for person in people]
    right = np.logical_or.reduce([np.zeros(tree.n, bool), *each])
    recalled = sum(int(hit.sum()) for hit in each)
    return int(right.sum()), tree.n, recalled, sum(person.n for person in people)


def match(tree: KDTree, other: KDTree, reach: float) -> np.ndarray:
    """Which pixels of a set are matched to those of another, one to one: (n,) bool. The sum of the
    distances is the least; a pixel without a partner costs 100 times ``reach``, and distances are
    rounded to a hundredth of a pixel, both as in BSDS's ``correspondPixels``.

    It is one assignment: SciPy's matching by number alone needs minutes or more on the maps of
    people who agree.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    hit = np.zeros(tree.n, bool)
    if not tree.n or not other.n:
        return hit
    pairs = tree.sparse_distance_matrix(other, reach, output_type="coo_matrix")
    (own_pixels, row), (other_pixels, column) = (
        np.unique(each, return_inverse=True) for each in (pairs.row, pairs.col)
    )
    is_larger = len(own_pixels) > len(other_pixels)
    if is_larger:  # every row gets a column
        row, column = column, row
    rows, columns = sorted((len(own_pixels), len(other_pixels)))
    alone = np.arange(rows)
    costs = np.append(np.rint(100 * pairs.data) + 1, np.full(rows, 1e4 * reach))  # 0 is no pair
    index = np.append(row, alone), np.append(column, columns + alone)
    graph = csr_array((costs, index), shape=(rows, columns + rows))
    row, column = min_weight_full_bipartite_matching(graph)
    hit[own_pixels[(column if is_larger else row)[column < columns]]] = True
    return hit


def suppress(edges: np.ndarray) -> np.ndarray:
    """Non-maximum suppression of (H, W) probabilities, as P. Dollár's toolbox does it before the
    benchmark: smoothed a little, a pixel stays that is no weaker than both neighbours across the
    edge, whose direction is that of the second derivatives; the five pixels at the frame fade."""
    from scipy import ndimage

    def smooth(values: np.ndarray, radius: int, middle: float = 0) -> np.ndarray:
        """By a triangle."""
        side = np.arange(1.0, radius + 1)
        kernel = np.array([*side, middle or radius + 1, *side[::-1]])
        for axis in (0, 1):
            values = ndimage.convolve1d(values, kernel / kernel.sum(), axis)
        return values

    edges = smooth(edges, 1)
    dy, dx = np.gradient(smooth(edges, 4))
    dxx, (dyy, dxy) = np.gradient(dx, axis=1), np.gradient(dy)
    angle = np.arctan(dyy * np.sign(-dxy) / (dxx + 1e-5))
    height, width = edges.shape
    y, x = np.indices(edges.shape)
    is_peak = np.ones(edges.shape, bool)
    for sign in (-1, 1):
        rows = (y + sign * np.sin(angle)).clip(0, height - 1.001)
        columns = (x + sign * np.cos(angle)).clip(0, width - 1.001)
        is_peak &= 1.01 * edges >= ndimage.map_coordinates(edges, [rows, columns], order=1)
    fade = [
        np.minimum(np.minimum(each, each[::-1]) / 5, 1) for each in map(np.arange, (height, width))
    ]
    return np.where(is_peak, edges, 0.0) * np.outer(*fade)


@cache
def _thinning() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A kernel that numbers the neighbourhoods of a pixel, and which of these lose it in each of
    two steps (Guo, Hall, CACM 1989, as in MATLAB's ``bwmorph``)."""
    # neighbours from the right, counter-clockwise
    order = ((1, 2), (0, 2), (0, 1), (0, 0), (1, 0), (2, 0), (2, 1), (2, 2))
    kernel = np.zeros((3, 3), np.float32)
    for bit, position in enumerate(order):
        kernel[position] = 1 << bit
    x = [(np.arange(256) >> (bit - 1) % 8) & 1 > 0 for bit in range(10)]
    pairs = [(x[i], x[i + 1], x[i + 2]) for i in (1, 3, 5, 7)]
    crossings = sum((~a & (b | c)).astype(int) for a, b, c in pairs)
    n1 = sum((a | b).astype(int) for a, b, _ in pairs)
    n2 = sum((b | c).astype(int) for _, b, c in pairs)
    n = np.minimum(n1, n2)
    open_ = (crossings == 1) & (n >= 2) & (n <= 3)
    first, second = (x[2] | x[3] | ~x[8]) & x[1], (x[6] | x[7] | ~x[4]) & x[5]
    return kernel, open_ & ~first, open_ & ~second


def thin(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool lines of one pixel, as ``bwmorph(mask, "thin", inf)`` gives them."""
    import cv2

    kernel, *steps = _thinning()
    pixels = -1
    while pixels != (pixels := int(mask.sum())):
        for removed in steps:
            number = cv2.filter2D(mask.astype(np.uint8), -1, kernel, borderType=cv2.BORDER_CONSTANT)
            mask = mask & ~removed[number]
    return mask
