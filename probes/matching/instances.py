"""``retrieval`` of instances, without training: which images of a gallery show what a query shows,
by cosine.

Average precision of a query is the area below its curve of precision over recall: by
``trapezoids``, the mean of the precisions just before and at each positive (Philbin et al. 2007,
and revisitop's ``compute_ap``), or by ``steps``, the precision at each positive (AmsterTime's
``eval.py``, which counts the first k images; here all). Junk images are taken out of the ranking
first; a positive that is not in the gallery counts as never found. Equal cosines are ranked in the
order of the gallery.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import normalize

from backbones.backbone import resizing
from cliptex_common.images import TILE, image_size, spread_indices, write_grid
from probes.base import Context, TaskResult
from probes.datasets.ground_truth import GalleryImage
from probes.features.store import CacheKey
from probes.image_level.encode import ImageViews, layer_columns
from probes.matching.probe import NO_POSITIVE, InstanceSettings, instance_retrieval
from probes.pictures import GALLERY_IMAGES, write_gallery

SHOWN, RESULTS = 6, 5  # queries of the preview, and first results of each
RIGHT, WRONG = (40, 160, 60), (200, 50, 40)  # frames


class Answer(NamedTuple):
    """What pictures show of a query: numbers of samples.

    Attributes:
        results: the first ones, each with whether it is a positive.
        positive: the first in the ground truth that is in the gallery; None without any.
    """

    results: list[tuple[int, bool]]
    positive: int | None


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    spec, samples = context.data.spec, context.data.samples["val"]
    views = RetrievalViews(context)
    vectors = normalize(views.embeddings()[:, layer_columns(context)].double(), dim=1).numpy()
    index_of = {sample.image: index for index, sample in enumerate(samples)}
    galleries: dict[str, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        if sample.target.gallery:
            galleries[sample.target.gallery].append(index)
    precisions: dict[str, list[float]] = defaultdict(list)
    answers: dict[int, Answer] = {}
    for index, sample in enumerate(samples):
        query: GalleryImage = sample.target
        if not query.searches:
            continue
        gallery = np.array(galleries[query.searches])
        ranking = gallery[np.argsort(-(vectors[gallery] @ vectors[index]), kind="stable")]
        for level, positives in query.positives.items():
            expected, junk = (
                [index_of[name] for name in names if name in index_of]
                for names in (positives, query.junk[level])
            )
            results = ranking[~np.isin(ranking, junk)]
            right = np.isin(results, expected)
            score = average_precision(right, len(positives), spec.extra["average_precision"])
            precisions[f"AP_{level}"].append(100 * score if positives else NO_POSITIVE)
            # pictures show the first level that has positives
            if index not in answers or answers[index].positive is None:
                first = zip(results[:RESULTS].tolist(), right.tolist(), strict=False)
                answers[index] = Answer(list(first), next(iter(expected), None))
    queries = [samples[index].image for index in answers]
    per_image = {name: np.array(values) for name, values in precisions.items()}
    per_image["image"] = np.array(queries)
    sizes = " and ".join(str(len(gallery)) for gallery in galleries.values())
    return TaskResult(
        instance_retrieval(tuple(queries), per_image).values(),
        per_image,
        preview=draw_results(views, answers, context.work_dir / "preview.png"),
        notes=[f"{len(queries)} queries, galleries of {sizes} images"],
    )


def average_precision(right: np.ndarray, positives: int, by: str) -> float:
    """The average precision, 0 to 1, of a ranking without junk.

    Args:
        right: (N,) bool, whether each image is a positive, the best first.
        positives: of the query, whether they are in the ranking or not; 0 gives 0.
        by: ``trapezoids`` or ``steps``; see the head of this file.
    """
    ranks = np.flatnonzero(right)
    before = np.arange(len(ranks))  # positives that are ranked higher
    precision = (before + 1) / (ranks + 1)
    if by == "trapezoids":
        earlier = np.where(ranks == 0, 1.0, before / np.maximum(ranks, 1))
        precision = (precision + earlier) / 2
    return float(precision.sum() / max(positives, 1))


class RetrievalViews(ImageViews):
    """The images of a task as its settings resize them: nothing is cut off, but of a query that has
    a box only this is seen (``crop_queries``)."""

    def __init__(self, context: Context) -> None:
        settings: InstanceSettings = context.settings
        self.samples, self.resize = context.data.samples["val"], settings.resize
        self.boxes: Mapping[int, Sequence[float]] = {
            index: sample.target.box
            for index, sample in enumerate(self.samples)
            if settings.crop_queries and sample.target.box
        }
        paths = [context.data.root / sample.image for sample in self.samples]
        encoding, name = settings.encoding(context.device.type), f"{context.data.spec.name} (val)"
        super().__init__(context, context.backbone, paths, encoding, name, squash=True)
        if settings.resize == "long-side":  # in place of the squares that ``squash`` makes
            self.transform = self._with_shape
            self.sizes = [self._size(*self._own_size(item)) for item in self.every]

    def image(self, item: int) -> Image.Image:
        image = super().image(item)
        return image.crop(tuple(self.boxes[item])) if item in self.boxes else image  # type: ignore[arg-type]

    def key(self) -> CacheKey:
        key = super().key()
        boxes = [[item, *box] for item, box in self.boxes.items()]
        return replace(key, identity={**key.identity, "resize": self.resize, "boxes": boxes})

    def _own_size(self, item: int) -> tuple[int, int]:
        if item not in self.boxes:
            return image_size(self.path(item))
        left, top, right, bottom = map(round, self.boxes[item])
        return right - left, bottom - top

    def _size(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) of an image as the backbone sees it."""
        step, long = self.backbone.divisor, max(width, height)
        rows, columns = (
            max(1, round(max(self.size) * side / long / step)) for side in (height, width)
        )
        return rows * step, columns * step

    def _with_shape(self, image: Image.Image) -> Tensor:
        data = replace(self.backbone.data, size=self._size(*image.size), squash=True)
        return resizing(data, data.interpolation)(image)


def draw_results(views: RetrievalViews, answers: Mapping[int, Answer], path: Path) -> Path:
    """Write queries and their first results, framed green where they are right and red where not,
    of the first level that has positives; and for the report a gallery of queries, each with a
    positive and its first result."""

    def picture(item: int, hit: bool | None = None) -> np.ndarray:
        image = views.image(item)
        image.thumbnail((TILE, TILE))
        frame = RIGHT if hit else WRONG
        return np.asarray(image if hit is None else ImageOps.expand(image, 8, frame))

    def panels(query: int) -> dict[str, np.ndarray]:
        results, positive = answers[query]
        truth = picture(query if positive is None else positive)
        return {"image": picture(query), "truth": truth, "prediction": picture(*results[0])}

    queries, names = list(answers), [sample.image for sample in views.samples]
    gallery = [queries[row] for row in spread_indices(len(queries), GALLERY_IMAGES)]
    write_gallery(path.parent, ((names[query], panels(query)) for query in gallery))
    rows = [queries[row] for row in spread_indices(len(queries), SHOWN)]
    columns = max(len(answers[query].results) for query in rows)
    return write_grid(
        path,
        ("query", *(f"result {rank + 1}" for rank in range(columns))),
        [[picture(query), *(picture(*each) for each in answers[query].results)] for query in rows],
        [names[query] for query in rows],
    )
