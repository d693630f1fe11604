"""Objects against what is around them, whatever their classes: ground truth is 1 or 0, -1 where
unknown, of any map of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from cliptex_common.metrics import contour_accuracy, region_similarity
from probes.datasets.base import DatasetSpec, PreparedDataset
from probes.dense.computed import Computed
from probes.dense.segmentation import Segmentation
from probes.dense.settings import DenseSettings
from reports.records import Metric

if TYPE_CHECKING:
    from torch import Tensor


class Foreground(Computed):
    """Means over images of the IoU of the objects, and of the F of their contours as DAVIS scores
    them (Perazzi et al., CVPR 2016; up to 0.8 % of the diagonal apart), both 100 % where there is
    none and none is predicted. Pixels of unknown class are neither learned nor scored: see
    ``contour_accuracy``. The loss is the cross-entropy; what has a probability of a half is an
    object."""

    name, level, unknown, version = "foreground", "mid", -1.0, 2
    metrics: ClassVar[Mapping[str, Metric]] = {
        "object_IoU": Metric(label="IoU"),
        "boundary_F": Metric(label="boundary F", shown=True),
    }
    settings = DenseSettings
    declared: ClassVar = {"background": "numbers of the classes that are no objects, such as (0,)"}

    def check_file(self, spec: DatasetSpec, classes: int, path: Path, image: Image.Image) -> None:
        Segmentation().check_file(spec, classes, path, image)

    def reading(self, spec: DatasetSpec, classes: int, settings: Any = None) -> dict[str, Any]:
        return {"background": spec.extra["background"], **Segmentation().reading(spec, classes)}

    def read(  # type: ignore[override]
        self, path: str, background: Sequence[int], ignore_index: int, **options: int
    ) -> np.ndarray:
        labels = Segmentation().read(path, ignore_index=ignore_index, **options)
        is_object = np.isin(labels, background, invert=True).astype(np.float32)
        return np.where(labels == ignore_index, np.float32(self.unknown), is_object)

    def loss(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        from torch.nn import functional as F

        is_known = target >= 0
        entropy = F.binary_cross_entropy_with_logits(
            prediction, target.clamp(min=0), is_known.to(prediction), reduction="sum"
        )
        return entropy, is_known.sum()

    def predict(self, output: Tensor) -> Tensor:
        return output[:, 0].sigmoid()

    def compare(self, prediction: Tensor, target: Tensor) -> dict[str, Any]:
        is_known = (target >= 0)[0].cpu().numpy()
        is_object, predicted = ((each >= 0.5)[0].cpu().numpy() for each in (target, prediction))
        similarity = region_similarity(is_object[is_known], predicted[is_known])
        values = similarity, contour_accuracy(is_object, predicted, is_known)
        return {name: 100 * value for name, value in zip(self.metrics, values, strict=True)}

    def best_constant(self, pixels: np.ndarray, data: PreparedDataset) -> Any:
        return np.float32(1)

    def constant_name(self, constant: Any, data: PreparedDataset) -> str:
        return "'object'"

    def described(self, maps: np.ndarray) -> str:
        values = maps[0][self.counted(maps)]
        return (
            f"{100 * (values >= 0.5).mean() if values.size else 0:.3g} % of the pixels are objects"
        )
