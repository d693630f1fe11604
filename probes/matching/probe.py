"""The probes that match patches of frames and of views, without training."""

from __future__ import annotations

from functools import partial

import probes.matching.metrics  # noqa: F401  registers the metrics
from probes.base import FeatureProbe
from probes.matching.metrics import RECALLS, binned_recalls
from probes.matching.settings import (
    LabelPropagationSettings,
    ObjectViewSettings,
    SceneViewSettings,
)
from probes.registry import register_probe
from reports.metrics import Metric

MASKS = {
    "J_and_F": Metric(label="J&F"),
    "J": Metric(label="J (region)", shown=True),
    "F": Metric(label="F (contour)", shown=True),
}
untrained = partial(FeatureProbe, splits=("val",))


def recalls(kind: str) -> dict[str, Metric]:
    """The metrics of views, the main one first."""
    names = [name for name, _, _ in RECALLS[kind]] + binned_recalls(kind)
    return {name: Metric(label=_label(name), shown=name in names[1:3]) for name in names}


def _label(name: str) -> str:
    """``recall within 2 cm, 0-30°``."""
    _, distance, *angles = name.split("_")
    text = f"recall within {distance[:-2]} {distance[-2:]}"
    return f"{text}, {angles[0]}°" if angles else text


LABEL_PROPAGATION = register_probe(
    untrained(
        "label-propagation",
        "video",
        LabelPropagationSettings,
        MASKS,
        "probes.matching.label_propagation",
    )
)
OBJECT_VIEWS, SCENE_VIEWS = (
    register_probe(
        untrained(
            "view-matching",
            kind,
            settings,
            recalls(kind),
            "probes.matching.view_matching",
        )
    )
    for kind, settings in (("object-views", ObjectViewSettings), ("scene-views", SceneViewSettings))
)
