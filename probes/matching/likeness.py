"""``2afc`` on triplets, without training: which of two images is more like a third, by the cosine
of their features, against what people chose.

The score of a triplet is DreamSim's (Fu, Tamir, Sundaram et al., NeurIPS 2023;
``evaluation/score.py`` of ssundaram21/dreamsim): the share of people whose choice it is, a half
where both are equally near. So chance, and features that are all equal, have 50 %; the highest that
the votes allow is 100 % where all agree, as in NIGHTS.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from cliptex_common.metrics import Arrays, mean_of_images
from cliptex_common.settings import settings_dataclass
from probes.base import Context, FeatureProbe, LikenessFeatures, TaskResult
from probes.image_level.settings import EmbeddingSettings, Encoding
from probes.registry import register_probe
from reports.per_image import SCORERS, ImageScores
from reports.records import CEILING, FLOOR, KIND_LEVELS, Metric

if TYPE_CHECKING:
    from torch import Tensor

TIE = 1e-9  # cosines nearer than this are equal
SUBSETS = ("imagenet", "no_imagenet")
TOKENS = ("class", "patches", "both")


@settings_dataclass
class LikenessSettings(EmbeddingSettings):
    """Protocol of likeness; images are seen complete, resized to the square.

    Attributes:
        features: ``projected`` or ``pre_projection``, see ``EmbeddingSettings``; the ``class``
            token of the last block (the mean of the patches where there is none), the mean of its
            ``patches``, ``both`` one after the other; or the class token of one layer.
    """

    features: LikenessFeatures = "projected"

    def encoding(self, device: str) -> Encoding:
        if self.features in TOKENS:
            embedded = replace(self, features="projected")
            return replace(embedded.encoding(device), blocks=1)
        return replace(super().encoding(device), squash=True)


def likeness(images: tuple[str, ...], arrays: Arrays) -> ImageScores:
    """``2AFC``, the mean of triplets' ``agreement`` in percent, and of those of each ``subset``;
    the images are triplets. ``margin``: how much nearer the image is that people chose."""
    agreement = arrays["agreement"]
    metrics = {"2AFC": partial(mean_of_images, agreement)}
    for name in SUBSETS:
        if (part := arrays["subset"] == name).any():
            metrics[f"2AFC_{name}"] = partial(mean_of_images, np.where(part, agreement, np.nan))
    return ImageScores(images, metrics, lambda: arrays["margin"], "margin of cosines", 1)


SCORERS.register("triplets", likeness)
KIND_LEVELS["triplets"] = "mid"
LIKENESS = register_probe(
    FeatureProbe(
        "2afc",
        "triplets",
        LikenessSettings,
        {
            "2AFC": Metric(label="2AFC"),
            "2AFC_imagenet": Metric(label="2AFC, ImageNet's classes", shown=True),
            "2AFC_no_imagenet": Metric(label="2AFC, other classes", shown=True),
        },
        __name__,
        splits=("val",),
    )
)


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    samples = context.data.samples["val"]
    triplets = [sample.target for sample in samples]
    names = [[each.image, each.target.left, each.target.right] for each in samples]
    paths = dict.fromkeys(name for row in names for name in row)
    index = dict(zip(paths, range(len(paths)), strict=True))
    near_left, near_right = cosines(
        encode(context, list(paths)), np.array([[index[name] for name in row] for row in names])
    )
    share = np.array([triplet.right_share for triplet in triplets])
    difference = near_right - near_left
    ours = np.where(np.abs(difference) <= TIE, 0.5, difference > 0)
    per_image = {
        "image": np.array([sample.image for sample in samples]),
        "agreement": 100 * (ours * share + (1 - ours) * (1 - share)),
        "margin": difference * np.sign(2 * share - 1),
        "subset": np.array([triplet.subset for triplet in triplets]),
    }
    highest = 100 * np.maximum(share, 1 - share).mean()
    notes = [f"{len(samples)} triplets; chance 50, highest with these votes {highest:.4g}"]
    if ties := int((np.abs(difference) <= TIE).sum()):
        notes.append(f"both images are equally near in {ties} triplets, which count a half")
    metrics = likeness(tuple(per_image["image"]), per_image).values()
    return TaskResult(metrics, per_image, {FLOOR: 50.0, CEILING: highest}, notes=notes)


def encode(context: Context, images: list[str]) -> Tensor:
    """(N, D) features of images, by the settings."""
    from probes.image_level.encode import ImageViews, layer_columns

    settings: LikenessSettings = context.settings
    paths = [context.data.root / image for image in images]
    encoding, name = settings.encoding(context.device.type), f"{context.data.spec.name} (val)"
    embeddings = ImageViews(context, context.backbone, paths, encoding, name).embeddings()
    if settings.features not in TOKENS:
        return embeddings[:, layer_columns(context)]
    token, patches = embeddings.chunk(2, dim=1)
    return {"class": token, "patches": patches, "both": embeddings}[settings.features]


def cosines(features: Tensor, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) cosines of the features of the first of three images with those of the second, and of
    the third; in float64.

    Args:
        rows: (N, 3) of the features.
    """
    import torch
    from torch.nn.functional import cosine_similarity

    reference, left, right = (features[torch.from_numpy(each)].double() for each in rows.T)
    near_left, near_right = (cosine_similarity(reference, each) for each in (left, right))
    return near_left.numpy(), near_right.numpy()
