"""The images of a split patch by patch, and how what is said of patches is scored at the label's
own resolution."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from probes.base import Context, Probe, TaskResult
from probes.datasets.base import Split
from probes.dense.cached import CachedDense
from probes.dense.config import dataset_config, native_stride, preprocessor
from probes.dense.constant import constant_note
from probes.dense.data import test_pipeline
from probes.dense.metrics import SegmentationScores
from probes.dense.preview import Predicted, draw_preview
from probes.features.budget import CacheFull
from probes.features.cost import EncodeRun
from probes.features.store import get_or_build
from probes.pictures import GALLERY, evenly


@dataclass(frozen=True)
class Patches:
    """An image's patches.

    Attributes:
        index: of the image in its split.
        features: (rows × columns, D) float32 on the device; cells of padding alone are left out.
        grid: (rows, columns).
        shown: rows and columns that the image itself fills, which may be fractions.
        size: (height, width) of its label map.
    """

    index: int
    features: Tensor
    grid: tuple[int, int]
    shown: tuple[float, float]
    size: tuple[int, int]


class PatchImages:
    """A split of a segmentation dataset, each image whole, with its short side at ``size``.

    Args:
        encoder: images → (map,) in the place of the backbone's own feature maps, which are kept;
            what it gives is not.
    """

    def __init__(self, context: Context, split: Split, encoder: Encoder | None = None) -> None:
        settings, backbone, data = context.settings, context.backbone, context.data
        self.context, self.encoder = context, encoder
        pipeline = test_pipeline(data.spec, len(data.classes), settings.size)
        last = encoder is None and (
            settings.layers == "last"
            or (settings.layers == "auto" and len(set(backbone.strides)) == 1)
        )
        self.strides = backbone.strides[-1:] if last or encoder else backbone.strides
        self.stride = None if encoder else settings.feature_stride or native_stride(self.strides)
        frozen = {
            "type": "FrozenBackbone",
            "precision": settings.precision,
            "out_indices": [-1] if last else None,
            **context.backbone_config,
        }
        bridge.share(context.backbone_config, backbone)
        with DefaultScope.overwrite_default_scope("mmseg"):
            self.dataset = CachedDense(
                dataset_config(data, split, pipeline, test_mode=True),
                {"backbone": frozen, "data_preprocessor": preprocessor(backbone)},
                "fp32" if encoder else settings.cache,
                0,
                0.0,
                context.device.type,
            )
        self.items: Sequence[int] = (split == "train" and data.places) or range(len(self.dataset))

    def __len__(self) -> int:
        return len(self.items)

    def walk(self, run: EncodeRun) -> Iterator[Patches]:
        """All images; in their order where their features are kept.

        Raises:
            UserError, NonFiniteLoss: see ``FeatureDataset.encoded``.
        """
        items = [self.items]
        if self.encoder is not None:
            found = self.dataset.encoded(
                items, frozen=self.encoder, sizes=self.dataset.sizes(), run=run
            )
            yield from (self._patches(*one) for one in _timed(found, run))
            return
        ((key, build),) = self.dataset.keys(run)
        waiting = f"waiting for the process that encodes {self.dataset.name}"
        try:
            with bridge.isolated_rng(), run.cost.timed():
                store = get_or_build(key, build, wait=lambda: run.progress.start(waiting, 1))
        except CacheFull:
            yield from (self._patches(*one) for one in _timed(build(items), run))
            return
        try:
            for index in self.items:
                yield self._patches(index, store[index], store.metadata(index))
        finally:
            store.close()

    def truth(self, patches: Patches) -> Tensor:
        """(H, W) int64 labels."""
        info = self.dataset.source.get_data_info(patches.index)
        found = self.dataset.load_truth({**info, "ori_shape": patches.size})
        return torch.from_numpy(found.astype("int64"))

    def _patches(self, index: int, maps: Sequence[Tensor], metadata: Mapping[str, Any]) -> Patches:
        each = [one.to(self.context.device).float()[None] for one in maps]
        if len(each) > 1:
            each = [normalize(one, dim=1) for one in each]
        cells = (
            each[0][0] if self.stride is None else resize_concat(each, self.strides, self.stride)[0]
        )
        pad = metadata.get("pad_shape", metadata["img_shape"])
        sides = zip(cells.shape[1:], metadata["img_shape"], pad, strict=False)
        shown = tuple(cell * int(side) / int(padded) for cell, side, padded in sides)
        rows, columns = (-int(-part // 1) for part in shown)
        height, width = (int(side) for side in metadata["ori_shape"][:2])
        return Patches(
            index,
            cells[:, :rows, :columns].flatten(1).T.contiguous(),
            (rows, columns),
            (shown[0], shown[1]),
            (height, width),
        )


def _timed(items: Iterable[Any], run: EncodeRun) -> Iterator[Any]:
    """``items``, the making of which counts as encoding."""
    left = iter(items)
    while True:
        with run.cost.timed():
            one = next(left, None)
        if one is None:
            return
        yield one


class Encoder(torch.nn.Module):
    """Patches in the space of texts; see ``Backbone.encode_dense``."""

    def __init__(self, backbone: Backbone, precision: str) -> None:
        super().__init__()
        self.backbone, self.precision = backbone, precision

    def forward(self, images: Tensor) -> tuple[Tensor]:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return (self.backbone.encode_dense(images).float(),)


def shares(
    truth: Tensor, patches: Patches, classes: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """What part of each patch's labelled pixels each class has, (rows × columns, classes) float32,
    and (rows × columns,) whether at least half of its pixels are labelled. Pixels are those of the
    label map: nothing is resized.

    Args:
        truth: (H, W) int64 labels.
    """
    rows, columns = (
        ((torch.arange(side) + 0.5) / side * part).long().clamp_max(cells - 1)
        for side, part, cells in zip(truth.shape, patches.shown, patches.grid, strict=True)
    )
    cell = rows[:, None] * patches.grid[1] + columns
    labels = torch.where(truth == ignore_index, classes, truth)
    cells = patches.grid[0] * patches.grid[1]
    counts = torch.bincount(
        (cell * (classes + 1) + labels).flatten(), minlength=cells * (classes + 1)
    )
    counts = counts.view(cells, classes + 1).float()
    labelled = counts[:, :classes].sum(dim=1)
    return counts[:, :classes] / labelled.clamp_min(1)[:, None], (labelled > 0) & (
        2 * labelled >= counts.sum(dim=1)
    )


def labels_of(scores: Tensor, patches: Patches) -> Tensor:
    """(rows × columns, C) scores of patches → (H, W) int64: the class that is highest at each
    pixel; between patches they are bilinear, by two products with small matrices."""
    down, across = (
        _interpolation(side, cells, part).to(scores)
        for side, cells, part in zip(patches.size, patches.grid, patches.shown, strict=True)
    )
    maps = scores.T.unflatten(1, patches.grid)
    return (down @ maps @ across.T).argmax(dim=0)


def _interpolation(pixels: int, cells: int, shown: float) -> Tensor:
    """(pixels, cells): the weights of cells at each pixel's centre; beyond the outer centres the
    outer cell's value holds."""
    place = ((torch.arange(pixels, dtype=torch.float64) + 0.5) / pixels * shown - 0.5).clamp(
        0, cells - 1
    )
    lower = place.floor().long().clamp_max(max(cells - 2, 0))
    share = place - lower
    weights = torch.zeros(pixels, cells, dtype=torch.float64)
    weights.scatter_(1, lower[:, None], (1 - share)[:, None])
    return weights.scatter_add_(1, (lower + 1).clamp_max(cells - 1)[:, None], share[:, None])


