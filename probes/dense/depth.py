"""Depth: ground truth is (H, W) float32 metres, 0 where unknown.

Range, file scale and evaluation crop are the dataset's own protocol (``DatasetSpec.extra``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from cliptex_common.dense_maps.pictures import depth_picture, scale_bar
from cliptex_common.dense_maps.read import read_depth, unrotated
from cliptex_common.errors import UserError
from cliptex_common.settings import Axis, Probability, settings_dataclass
from probes.datasets.base import DatasetSpec, PreparedDataset, Unreadable
from probes.dense.settings import DenseSettings, FactorRange
from probes.dense.task import DenseTask, Drawing
from reports.metrics import Metric


@settings_dataclass
class DepthSettings(DenseSettings):
    """Defaults: NYU-v2's 480 px, 20k iterations. Images are not scaled at random: enlarging one
    changes the depth it shows.

    Attributes:
        bins: outputs of a pixel, each for a depth; see ``dense.depth.DepthBins``. 0 for
            one bounded output (``DepthObjective``).
        silog_lambda: λ of the scale-invariant loss, 0 (log RMSE) … 1 (the scale of an image is
            free).
        bins_loss: ``sig``, or ``probe3d``: see ``dense.depth.Probe3dDepth``.
        sig_warmup: iterations at the start without the variance in the loss of ``bins``.
        rotation: half of the training images are turned by up to so many degrees.
    """

    size: Annotated[NonNegativeInt, Axis()] = 480
    scale_range: FactorRange = (1.0, 1.0)
    max_iters: Annotated[PositiveInt, Axis()] = 20_000
    bins: NonNegativeInt = 0
    silog_lambda: Probability = 0.5
    bins_loss: Literal["sig", "probe3d"] = "sig"
    sig_warmup: NonNegativeInt = 0
    rotation: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bins == 1:
            raise UserError("bins=1: must be 2 or more, or 0 for one bounded output")


class Depth(DenseTask):
    """Metres between the bounds of a dataset; its statistics are the metrics of each image."""

    name, field = "depth", "depth_map"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "abs_rel": Metric(-1, "", 0.0, None, "AbsRel"),
        "rmse": Metric(-1, "m", 0.0, None, "RMSE", True),
        "log10": Metric(-1, "", 0.0, None),
        "delta1": Metric(label="δ < 1.25", shown=True),
        "delta2": Metric(label="δ < 1.25²"),
        "delta3": Metric(label="δ < 1.25³"),
    }
    settings = DepthSettings

    def check_file(self, spec: DatasetSpec, classes: int, path: Path, image: Image.Image) -> None:
        """16 bits a pixel, and some of them within the valid range."""
        if not image.mode.startswith("I"):
            raise UserError(
                f"{path} is not 16-bit ({image.mode}); {spec.name} stores depth in units of "
                f"{spec.extra['depth_scale']} m as 16-bit PNG"
            )
        stored = unrotated(np.asarray(image), spec.extra.get("rotated_bits", 0))
        depth = stored.astype(np.float64) * spec.extra["depth_scale"]
        if not (measured := depth[depth > 0]).size:
            raise Unreadable("no pixel has a depth")
        low, high = spec.extra["min_depth"], spec.extra["max_depth"]
        if not ((measured >= low) & (measured <= high)).any():
            raise Unreadable(
                f"no depth within {low:g}-{high:g} m (median {np.median(measured):g} m)"
            )

    def reading(self, spec: DatasetSpec, classes: int, settings: Any = None) -> dict[str, Any]:
        names = ("depth_scale", "rotated_bits")
        return {name: spec.extra[name] for name in names if name in spec.extra}

    def read(self, path: str, depth_scale: float, rotated_bits: int = 0) -> np.ndarray:  # type: ignore[override]
        return read_depth(path, depth_scale, rotated_bits)

    def objective(self, settings: Any, spec: DatasetSpec, classes: int) -> dict[str, Any]:
        loss = _bounds(spec)
        if settings.bins:
            kind = {"sig": "DepthBins", "probe3d": "Probe3dDepth"}[settings.bins_loss]
            loss |= {"type": kind, "bins": settings.bins, "warmup": settings.sig_warmup}
        else:
            loss |= {"type": "DepthObjective", "silog_lambda": settings.silog_lambda}
        return {"loss_decode": loss}

    def evaluator(self, settings: Any, spec: DatasetSpec) -> dict[str, Any]:
        crop = settings.test_area or spec.extra.get("crop")
        names = ("cut", "several_sizes")
        options = {name: spec.extra[name] for name in names if name in spec.extra}
        return {"type": "DepthScores", **_bounds(spec), "crop": crop, **options}

    def best_constant(self, pixels: np.ndarray, data: PreparedDataset) -> Any:
        """The depth with the least mean |c - t| / t, which is the median weighted with 1 / t."""
        bounds = _bounds(data.spec)
        valid = (pixels >= bounds["min_depth"]) & (pixels <= bounds["max_depth"]) & (pixels > 0)
        if not valid.any():
            return float(bounds["max_depth"])
        values = np.sort(pixels[valid])
        weight = np.cumsum(1 / values, dtype=np.float64)
        return float(values[np.searchsorted(weight, weight[-1] / 2)])

    def constant_name(self, constant: Any, data: PreparedDataset) -> str:
        return f"{constant:.3g} m"

    def drawing(self, classes: Sequence[str], targets: Sequence[np.ndarray]) -> Drawing:
        """Over one range for all pictures, the middle 96 % of the ground truth shown."""
        metres = np.concatenate([target[target > 0] for target in targets])
        low, high = np.percentile(metres, (2, 98)) if metres.size else (0.0, 1.0)
        return (lambda depth: depth_picture(depth[0], low, high)), scale_bar(low, high)


def _bounds(spec: DatasetSpec) -> dict[str, Any]:
    return {name: spec.extra[name] for name in ("min_depth", "max_depth")}
