"""The panel of a dense task: a few validation images with truth and prediction, always the same ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from torch import nn

from probes.datasets.base import Kind
from probes.dense_data import FIELDS
from probes.panels import class_legend, depth_picture, label_picture, normal_picture, palette, scale_bar, write_panel


@torch.no_grad()
def draw_panel(model: nn.Module, dataset: Any, kind: Kind, path: Path, images: int = 6) -> Path:
    """Predict ``images`` evenly spaced images of ``dataset`` (a ``DenseDataset`` in test mode) and write the panel's
    PNG.

    Depth is coloured over one range for all pictures, the middle 96 % of the truths shown.
    """
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(images, len(dataset))).round().astype(int))
    names: list[str] = []
    photos: list[np.ndarray] = []
    truths: list[np.ndarray] = []
    predictions: list[np.ndarray] = []
    for index in chosen:
        (sample,) = model.test_step(pseudo_collate([dataset[int(index)]]))  # type: ignore[operator]
        names.append(sample.image)
        # mmcv swaps channels for plain "color" only
        photos.append(mmcv.imread(sample.img_path, "color_ignore_orientation")[..., ::-1])
        for field, values in ((FIELDS[kind], truths), (FIELDS[kind].replace("gt_", "pred_"), predictions)):
            values.append(sample.get(field).data.cpu().numpy())

    legend = None
    if kind == "segmentation":
        classes = dataset.metainfo["classes"]
        colours = palette(len(classes))
        legend = class_legend(classes, colours, width=780) if len(classes) <= 40 else None
        drawn = [
            [label_picture(values[0], colours) for values in pair] for pair in zip(truths, predictions, strict=True)
        ]
    elif kind == "depth":
        known = np.concatenate([truth[truth > 0] for truth in truths])
        low, high = np.percentile(known, (2, 98)) if known.size else (0.0, 1.0)
        legend = scale_bar(low, high)
        drawn = [
            [depth_picture(values[0], low, high) for values in pair] for pair in zip(truths, predictions, strict=True)
        ]
    else:
        drawn = [[normal_picture(values) for values in pair] for pair in zip(truths, predictions, strict=True)]
    rows = [[photo, *pair] for photo, pair in zip(photos, drawn, strict=True)]
    return write_panel(path, ("image", "truth", "prediction"), rows, names, legend)