def evaluate(
    probe: Probe,
    context: Context,
    images: PatchImages,
    run: EncodeRun,
    predict: Callable[[Patches], Tensor],
) -> TaskResult:
    """Score what ``predict`` says of the patches of each image of ``val``, (rows × columns,
    classes).

    The result has no costs yet; its notes are those of the scores.
    """
    data, metric = context.data, SegmentationScores(context.data.spec.ignore_index)
    metric.dataset_meta = images.dataset.metainfo
    gallery = set(evenly(len(images), GALLERY))
    found: dict[int, dict[str, Any]] = {}
    shown: dict[int, Predicted] = {}
    context.progress.start(f"segmenting {data.spec.name}", len(images))
    for patches in images.walk(run):
        truth, prediction = images.truth(patches), labels_of(predict(patches), patches).cpu()
        info = images.dataset.source.get_data_info(patches.index)
        sample = {
            "image": info["image"],
            "gt_sem_seg": {"data": truth[None]},
            "pred_sem_seg": {"data": prediction[None]},
        }
        found[patches.index] = {"image": info["image"], **metric.score(sample)}
        if patches.index in gallery:
            photo = mmcv.imread(info["img_path"], "color_ignore_orientation")[..., ::-1]
            kept = [each[None].numpy().astype("uint16") for each in (truth, prediction)]
            shown[patches.index] = Predicted(info["image"], photo, *kept)
        context.progress.advance()
    metrics = metric.compute_metrics([found[index] for index in range(len(images))])
    notes = list(metric.notes)
    if "train" in data.samples:
        evaluator = {"type": "SegmentationScores", "ignore_index": data.spec.ignore_index}
        notes += constant_note(probe, data, evaluator, metrics, metric.per_image)
    preview = draw_preview(
        lambda index: shown[index], images.dataset, "segmentation", context.work_dir / "preview.png"
    )
    return TaskResult(
        {name: metrics[name] for name in probe.metrics},
        metric.per_image,
        preview=preview,
        notes=notes,
    )
