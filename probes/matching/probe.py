"""The probes that match patches of frames and of views, without training."""

from __future__ import annotations

from functools import partial

import probes.matching.metrics  # noqa: F401  registers the metrics
from probes.base import FeatureProbe
from probes.matching.settings import LabelPropagationSettings
from probes.registry import register_probe
from reports.metrics import Metric

MASKS = {
    "J_and_F": Metric(label="J&F"),
    "J": Metric(label="J (region)", shown=True),
    "F": Metric(label="F (contour)", shown=True),
}
untrained = partial(FeatureProbe, splits=("val",))

LABEL_PROPAGATION = register_probe(
    untrained(
        "label-propagation",
        "video",
        LabelPropagationSettings,
        MASKS,
        "probes.matching.label_propagation",
    )
)
