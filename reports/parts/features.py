"""Pictures of feature maps: principal components, and the likeness of parts of images."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from reports.analysis import Analysis
from reports.artifacts import FEATURES
from reports.mlflow.query import Store

BUDGET = 1_200_000  # bytes of maps in a page, before base64
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class FeatureMap:
    """The map of one backbone.

    Attributes:
        components: its first three as the colours of a PNG, a data URI: all images in a row.
        explained: shares of the variance of these three; retained: of those in ``data``.
        data: (N, height, width, K) int8 principal components in base64; '' where it is too large.
        scale: (K,) what each is multiplied by; centre: (K + 1,) see ``probes``.
    """

    backbone: str
    components: str
    explained: list[float]
    retained: float
    height: int
    width: int
    data: str
    scale: list[float]
    centre: list[float]


@dataclass(frozen=True)
class FeaturePictures:
    """The maps of the same images.

    Attributes:
        subject: where the images are from.
        strip: the images in a row, a data URI.
    """

    subject: str
    strip: str
    names: list[str]
    maps: list[FeatureMap] = field(default_factory=list)


def read_feature_pictures(store: Store, analysis: Analysis) -> FeaturePictures | None:
    """Those of the dataset that has them of most backbones, of each backbone's first seed; None if
    there are none.

    Raises:
        TrackingError: an artifact is damaged.
    """
    selection = analysis.selection
    by_images: dict[tuple[str, ...], dict[str, Arrays]] = defaultdict(dict)
    subjects: dict[tuple[str, ...], str] = {}
    for column in selection.columns:
        for name in selection.backbones:
            for cell in selection.cells.get((name, column), [])[:1]:
                if arrays := store.arrays(cell, FEATURES):
                    images = (cell.dataset, *arrays["image"].tolist())
                    subjects.setdefault(images, cell.dataset)
                    by_images[images].setdefault(name, arrays)
    if not by_images:
        return None
    images = max(by_images, key=lambda images: len(by_images[images]))  # of equal ones the first
    ordered = {
        name: by_images[images][name] for name in selection.backbones if name in by_images[images]
    }
    return make_feature_pictures(subjects[images], ordered)


def make_feature_pictures(
    subject: str, features: Mapping[str, Arrays], budget: int = BUDGET
) -> FeaturePictures:
    """Pictures of arrays that ``probes.image_level.feature_pictures`` made of the same images.

    Args:
        features: by backbone.
        budget: bytes; maps that do not fit have no likeness, only components.
    """
    first = next(iter(features.values()))
    strip = _uri("webp", first["strip"].tobytes())
    pictures = FeaturePictures(subject, strip, first["image"].tolist())
    for name, arrays in features.items():
        data = arrays["map"].tobytes()
        fits = len(data) <= budget
        budget -= fits * len(data)
        _, height, width, _ = arrays["map"].shape
        explained = arrays["explained"].tolist()
        pictures.maps.append(
            FeatureMap(
                name,
                _row_of_pictures(arrays["colours"]),
                explained[:3],
                sum(explained),
                height,
                width,
                base64.b64encode(data).decode() if fits else "",
                arrays["scale"].tolist(),
                arrays["centre"].tolist(),
            )
        )
    return pictures


def _row_of_pictures(colours: np.ndarray) -> str:
    """(N, h, w, 3) pictures in a row."""
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(colours, axis=1)).save(buffer, "PNG", optimize=True)
    return _uri("png", buffer.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
