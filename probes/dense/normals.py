"""Surface normals: ground truth is (H, W, 3) float32 unit vectors, (0, 0, 0) where unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import NonNegativeInt, PositiveInt

from cliptex_common.dense_maps.geometry import MIRRORED
from cliptex_common.dense_maps.pictures import normal_picture
from cliptex_common.dense_maps.read import read_depth, read_normals
from cliptex_common.errors import UserError
from cliptex_common.settings import Axis, settings_dataclass
from cliptex_common.weighted import Arrays, mean_of_images, ratio
from probes.datasets.base import DatasetSpec, PreparedDataset, Unreadable
from probes.dense.settings import DenseSettings, FactorRange
from probes.dense.task import DenseTask, Drawing
from reports.metrics import Metric

FARTHEST = 10_000  # mm, of depths that mask normals


@settings_dataclass
class NormalSettings(DenseSettings):
    """Defaults: NYU-v2's 480 px, 20k iterations, without random scaling as for depth.

    Attributes:
        uncertainty: learn each pixel's concentration κ too, by the likelihood of AngMF (Bae et al.
            2021); without it the loss is the angle.
        mask: pixels count where the ``normals`` are known, or where the ``depth`` is too (of
            ``annotations/`` beside ``normals/``, at most 10 m).
    """

    size: Annotated[NonNegativeInt, Axis()] = 480
    scale_range: FactorRange = (1.0, 1.0)
    max_iters: Annotated[PositiveInt, Axis()] = 20_000
    uncertainty: bool = False
    mask: Literal["normals", "depth"] = "normals"


class Normals(DenseTask):
    """Unit vectors; their statistics are the metrics of each image and a histogram of angles."""

    name, field = "normals", "normal_map"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "normal_mean": Metric(-1, "°", 0.0, 180.0, "mean angle"),
        "normal_median": Metric(-1, "°", 0.0, 180.0, "median angle", True),
        "normal_11.25": Metric(label="within 11.25°", shown=True),
        "normal_22.5": Metric(label="within 22.5°"),
        "normal_30": Metric(label="within 30°"),
        "normal_image_mean": Metric(-1, "°", 0.0, 180.0, "mean angle of an image"),
        "normal_image_rmse": Metric(-1, "°", 0.0, 180.0, "RMSE of an image"),
        "normal_image_11.25": Metric(label="within 11.25° of an image"),
        "normal_image_22.5": Metric(label="within 22.5° of an image"),
        "normal_image_30": Metric(label="within 30° of an image"),
    }
    settings = NormalSettings
    channels, outputs = 3, 4

    def check_file(self, spec: DatasetSpec, classes: int, path: Path, image: Image.Image) -> None:
        """Some valid pixels, of unit length within 8-bit precision."""
        encoding = spec.extra["encoding"]
        if image.mode != "RGB":
            raise UserError(
                f"{path} is not an RGB picture ({image.mode}); {spec.name} stores {encoding}"
            )
        stored = np.asarray(image)[::4, ::4].reshape(-1, 3)  # a sample of the pixels
        valid = stored[(stored != np.asarray(spec.extra["invalid"])).any(axis=1)]
        if not len(valid):
            raise Unreadable("no pixel has a normal")
        length = float(np.median(np.linalg.norm(valid / 127.5 - 1, axis=1)))
        if not 0.8 < length < 1.2:
            raise UserError(
                f"{path} does not hold normals: median length {length:.2f} instead of 1 with"
                f" {encoding}"
            )

    def reading(self, spec: DatasetSpec, classes: int, settings: Any = None) -> dict[str, Any]:
        mask = getattr(settings, "mask", "normals")
        return {} if mask == "normals" else {"mask": mask}

    def read(self, path: str, mask: str = "normals") -> np.ndarray:  # type: ignore[override]
        """With ``mask="depth"`` only where the image's depth is known too."""
        normals = read_normals(path)
        if mask == "depth":
            stored = read_depth(path.replace("/normals/", "/annotations/"), 1.0)
            normals[(stored == 0) | (stored > FARTHEST)] = 0
        return normals

    def factors(self, flipped: bool, scale: tuple[float, float]) -> Sequence[float]:
        """In a mirror x points the other way."""
        return MIRRORED if flipped else ()

    def objective(self, settings: Any, spec: DatasetSpec, classes: int) -> dict[str, Any]:
        loss = {"type": "NormalObjective", "uncertainty": settings.uncertainty}
        return {"loss_decode": loss}

    def evaluator(self, settings: Any, spec: DatasetSpec) -> dict[str, Any]:
        return {"type": "NormalScores", "crop": settings.test_area or spec.extra.get("crop")}

    def summary(self, arrays: Arrays, weights: np.ndarray) -> dict[str, Any]:
        """See ``probes.dense.normal_scores.NormalScores``; the median is that of ``error_histogram``."""
        pixels = arrays["pixels"]
        shares = [name for name in arrays if name.startswith("normal_") and name in self.metrics]
        shares = [name for name in shares if name != "normal_median"]
        metrics = {name: mean_of_images(arrays[name], weights, pixels) for name in shares}
        for name in shares:
            alone = mean_of_images(arrays[name], weights)
            metrics[name.replace("_", "_image_")] = alone
        if "image_rmse" in arrays:
            metrics["normal_image_rmse"] = mean_of_images(arrays["image_rmse"], weights)
        if "error_histogram" in arrays:
            counts = weights.astype(np.float32) @ arrays["error_histogram"].astype(np.float32)
            metrics["normal_median"] = binned_median(counts)
        return metrics

    def best_constant(self, pixels: np.ndarray, data: PreparedDataset) -> Any:
        """The mean normal, (3,), of unit length."""
        mean = pixels.sum(axis=0, dtype=np.float64)
        return (mean / max(np.linalg.norm(mean), 1e-9)).astype(np.float32)

    def constant_name(self, constant: Any, data: PreparedDataset) -> str:
        return "the mean normal"

    def drawing(self, classes: Sequence[str], targets: Sequence[np.ndarray]) -> Drawing:
        return normal_picture, None


def binned_median(counts: np.ndarray) -> np.ndarray:
    """(R,) the median error in degrees of each row of ``counts`` (R, bins): pixels by error, in
    bins of equal width over [0°, 180°]. Within a bin they are taken as uniform."""
    total = np.cumsum(counts, axis=1, dtype=np.float64)
    half = total[:, -1:] / 2
    bin_ = np.minimum((total < half).sum(axis=1, keepdims=True), counts.shape[1] - 1)
    above = np.take_along_axis(total, bin_, axis=1)
    before = np.take_along_axis(total, np.maximum(bin_ - 1, 0), axis=1)
    below = np.where(bin_ > 0, before, 0.0)
    return (bin_ + ratio(half - below, above - below))[:, 0] * 180 / counts.shape[1]
