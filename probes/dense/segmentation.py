"""Semantic segmentation: ground truth is (H, W) class indices or ``ignore_index``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from PIL import Image

from cliptex_common.errors import UserError
from cliptex_common.images import class_legend, label_picture, palette, read_labels
from cliptex_common.metrics import Arrays, mean_of_classes, ratio
from cliptex_common.settings import settings_dataclass
from probes.datasets.base import DatasetSpec, PreparedDataset
from probes.dense.settings import LOSS, DenseSettings
from probes.dense.task import DenseTask, Drawing, cropped
from reports.per_image import ImageScores, class_scores, class_traits
from reports.records import Metric

if TYPE_CHECKING:
    from torch import Tensor

LEGEND = 40  # classes at most of a legend
AREAS = ("intersection", "prediction", "label")


@settings_dataclass
class SegmentationSettings(DenseSettings):
    """Defaults: mmseg's 512 px, 40k iterations of 16 images, scale 0.5–2.

    Attributes:
        loss_mean: over the ``labelled`` pixels, or ``all``, so that those without a label shrink
            the loss of a crop.
    """

    loss_mean: Annotated[Literal["labelled", "all"], LOSS] = "labelled"


class Segmentation(DenseTask):
    """One class a pixel, learned by a loss of mmseg's; its statistics are areas of classes.

    Attributes:
        ignore_index: label of pixels that are neither learned nor scored.
        hungarian: score ``mIoU_hungarian`` too; see ``hungarian_miou``.
        crop: that is scored, see ``cropped``.
    """

    name, field = "segmentation", "sem_seg"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "mIoU": Metric(),
        "mAcc": Metric(shown=True),
        "aAcc": Metric(),
    }
    settings = SegmentationSettings
    has_classes = True
    ignore_index = 255
    hungarian = False
    crop: Sequence[Any] | None = None

    def check_dataset(self, data: PreparedDataset) -> None:
        if len(data.classes) < 2:
            raise UserError(
                f"dataset {data.spec.name!r} has one class; segmentation needs 2 or more"
            )

    def check_file(self, spec: DatasetSpec, classes: int, path: Path, image: Image.Image) -> None:
        """Every stored value is a class (after ``label_offset``), ignored or unlabelled."""
        if image.mode not in ("L", "P", "1") and not image.mode.startswith("I"):
            raise UserError(
                f"{path} is a colour picture ({image.mode}); {spec.name} stores a class index a"
                " pixel"
            )
        stored = np.unique(np.asarray(image).astype(np.int64))
        label = stored + spec.label_offset
        is_class = (label >= 0) & (label < classes)
        is_unlabelled = (stored == spec.ignore_index) | (stored < -spec.label_offset)
        invalid = stored[~(is_class | is_unlabelled)]
        if len(invalid):
            first, last = -spec.label_offset, classes - 1 - spec.label_offset
            raise UserError(
                f"{path} has label {', '.join(map(str, invalid[:5]))}; {spec.name} stores its"
                f" {classes} classes as {first}-{last} and {spec.ignore_index} for ignore"
            )

    def reading(self, spec: DatasetSpec, classes: int, settings: Any = None) -> dict[str, Any]:
        offset, ignore = spec.label_offset, spec.ignore_index
        return {"classes": classes, "label_offset": offset, "ignore_index": ignore}

    def read(  # type: ignore[override]
        self, path: str, classes: int, label_offset: int, ignore_index: int
    ) -> np.ndarray:
        return read_labels(path, label_offset, ignore_index, classes)

    def padding(self, spec: DatasetSpec) -> float:
        return spec.ignore_index

    def stored_type(self, spec: DatasetSpec, classes: int) -> str:
        return "uint8" if classes <= 255 and 0 <= spec.ignore_index <= 255 else "uint16"

    def objective(self, settings: Any, spec: DatasetSpec, classes: int) -> dict[str, Any]:
        loss = {
            "type": "CrossEntropyLoss",
            "use_sigmoid": False,
            "avg_non_ignore": settings.loss_mean == "labelled",
        }
        return {"num_classes": classes, "ignore_index": spec.ignore_index, "loss_decode": loss}

    def evaluator(self, settings: Any, spec: DatasetSpec) -> dict[str, Any]:
        options = {"ignore_index": spec.ignore_index}
        if area := getattr(settings, "test_area", ()):  # probes on patches have none
            options["crop"] = area
        return {"type": "TaskScores", "task": "segmentation", **options}

    def to_average(self, output: Tensor) -> Tensor:
        return output.softmax(dim=1)

    def decode_output(self, output: Tensor) -> Tensor:
        """(N, classes, H, W) logits → (N, 1, H, W) int64 class indices."""
        return output.max(dim=1, keepdim=True).indices  # argmax, in a quarter of its time

    def score(self, prediction: Tensor, target: Tensor) -> dict[str, Any]:
        from cliptex_common.metrics import class_areas, confusion

        if self.crop:
            prediction, target = (cropped(each, self.crop) for each in (prediction, target))
        counts = confusion(prediction[0], target[0], len(self.classes), self.ignore_index)
        if self.hungarian:
            self.pooled = counts if self.pooled is None else self.pooled + counts
        return class_areas(counts)

    def metrics_of(self, arrays: Arrays, notes: list[str]) -> dict[str, float]:
        metrics, ious = segmentation_scores(arrays)
        if self.pooled is not None:
            metrics["mIoU_hungarian"] = hungarian_miou(self.pooled)
        names = self.classes
        absent = [name for name, iou in zip(names, ious, strict=True) if np.isnan(iou)]
        if absent:
            more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
            notes.append(
                f"mIoU is over {len(names) - len(absent)} of {len(names)} classes; absent from"
                f" labels and predictions: {', '.join(absent[:8])}{more}"
            )
        if len(names) <= 25:
            scores = [f"{name} {iou:.1f}" for name, iou in zip(names, ious, strict=True)]
            notes.append(f"IoU by class: {', '.join(scores)}")
        return metrics

    def summary(self, arrays: Arrays, weights: np.ndarray) -> dict[str, Any]:
        """As mmseg (and the PASCAL VOC challenge): areas are summed over the set first; mIoU is the
        mean over the classes present in ground truth or prediction, mAcc over those present in
        ground truth, aAcc the share of right pixels.

        Args:
            arrays: ``intersection``, ``prediction``, ``label`` in pixels, each (N, classes).
        """
        hit, true = (
            weights @ arrays[name].astype(np.float64) for name in ("intersection", "label")
        )
        return {
            "mIoU": mean_of_classes(class_ious(arrays, weights)),
            "mAcc": mean_of_classes(100 * ratio(hit, true)),
            "aAcc": 100 * ratio(hit.sum(axis=1), true.sum(axis=1)),
        }

    def image_scores(self, images: tuple[str, ...], arrays: Arrays) -> ImageScores:
        (ious,) = class_ious(arrays, np.ones((1, len(images))))
        label = arrays["label"].astype(np.float64)
        classes = class_scores("IoU", arrays, label, ious)

        def of_classes() -> dict[str, np.ndarray]:
            each = _ious(*(arrays[name].astype(np.float64) for name in AREAS))
            return dict(zip(classes.names, each.T, strict=True))

        def traits() -> dict[str, np.ndarray]:
            area = 100 * ratio(label, label.sum(axis=1, keepdims=True))
            median = np.ma.median(np.ma.masked_where(~(area > 0), area), axis=1)
            sizes = {"size of objects (median area of its classes)": median.filled(np.nan)}
            return sizes | class_traits(classes, area, "area")

        return replace(
            super().image_scores(images, arrays),
            score_name="mIoU of the image",
            classes=classes,
            of_classes=of_classes,
            traits=traits,
        )

    def best_constant(self, pixels: np.ndarray, data: PreparedDataset) -> Any:
        """The most frequent class."""
        labels = pixels[pixels != data.spec.ignore_index]
        return int(np.bincount(labels, minlength=len(data.classes)).argmax())

    def constant_score(self, constant: Any, per_image: Mapping[str, np.ndarray]) -> float | None:
        """The IoU of its class is its share of the pixels, that of other classes is 0."""
        areas = np.asarray(per_image["label"]).sum(axis=0)
        return 100 * areas[constant] / max(areas.sum(), 1) / max(np.count_nonzero(areas), 1)

    def constant_name(self, constant: Any, data: PreparedDataset) -> str:
        return f"{data.classes[constant]!r}"

    def counted(self, maps: np.ndarray) -> np.ndarray:
        return maps[0] != self.ignore_index

    def described(self, maps: np.ndarray) -> str:
        """The classes by their share of the pixels that count, the largest first."""
        labels, counts = np.unique(maps[0][self.counted(maps)], return_counts=True)
        order, total = np.argsort(-counts), max(counts.sum(), 1)
        return ", ".join(
            f"{self.classes[labels[row]]} {100 * counts[row] / total:.3g} %" for row in order
        )

    def drawing(self, classes: Sequence[str], targets: Sequence[np.ndarray]) -> Drawing:
        colours = palette(len(classes))
        legend = class_legend(classes, colours, width=780) if len(classes) <= LEGEND else None
        return (lambda labels: label_picture(labels[0], colours)), legend


def class_ious(arrays: Arrays, weights: np.ndarray) -> np.ndarray:
    """(R, classes) IoU in percent of each class in each set; NaN where it is in neither ground
    truth nor prediction. See ``Segmentation.summary``."""
    return _ious(*(weights @ arrays[name].astype(np.float64) for name in AREAS))


def _ious(hit: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    return 100 * ratio(hit, predicted + true - hit)


def segmentation_scores(areas: Mapping[str, Any]) -> tuple[dict[str, float], np.ndarray]:
    """mIoU, mAcc and aAcc in percent, and the IoU of each class (NaN where a class is in neither
    ground truth nor prediction); see ``Segmentation.summary``.

    Args:
        areas: ``intersection``, ``prediction``, ``label`` in pixels, each (classes,) or (images,
            classes), tensors or arrays.
    """
    arrays = {name: np.atleast_2d(areas[name]) for name in AREAS}
    weights = np.ones((1, len(arrays["label"])))
    scores = Segmentation().summary(arrays, weights)
    return {name: float(value[0]) for name, value in scores.items()}, class_ious(arrays, weights)[0]


def hungarian_miou(counts: Tensor) -> float:
    """mIoU in percent of the best one-to-one assignment of predicted to true classes, over all
    classes: one that does not occur counts as 0 (Open-Hummingbird's metric).

    Args:
        counts: (classes, classes) pixels by label and prediction.
    """
    from scipy.optimize import linear_sum_assignment

    hit = counts.cpu().double()
    union = hit.sum(dim=0) + hit.sum(dim=1, keepdim=True) - hit
    iou = 100 * hit / union.clamp_min(1)
    return float(iou[linear_sum_assignment(iou.numpy(), maximize=True)].mean())
