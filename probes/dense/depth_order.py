"""Order of depths: which of two points is nearer, whatever the scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from cliptex_common.images import scalar_picture
from cliptex_common.metrics import Arrays
from cliptex_common.settings import Axis, settings_dataclass
from probes.datasets.base import DatasetSpec
from probes.dense.depth import Depth
from probes.dense.settings import DenseSettings, FactorRange
from probes.dense.task import DenseTask, Drawing, cropped
from reports.records import FLOOR, Metric

if TYPE_CHECKING:
    from torch import Tensor

PAIRS = 2000  # of points of an image, in a loss and in a score
BOUNDS = ("min_depth", "max_depth")


@settings_dataclass
class DepthOrderSettings(DenseSettings):
    """Defaults: those of depth, whose images are not scaled at random."""

    size: Annotated[NonNegativeInt, Axis()] = 480
    scale_range: FactorRange = (1.0, 1.0)
    max_iters: Annotated[PositiveInt, Axis()] = 20_000


class DepthOrder(DenseTask):
    """A number a pixel, less for nearer points; its statistics are the metrics of each image.

    As in Chen et al., NeurIPS 2016, and VisBench's relative depth a head learns the order of pairs
    of points, by ``log(1 + exp(near - far))``, and the score is the share of pairs in the right
    order (ties count half). Ground truth is metres, from any dataset with depth; the pairs are
    evenly distributed over its valid pixels, the same for every backbone, without any of equal
    depth or one outside the dataset's range and crop. Guessing, or one number for all pixels, has
    50 %; how far the lower point is the nearer one is beside the score, since that needs no
    features either.
    """

    name, field, level, loss_name = "depth-order", "order_map", "mid", "loss_order"
    min_depth, max_depth = 0.0, float("inf")
    crop: Sequence[Any] | None = None
    metrics: ClassVar[Mapping[str, Metric]] = {
        "ordinal_accuracy": Metric(label="order of pairs"),
        "ordinal_vertical": Metric(label="floor: the lower point is nearer", shown=True),
    }
    settings = DepthOrderSettings
    declared = Depth.declared
    check_file, reading, read = Depth.check_file, Depth.reading, Depth.read  # type: ignore[assignment]

    def objective(self, settings: Any, spec: DatasetSpec, classes: int) -> dict[str, Any]:
        bounds = {name: spec.extra[name] for name in BOUNDS}
        return {"loss_decode": {"type": "TaskObjective", "task": self.name, **bounds}}

    def evaluator(self, settings: Any, spec: DatasetSpec) -> dict[str, Any]:
        bounds = {name: spec.extra[name] for name in BOUNDS}
        crop = settings.test_area or spec.extra.get("crop")
        return {"type": "TaskScores", "task": self.name, **bounds, "crop": crop}

    def pairs(self, target: Tensor) -> Tensor:
        """Numbers (2, P) of pixels of a map (H, W) in metres: the nearer ones, and the farther;
        none where no depth is inside the dataset's range."""
        import torch

        metres = target.flatten()
        valid = ((metres > self.min_depth) & (metres < self.max_depth)).nonzero()[:, 0]
        if not len(valid):
            return valid.new_zeros(2, 0)
        shares = torch.rand(2, PAIRS, generator=torch.Generator().manual_seed(0))
        pixels = valid[(shares.to(valid.device) * len(valid)).long().clamp(max=len(valid) - 1)]
        depths = metres[pixels]
        pixels = torch.where(depths[0] <= depths[1], pixels, pixels.flip(0))
        return pixels[:, depths[0] != depths[1]]

    def loss(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        from torch.nn.functional import softplus

        total, count = prediction.sum() * 0.0, target.new_zeros(())
        for values, metres in zip(prediction, target, strict=True):
            near, far = values.flatten()[self.pairs(metres)]
            total, count = total + softplus(near - far).sum(), count + len(near)
        return total, count

    def score(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        import torch

        values, metres = (cropped(each[0], self.crop) for each in (prediction, target))
        near, far = self.pairs(metres)
        rows = torch.arange(metres.numel(), device=metres.device) // metres.shape[1]
        return {
            "ordinal_accuracy": _in_order(values.flatten()[near], values.flatten()[far]),
            "ordinal_vertical": _in_order(rows[far], rows[near]),
        }

    def metrics_of(self, arrays: Arrays, notes: list[str]) -> dict[str, float]:
        metrics = super().metrics_of(arrays, notes)
        return metrics | {f"{FLOOR}ordinal_accuracy": metrics["ordinal_vertical"]}

    def drawing(self, classes: Sequence[str], targets: Sequence[np.ndarray]) -> Drawing:
        """The rank of each pixel in its own map, dark for the nearest."""

        def draw(maps: np.ndarray) -> np.ndarray:
            is_known = self.labelled(maps[0].ravel()).reshape(maps.shape[1:])
            ordered = np.sort(maps[0][is_known])
            ranks = np.searchsorted(ordered, maps[0]) / max(len(ordered), 1)
            return scalar_picture(ranks, 0.0, 1.0, is_known)

        return draw, None


def _in_order(smaller: Tensor, larger: Tensor) -> Tensor:
    """Percent of pairs, of which ties count half; NaN without any."""
    return 100 * ((smaller < larger).double() + (smaller == larger) / 2).mean()
