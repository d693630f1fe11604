"""The images of a split patch by patch, and the scores of predicted patches at the resolution of
the labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

# first: it gives mmcv the operators that mmseg's import asks for
import probes.runner.bridge as bridge

# isort: split
import mmcv
import torch
from mmengine.registry import DefaultScope
from torch import Tensor
from torch.nn.functional import normalize

from backbones.base import Backbone
from backbones.pyramid import resize_concat
from probes.base import Context, TaskResult
from probes.datasets.base import Split
from probes.dense.cached import CachedDense
from probes.dense.config import dataset_config, native_stride, preprocessor
from probes.dense.constant import constant_note
from probes.dense.data import test_pipeline
from probes.dense.metrics import SegmentationScores
from probes.dense.preview import Predicted, draw_preview
from probes.features.budget import CacheFull
from probes.features.cost import EncodeRun
from probes.features.store import Builder, get_or_build
from probes.pictures import GALLERY, evenly


@dataclass(frozen=True)
class Patches:
    """An image's patches.

    Attributes:
        index: of the image in its split.
        features: (rows × columns, D) float32 on the device; cells of padding alone are left out.
        grid: (rows, columns).
        extent: rows and columns that the image itself fills, which may be fractions.
        size: (height, width) of its label map.
    """

    index: int
    features: Tensor
    grid: tuple[int, int]
    extent: tuple[float, float]
    size: tuple[int, int]


class DenseEncoder(torch.nn.Module):
    """Patches in the space of texts; see ``Backbone.encode_dense``."""

    def __init__(self, backbone: Backbone, precision: str) -> None:
        super().__init__()
        self.backbone, self.precision = backbone, precision

    def forward(self, images: Tensor) -> tuple[Tensor]:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return (self.backbone.encode_dense(images).float(),)


class PatchImages:
    """A split of a segmentation dataset, each image complete, with its short side at ``size``.

    Args:
        encoder: images → (map,), which is not cached; None for the backbone's own feature maps,
            which are.
    """

    def __init__(self, context: Context, split: Split, encoder: DenseEncoder | None = None) -> None:
        settings, backbone, data = context.settings, context.backbone, context.data
        self.context, self.encoder = context, encoder
        self.strides, self.stride = backbone.strides[-1:], None
        out_indices = None
        if encoder is None:
            is_plain = len(set(backbone.strides)) == 1
            if settings.layers == "last" or (settings.layers == "auto" and is_plain):
                out_indices = [-1]
            else:
                self.strides = backbone.strides
            self.stride = settings.feature_stride or native_stride(self.strides)
        frozen = {
            "type": "FrozenBackbone",
            "precision": settings.precision,
            "out_indices": out_indices,
            **context.backbone_config,
        }
        bridge.share(context.backbone_config, backbone)
        pipeline = test_pipeline(data.spec, len(data.classes), settings.size)
        with DefaultScope.overwrite_default_scope("mmseg"):
            self.dataset = CachedDense(
                dataset_config(data, split, pipeline, test_mode=True),
                {"backbone": frozen, "data_preprocessor": preprocessor(backbone)},
                "fp32" if encoder else settings.cache,
                0,
                0.0,
                context.device.type,
            )
        self.items: Sequence[int] = (split == "train" and data.train_indices) or range(
            len(self.dataset)
        )

    def __len__(self) -> int:
        return len(self.items)

    def walk(self, run: EncodeRun) -> Iterator[Patches]:
        """All images; in their order where their features are cached.

        Raises:
            UserError, NonFiniteLoss: see ``FeatureDataset.encoded``.
        """
        dataset, store = self.dataset, None
        build: Builder
        if self.encoder is not None:
            build = partial(dataset.encoded, frozen=self.encoder, sizes=dataset.sizes(), run=run)
        else:
            ((key, build),) = dataset.keys(run)
            message = f"waiting for the process that encodes {dataset.name}"
            with suppress(CacheFull), bridge.isolated_rng(), run.cost.phase("encode"):
                store = get_or_build(key, build, wait=lambda: run.progress.start(message, 1))
        if store is None:
            for index, maps, metadata in run.cost.timed("encode", build([self.items])):
                yield self._patches(index, maps, metadata)
            return
        with closing(store):
            for index in self.items:
                yield self._patches(index, store[index], store.metadata(index))

    def labels(self, patches: Patches) -> Tensor:
        """(H, W) int64."""
        info = self.dataset.source.get_data_info(patches.index)
        labels = self.dataset.load_ground_truth({**info, "ori_shape": patches.size})
        return torch.from_numpy(labels.astype("int64"))

    def _patches(self, index: int, maps: Sequence[Tensor], metadata: Mapping[str, Any]) -> Patches:
        batches = [features.to(self.context.device).float()[None] for features in maps]
        if len(batches) > 1:
            batches = [normalize(features, dim=1) for features in batches]
        cells = batches[0][0]
        if self.stride is not None:
            cells = resize_concat(batches, self.strides, self.stride)[0]
        extent = tuple(
            count * int(side) / int(padded)
            for count, side, padded in zip(
                cells.shape[1:], metadata["img_shape"], metadata["pad_shape"], strict=False
            )
        )
        rows, columns = map(math.ceil, extent)
        height, width = (int(side) for side in metadata["ori_shape"][:2])
        return Patches(
            index,
            cells[:, :rows, :columns].flatten(1).T.contiguous(),
            (rows, columns),
            (extent[0], extent[1]),
            (height, width),
        )


def class_shares(
    labels: Tensor, patches: Patches, classes: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """The part of each patch's labelled pixels that each class has.

    Pixels are those of the label map: nothing is resized.

    Args:
        labels: (H, W) int64.
    Returns:
        (rows × columns, classes) float32, and (rows × columns,) whether at least half of the
        patch's pixels are labelled.
    """
    rows, columns = (
        ((torch.arange(side) + 0.5) / side * part).long().clamp_max(count - 1)
        for side, part, count in zip(labels.shape, patches.extent, patches.grid, strict=True)
    )
    cell = rows[:, None] * patches.grid[1] + columns
    labels = torch.where(labels == ignore_index, classes, labels)
    cells = patches.grid[0] * patches.grid[1]
    flat = (cell * (classes + 1) + labels).flatten()
    counts = torch.bincount(flat, minlength=cells * (classes + 1)).view(cells, classes + 1).float()
    labelled = counts[:, :classes].sum(dim=1)
    is_labelled = (labelled > 0) & (2 * labelled >= counts.sum(dim=1))
    return counts[:, :classes] / labelled.clamp_min(1)[:, None], is_labelled


def label_map(scores: Tensor, patches: Patches) -> Tensor:
    """(rows × columns, C) scores of patches → (H, W) int64: the best class of each pixel.

    Between patches scores are bilinear, by two products with small matrices.
    """
    down, across = (
        _interpolation(side, cells, part).to(scores)
        for side, cells, part in zip(patches.size, patches.grid, patches.extent, strict=True)
    )
    maps = scores.T.unflatten(1, patches.grid)
    return (down @ maps @ across.T).argmax(dim=0)


def _interpolation(pixels: int, cells: int, extent: float) -> Tensor:
    """(pixels, cells): the weights of cells at each pixel's centre.

    Beyond the outer centres the outer cell's value holds.
    """
    centres = (torch.arange(pixels, dtype=torch.float64) + 0.5) / pixels * extent - 0.5
    positions = centres.clamp(0, cells - 1)
    lower = positions.floor().long().clamp_max(max(cells - 2, 0))
    share = positions - lower
    weights = torch.zeros(pixels, cells, dtype=torch.float64)
    weights.scatter_(1, lower[:, None], (1 - share)[:, None])
    return weights.scatter_add_(1, (lower + 1).clamp_max(cells - 1)[:, None], share[:, None])


def evaluate(
    context: Context, images: PatchImages, predict: Callable[[Patches], Tensor]
) -> TaskResult:
    """Score predictions on ``val``; the notes are those of the scores.

    Args:
        predict: patches of an image → scores (rows × columns, classes).
    """
    data, metric = context.data, SegmentationScores(context.data.spec.ignore_index)
    metric.dataset_meta = images.dataset.metainfo
    gallery = set(evenly(len(images), GALLERY))
    scores: dict[int, dict[str, Any]] = {}
    pictures: dict[int, Predicted] = {}
    context.progress.start(f"segmenting {data.spec.name}", len(images))
    for patches in images.walk(EncodeRun.of(context)):
        labels, prediction = images.labels(patches), label_map(predict(patches), patches).cpu()
        info = images.dataset.source.get_data_info(patches.index)
        sample = {
            "image": info["image"],
            "gt_sem_seg": {"data": labels[None]},
            "pred_sem_seg": {"data": prediction[None]},
        }
        scores[patches.index] = {"image": info["image"], **metric.score(sample)}
        if patches.index in gallery:
            photo = mmcv.imread(info["img_path"], "color_ignore_orientation")[..., ::-1]
            maps = [each[None].numpy().astype("uint16") for each in (labels, prediction)]
            pictures[patches.index] = Predicted(info["image"], photo, *maps)
        context.progress.advance()
    metrics = metric.compute_metrics([scores[index] for index in range(len(images))])
    notes = list(metric.notes)
    if "train" in data.samples:
        evaluator = {"type": "SegmentationScores", "ignore_index": data.spec.ignore_index}
        notes += constant_note(data, evaluator, metrics, metric.per_image)
    preview = draw_preview(
        pictures.__getitem__, images.dataset, "segmentation", context.work_dir / "preview.png"
    )
    return TaskResult(metrics, metric.per_image, preview=preview, notes=notes)
