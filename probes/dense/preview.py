"""The preview of a dense task: a few validation images with ground truth and prediction, always the
same ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmcv
import numpy as np

from cliptex_common.dense_maps.pictures import spread_indices, write_grid
from probes.dense.metrics import TaskScores
from probes.dense.tasks import DENSE_TASKS
from probes.pictures import GALLERY_IMAGES, write_gallery

IMAGES = 6  # of the preview


@dataclass
class Predicted:
    """One validation image, with ground truth and prediction (channels, H, W)."""

    name: str
    photo: np.ndarray
    target: np.ndarray
    prediction: np.ndarray


def draw_preview(
    predicted: Callable[[int], Predicted], dataset: Any, kind: str, path: Path
) -> Path:
    """Write evenly spaced images of ``dataset`` (a ``DenseDataset`` in test mode) as a PNG, with
    ground truth and what is ``predicted``; and up to 48, the same among them, small, into
    a gallery beside it (``probes.pictures.write_gallery``)."""
    task, classes = DENSE_TASKS.find(kind), dataset.metainfo["classes"]
    gallery = spread_indices(len(dataset), GALLERY_IMAGES)
    large = {gallery[row]: predicted(gallery[row]) for row in spread_indices(len(gallery), IMAGES)}
    draw, legend = task.drawing(classes, [image.target for image in large.values()])

    def panels(image: Predicted) -> dict[str, np.ndarray]:
        target, prediction = draw(image.target), draw(image.prediction)
        return {"image": image.photo, "truth": target, "prediction": prediction}

    small = (large.get(index) or predicted(index) for index in gallery)
    pictures = ((image.name, panels(image)) for image in small)
    write_gallery(path.parent, pictures, legend, flat=task.has_classes)
    return write_grid(
        path,
        ("image", "ground truth", "prediction"),
        [[*panels(image).values()] for image in large.values()],
        [image.name for image in large.values()],
        legend,
    )


def scored(scores: TaskScores, dataset: Any, index: int) -> Predicted:
    """An image of a gallery of ``dataset`` as it was scored."""
    info = dataset.get_data_info(index)
    # mmcv swaps channels for plain "color" only
    photo = mmcv.imread(info["img_path"], "color_ignore_orientation")[..., ::-1]
    prediction, target = (each.cpu().numpy() for each in scores.shown[info["image"]])
    return Predicted(info["image"], photo, target, prediction)
