"""Surface normals: ground truth is (H, W, 3) float32 unit vectors, (0, 0, 0) where unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import NonNegativeInt, PositiveInt

from cliptex_common.errors import UserError
from cliptex_common.images import MIRRORED, normal_ball, normal_picture, read_depth, read_normals
from cliptex_common.metrics import Arrays, mean_of_images, ratio
from cliptex_common.settings import Axis, settings_dataclass
from probes.datasets.base import DatasetSpec, PreparedDataset, Unreadable
from probes.dense.settings import LOSS, DenseSettings, FactorRange
from probes.dense.task import DenseTask, Drawing, cropped, note_empty, range_text
from reports.records import Metric

if TYPE_CHECKING:
    from torch import Tensor

BINS = 2**22  # of the errors of a set
COARSE = 1800  # of an image
WITHIN = (11.25, 22.5, 30)  # degrees
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
    uncertainty: Annotated[bool, LOSS] = False
    mask: Literal["normals", "depth"] = "normals"


class Normals(DenseTask):
    """Unit vectors; their statistics are the metrics of each image and a histogram of angles.

    A pixel is valid when its ground truth is not (0, 0, 0). Angular errors are over all valid
    pixels of the set together, as Fouhey et al. 2013 and later papers report them:
    ``normal_mean`` and ``normal_median`` in degrees; ``normal_11.25``, ``normal_22.5``,
    ``normal_30``: percent of pixels whose error is below. Means over images of each one's own:
    ``normal_image_rmse`` and ``normal_image_11.25`` …, as probe3d (El Banani et al. 2024) reports
    them, and this suite's own ``normal_image_mean`` of its mean error.

    Attributes:
        uncertainty: a fourth output is each pixel's concentration, and the loss the negative
            logarithm of AngMF's density but for a constant (Bae, Budvytis, Cipolla, ICCV 2021); see
            ``backbones.cliptex.losses.angmf_nll``.
        crop: that is scored, see ``cropped``.
    """

    name, field, level, version = "normals", "normal_map", "mid", 2
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
    declared: ClassVar = {
        "encoding": "how a normal is stored, in words",
        "invalid": "the stored value of pixels without a normal, such as (0, 0, 0)",
    }
    channels, outputs = 3, 4
    loss_name = "loss_angle"
    uncertainty = False
    crop: Sequence[Any] | None = None

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
            # the last folder of that name: the data root may have one, too
            folder, _, name = path.rpartition("/normals/")
            stored = read_depth(f"{folder}/annotations/{name}", 1.0)
            normals[(stored == 0) | (stored > FARTHEST)] = 0
        return normals

    def factors(self, flipped: bool, scale: tuple[float, float]) -> Sequence[float]:
        """In a mirror x points the other way."""
        return MIRRORED if flipped else ()

    def objective(self, settings: Any, spec: DatasetSpec, classes: int) -> dict[str, Any]:
        loss = {"type": "TaskObjective", "task": "normals", "uncertainty": settings.uncertainty}
        return {"loss_decode": loss}

    @property
    def first_output(self) -> tuple[float, ...]:
        """Training begins with normals that face the camera: most do, more or less. Near (0, 0, 0)
        a direction is noise, and its gradient turns a pixel without making it any surer, however
        good the features are."""
        return (0.0, 0.0, 1.0, 0.0)[: 4 if self.uncertainty else 3]

    def decode_output(self, output: Tensor) -> Tensor:
        """(N, 3 or 4, H, W) outputs → (N, 3, H, W) unit vectors (x right, y up, z towards the
        camera for our datasets)."""
        import torch.nn.functional as F

        return F.normalize(output[:, :3], dim=1, eps=1e-6)

    def batch_loss(self, output: Tensor, target: Tensor, iteration: Any) -> Tensor:
        """The mean angle to the ground truth in radians, or AngMF's likelihood, over the valid
        pixels of ``output`` (N, 3 or 4, H, W) against unit ``target`` (N, 3, H, W).

        The angle itself, not ``1 - cos``: it is what is scored, and its gradient does not fade as
        the angle gets small. ``arccos`` has an infinite slope at ±1, so the cosine is clamped to
        ±(1 - 1e-6); within 0.08° of the ground truth (or of its opposite) the gradient is zero.
        """
        valid = target.square().sum(dim=1) > 0.25
        # the cosine without the unit vectors, which cost four times as much to make; the least
        # length bounds the gradient of a raw output that happens to be (0, 0, 0)
        vector = output[:, :3]
        cosine = (vector * target).sum(dim=1) * vector.square().sum(dim=1).clamp(min=1e-8).rsqrt()
        loss = cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos()
        if self.uncertainty:
            from backbones.cliptex.losses import angmf_nll_of_angle, concentration

            loss = angmf_nll_of_angle(loss, concentration(output[:, 3]))
        return loss.where(valid, 0.0).sum() / valid.sum().clamp(min=1)

    def evaluator(self, settings: Any, spec: DatasetSpec) -> dict[str, Any]:
        crop = settings.test_area or spec.extra.get("crop")
        return {"type": "TaskScores", "task": "normals", "crop": crop}

    def score(self, prediction: Tensor, target: Tensor) -> dict[str, Any]:
        """``normal_mean``, shares and ``pixels`` of an image, by which weighted they give back the
        metrics; the median of any draw of images follows from ``error_histogram``, (1800,) pixels
        by error in bins of 0.1°."""
        from cliptex_common.metrics import angles

        prediction, target = (cropped(each, self.crop) for each in (prediction, target))
        valid = target.any(dim=0).flatten()
        error, pixels = angles(prediction, target).flatten(), valid.sum().double()
        counted = valid.int()
        if self.pooled is None:
            self.pooled = counted.new_zeros(BINS)
        self.pooled.index_add_(0, _bin(error, BINS), counted)
        coarse = counted.new_zeros(COARSE)
        error = error.where(valid, 0.0)
        return {
            "normal_mean": error.sum() / pixels,
            "image_rmse": (error.square().sum() / pixels).sqrt(),
            **{
                f"normal_{limit:g}": 100 * ((error < limit) & valid).sum() / pixels
                for limit in WITHIN
            },
            "pixels": pixels.long(),
            "error_histogram": coarse.index_add_(0, _bin(error, COARSE), counted),
        }

    def arrays_of_set(self, images: int) -> Arrays:
        """``set_median``: the median of all pixels, counted in bins of 180° / 2²² = 0.00004°, which
        is about what float32 predictions resolve: right within half a bin, in 16 MB for a set of
        any size, where NYU's 654 images have 650 MB of errors."""
        assert self.pooled is not None
        return {"set_median": np.full(images, histogram_median(self.pooled.cpu().numpy()))}

    def metrics_of(self, arrays: Arrays, notes: list[str]) -> dict[str, float]:
        note_empty(arrays, notes)
        return super().metrics_of(arrays, notes)

    def summary(self, arrays: Arrays, weights: np.ndarray) -> dict[str, Any]:
        """The median is that of ``error_histogram``, moved by what makes it ``set_median`` where
        every image counts once: rarely more than half of a bin."""
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
            if "set_median" in arrays:  # not where a plugin's metrics are tried on zeros
                total = arrays["error_histogram"].sum(axis=0, dtype=np.float64)
                shift = arrays["set_median"][0] - binned_median(total[None])
                metrics["normal_median"] = (metrics["normal_median"] + shift).clip(0, 180)
        return metrics

    def best_constant(self, pixels: np.ndarray, data: PreparedDataset) -> Any:
        """The mean normal, (3,), of unit length."""
        mean = pixels.sum(axis=0, dtype=np.float64)
        return (mean / max(np.linalg.norm(mean), 1e-9)).astype(np.float32)

    def constant_name(self, constant: Any, data: PreparedDataset) -> str:
        return "the mean normal"

    def described(self, maps: np.ndarray) -> str:
        """The angles to the camera."""
        angles = np.degrees(np.arccos(maps[2][self.counted(maps)].clip(-1, 1)))
        return f"{range_text(angles, '°')} to the camera"

    def drawing(self, classes: Sequence[str], targets: Sequence[np.ndarray]) -> Drawing:
        return normal_picture, normal_ball()


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


def histogram_median(counts: np.ndarray) -> float:
    """Median of errors counted in bins of equal width over [0°, 180°], as the middle of its bin (of
    an even number, between those of the middle two); NaN when all are empty."""
    total, so_far = int(counts.sum()), np.cumsum(counts, dtype=np.int64)
    if not total:
        return float("nan")
    bins = np.searchsorted(so_far, [(total - 1) // 2 + 1, total // 2 + 1])
    return float((bins.mean() + 0.5) * 180 / len(counts))


def _bin(error: Tensor, bins: int) -> Tensor:
    """Which of ``bins`` of equal width over [0°, 180°] each error is in (NaN, of a pixel without
    ground truth, in the first)."""
    return (error.nan_to_num() * (bins / 180)).long().clamp(0, bins - 1)
