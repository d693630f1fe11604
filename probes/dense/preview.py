"""The preview of a dense task: a few validation images with ground truth and prediction, always the
same ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from torch import nn

from common.dense_maps.pictures import (
    class_legend,
    depth_picture,
    label_picture,
    normal_picture,
    palette,
    scale_bar,
)
from probes.datasets.base import Kind
from probes.dense.data import FIELDS
from probes.pictures import GALLERY, evenly, write_gallery, write_preview


@dataclass
class Predicted:
    """One validation image, with ground truth and prediction at the label's own resolution."""

    name: str
    photo: np.ndarray
    target: np.ndarray
    prediction: np.ndarray


def draw_preview(
    predicted: Callable[[int], Predicted], dataset: Any, kind: Kind, path: Path, images: int = 6
) -> Path:
    """Write evenly spaced images of ``dataset`` (a ``DenseDataset`` in test mode) as a PNG, with
    ground truth and what is ``predicted``; and up to 48, the same among them, small, into
    ``gallery.zip`` beside it (``probes.pictures.write_gallery``).

    Depth is coloured over one range for all pictures, the middle 96 % of the ground truth shown.
    """
    gallery = evenly(len(dataset), GALLERY)
    large = {gallery[row]: predicted(gallery[row]) for row in evenly(len(gallery), images)}
    draw, legend = drawing(dataset, kind, [image.target for image in large.values()])
    small = (large.get(index) or predicted(index) for index in gallery)
    pictures = (
        (
            image.name,
            {
                "image": image.photo,
                "truth": draw(image.target),
                "prediction": draw(image.prediction),
            },
        )
        for image in small
    )
    write_gallery(path.with_name("gallery.zip"), pictures, legend, flat=kind == "segmentation")
    return write_preview(
        path,
        ("image", "ground truth", "prediction"),
        [[image.photo, draw(image.target), draw(image.prediction)] for image in large.values()],
        [image.name for image in large.values()],
        legend,
    )


@torch.no_grad()
def predict(model: nn.Module, item: Any, kind: Kind) -> Predicted:
    """An item of a ``DenseDataset`` in test mode, and the model's prediction."""
    (sample,) = model.test_step(pseudo_collate([item]))  # type: ignore[operator]
    # mmcv swaps channels for plain "color" only
    photo = mmcv.imread(sample.img_path, "color_ignore_orientation")[..., ::-1]
    target, prediction = (
        sample.get(field).data.cpu().numpy()
        for field in (FIELDS[kind], FIELDS[kind].replace("gt_", "pred_"))
    )
    return Predicted(sample.image, photo, target, prediction)


def drawing(
    dataset: Any, kind: Kind, targets: list[np.ndarray]
) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray | None]:
    """How to colour maps of this kind, and their legend."""
    if kind == "segmentation":
        classes = dataset.metainfo["classes"]
        colours = palette(len(classes))
        legend = class_legend(classes, colours, width=780) if len(classes) <= 40 else None
        return (lambda labels: label_picture(labels[0], colours)), legend
    if kind == "depth":
        metres = np.concatenate([target[target > 0] for target in targets])
        low, high = np.percentile(metres, (2, 98)) if metres.size else (0.0, 1.0)
        return (lambda depth: depth_picture(depth[0], low, high)), scale_bar(low, high)
    return normal_picture, None
