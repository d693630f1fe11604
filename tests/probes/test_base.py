"""What a backbone lacks for a probe is known before anything is encoded."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

import benchmark.catalog  # noqa: F401 – registers every probe
from probes.base import NotApplicable, Probe
from probes.registry import PROBES

SQUARE = {"resize": "square-bilinear"}


@pytest.mark.parametrize(
    ("probe", "settings", "fits"),
    [
        ("classification/knn", {}, True),  # its own size
        ("classification/knn", {"size": 224}, True),
        ("classification/knn", {"size": 256}, False),
        ("correspondence/keypoints", {}, False),
        ("instance-retrieval/retrieval", {}, False),
        ("instance-retrieval/retrieval", {"resize": "square"}, True),
        ("segmentation/linear", {"size": 224}, False),  # complete images when it is scored
        ("segmentation/linear", {"size": 224, "slide": (224, 112)}, True),
        ("segmentation/linear", {"size": 448, "slide": (224, 112)}, False),
        ("segmentation/linear", {"size": 448, "crop": (224, 224), "slide": (224, 112)}, True),
        ("segmentation/in-context", {"size": 224}, False),
        ("segmentation/in-context", {"size": 224, **SQUARE}, True),
        ("segmentation/in-context", {"size": 448, **SQUARE}, False),
        ("detection/ssd", {"size": 224}, True),
        ("detection/ssd", {}, False),
        ("detection/mask-rcnn", {"short_side": 224, "long_side": 224}, False),
    ],
)
def test_a_backbone_of_one_size_is_shown_no_other(probe, settings, fits):
    probe = PROBES[probe]
    settings = probe.settings_type(**settings)
    backbone = SimpleNamespace(has_text=True, has_dense_text=True, fixed_size=(224, 224))
    backbone.strides = (16,)
    data: Any = SimpleNamespace(spec=SimpleNamespace(name="data", trained_on=None))
    with nullcontext() if fits else pytest.raises(NotApplicable, match="224×224 only; set size"):
        Probe.fits(probe, backbone, data, settings)
    backbone.fixed_size = None
    Probe.fits(probe, backbone, data, settings)
