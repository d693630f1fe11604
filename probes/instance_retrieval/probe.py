"""``retrieval`` of instances: its settings and metrics. Importing this imports no torch."""

from __future__ import annotations

from functools import partial
from typing import Literal

import numpy as np

from cliptex_common.settings import settings_dataclass
from cliptex_common.weighted import Arrays, mean_of_images
from probes.base import FeatureProbe
from probes.image_level.settings import EmbeddingSettings
from probes.registry import register_probe
from reports.metrics import Metric
from reports.stats.per_image import SCORERS, ImageScores

NO_POSITIVE = -1.0  # the average precision of a query without any


@settings_dataclass
class InstanceSettings(EmbeddingSettings):
    """Protocol of instance retrieval.

    Attributes:
        size: of the long side, or of the squares; none for the backbone's own.
        resize: ``long-side``: images keep their shape, each side rounded to the backbone's divisor;
            ``square``: they are squeezed to squares. Nothing is cut off.
        crop_queries: a query that has a box is this part of its image alone, as its authors ask;
            without it the complete image, as DINO's code takes it.
    """

    resize: Literal["long-side", "square"] = "long-side"
    crop_queries: bool = True

    def feeds_only(self, size: tuple[int, int]) -> bool:
        """Whether the backbone sees images of ``size`` only, which is its own."""
        return self.resize == "square" and super().feeds_only(size)


def instance_retrieval(images: tuple[str, ...], arrays: Arrays) -> ImageScores:
    """``mAP_LEVEL``, the mean of the queries' ``AP_LEVEL`` without those that have no positive; the
    images are queries."""
    precisions = {
        f"mAP_{level}": np.where(values == NO_POSITIVE, np.nan, values)
        for level in ("hard", "medium", "easy", "all")
        if (values := arrays.get(f"AP_{level}")) is not None
    }
    metrics = {name: partial(mean_of_images, values) for name, values in precisions.items()}
    main = next(iter(precisions.values()))
    return ImageScores(images, metrics, lambda: main, "average precision", 1)


SCORERS.register("instance-retrieval", instance_retrieval)
RETRIEVAL = register_probe(
    FeatureProbe(
        "retrieval",
        "instance-retrieval",
        InstanceSettings,
        {
            "mAP_hard": Metric(label="mAP hard"),
            "mAP_medium": Metric(label="mAP medium", shown=True),
            "mAP_easy": Metric(label="mAP easy", shown=True),
        },
        "probes.instance_retrieval.retrieval",
        splits=("val",),
        other_metrics={"mAP_all": Metric(label="mAP")},
    )
)
