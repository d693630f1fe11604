"""Depth: ground truth is (H, W) float32 metres, 0 where unknown.

Range, file scale and evaluation crop are the dataset's own protocol (``DatasetSpec.extra``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from cliptex_common.errors import UserError
from cliptex_common.images import depth_picture, read_depth, scale_bar, unrotated
from cliptex_common.metrics import Arrays
from cliptex_common.settings import Axis, Probability, settings_dataclass
from probes.datasets.base import DatasetSpec, PreparedDataset, Unreadable
from probes.dense.settings import LOSS, DenseSettings, FactorRange
from probes.dense.task import DenseTask, Drawing, cropped, note_empty
from reports.records import Metric

if TYPE_CHECKING:
    from torch import Tensor

EPS = 1e-3  # metres, in SigLoss


@settings_dataclass
class DepthSettings(DenseSettings):
    """Defaults: NYU-v2's 480 px, 20k iterations. Images are not scaled at random: enlarging one
    changes the depth it shows.

    Attributes:
        bins: outputs of a pixel, each for a depth; see ``Depth``. 0 for one bounded output.
        silog_lambda: λ of the scale-invariant loss, 0 (log RMSE) … 1 (the scale of an image is
            free).
        relative_weight: share of the loss without ``bins`` that is the absolute relative error, see
            ``Depth.batch_loss``.
        bins_read: the mean of ``bins`` is taken at the resolution of the ``features`` and enlarged,
            or taken of outputs that are enlarged, of each of the ``pixels``.
        bins_loss: ``sig``, or ``probe3d`` or ``probe3d-gradient``: see ``Depth._probe3d``.
        sig_warmup: iterations at the start without the variance in the loss of ``bins``.
        rotation: half of the training images are turned by up to so many degrees.
    """

    size: Annotated[NonNegativeInt, Axis()] = 480
    scale_range: FactorRange = (1.0, 1.0)
    max_iters: Annotated[PositiveInt, Axis()] = 20_000
    bins: Annotated[NonNegativeInt, LOSS] = 0
    silog_lambda: Annotated[Probability, LOSS] = 0.5
    relative_weight: Annotated[Probability, LOSS] = 0.0
    bins_read: Annotated[Literal["features", "pixels"], LOSS] = "features"
    bins_loss: Annotated[Literal["sig", "probe3d", "probe3d-gradient"], LOSS] = "sig"
    sig_warmup: Annotated[NonNegativeInt, LOSS] = 0
    rotation: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bins == 1:
            raise UserError("bins=1: must be 2 or more, or 0 for one bounded output")


class Depth(DenseTask):
    """Metres between the bounds of a dataset; its statistics are the metrics of each image.

    Without ``bins`` depth comes through a bounded output,
    ``min_depth + (max_depth - min_depth) · sigmoid(raw)``: near zero this is exponential, so that
    the loss in log depth has a gradient of about one, and the range is kept by construction. With
    them it is their mean, see ``mean_of_bins``.

    Attributes:
        min_depth, max_depth: of the output, and of the ground truth that is learned (both
            included) and scored (both excluded), metres.
        silog_lambda, relative_weight, bins, bins_read, bins_loss, sig_warmup: settings.
        crop: that is scored, see ``cropped``; with ``several_sizes`` it ends where a smaller map
            does.
        cut: metres that ground truth and predictions beyond them count as.
    """

    name, field = "depth", "depth_map"
    min_depth, max_depth = 0.0, 10.0
    level = "mid"
    silog_lambda, relative_weight, bins, bins_loss, sig_warmup = 0.5, 0.0, 0, "sig", 0
    bins_read = "features"
    crop: Sequence[Any] | None = None
    cut: float | None = None
    several_sizes = False
    metrics: ClassVar[Mapping[str, Metric]] = {
        "abs_rel": Metric(-1, "", 0.0, None, "AbsRel"),
        "rmse": Metric(-1, "m", 0.0, None, "RMSE", True),
        "log10": Metric(-1, "", 0.0, None),
        "delta1": Metric(label="δ < 1.25", shown=True),
        "delta2": Metric(label="δ < 1.25²"),
        "delta3": Metric(label="δ < 1.25³"),
    }
    settings = DepthSettings
    unit = " m"
    declared: ClassVar = {
        "depth_scale": "metres per stored unit (0.001 for millimetres)",
        "min_depth": "metres",
        "max_depth": "metres",
    }

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
        names = ("bins", "bins_loss", "sig_warmup") if settings.bins else ("silog_lambda",)
        options = {name: getattr(settings, name) for name in names}
        for name in ("bins_read", "relative_weight"):
            if getattr(settings, name) != getattr(self, name):
                options[name] = getattr(settings, name)
        return {
            "loss_decode": {"type": "TaskObjective", "task": "depth", **_bounds(spec), **options}
        }

    @property
    def loss_name(self) -> str:  # type: ignore[override]
        return "loss_sig" if self.bins else "loss_silog"

    @property
    def first_output(self) -> tuple[float, ...]:
        """Raw 0 is the middle of the range, but rooms and streets have most of their depth near a
        quarter of it, and a bias is slow to learn when batch normalisation leaves the other inputs
        without a mean."""
        return (0.0,) * self.bins if self.bins else (-math.log(3),)  # sigmoid = 1/4

    def read_output(self, output: Tensor) -> Tensor:
        is_read = self.bins and self.bins_read == "features"
        return self.mean_of_bins(output) if is_read else output

    def mean_of_bins(self, output: Tensor) -> Tensor:
        """The mean, as in the depth heads of DINOv2, DINOv3 and probe3d: ``Σ p_k · b_k``
        with ``b`` from min_depth to max_depth in equal steps and
        ``p_k = (relu(raw_k) + 0.1) / Σ_j (relu(raw_j) + 0.1)`` (the "linear" normalisation of
        AdaBins' code, Bhat, Alhashim, Wonka, CVPR 2021): (N, bins, h, w) → (N, 1, h, w) metres."""
        import torch

        share = output.float().relu() + 0.1
        bins = torch.linspace(self.min_depth, self.max_depth, self.bins, device=output.device)
        return torch.einsum("nkhw,k->nhw", share, bins)[:, None] / share.sum(dim=1, keepdim=True)

    def to_average(self, output: Tensor) -> Tensor:
        return output if self.bins else output.float().sigmoid()

    def from_average(self, values: Tensor) -> Tensor:
        return values if self.bins else values.logit(eps=1e-6)

    def decode_output(self, output: Tensor) -> Tensor:
        """(N, 1 or bins, H, W) outputs as read → (N, 1, H, W) metres."""
        if self.bins:
            return self.mean_of_bins(output) if self.bins_read == "pixels" else output
        return self.min_depth + (self.max_depth - self.min_depth) * output.sigmoid()

    def valid(self, target: Any) -> Any:
        """Where ``target`` is known and in range."""
        return (target > 0) & (target >= self.min_depth) & (target <= self.max_depth)

    def counted(self, maps: np.ndarray) -> np.ndarray:
        return np.asarray(self.valid(maps[0]))

    def batch_loss(self, output: Tensor, target: Tensor, iteration: Any) -> Tensor:
        """Of ``output`` (N, 1 or bins, H, W) against ``target`` (N, 1, H, W) in metres (0 =
        unknown). Images without valid pixels do not count.

        Without ``bins`` the mean over images of the scale-invariant error, of which a share of
        ``relative_weight`` is replaced by AbsRel, the mean of ``|prediction - target| / target``:
        the first is least at the geometric mean of what may be there, the second below it.
        """
        valid = self.valid(target)
        if self.bins:
            return self._sig(self.decode_output(output), target, valid, iteration)
        loss = self._silog(output, target, valid)
        if not (weight := self.relative_weight):
            return loss
        errors = (self.decode_output(output) / target.where(valid, 1.0) - 1).abs() * valid
        count = valid.sum(dim=(1, 2, 3))
        relative = errors.sum(dim=(1, 2, 3)) / count.clamp(min=1)
        relative = relative.sum() / (count > 0).sum().clamp(min=1)
        return (1 - weight) * loss + weight * relative

    def _silog(self, output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """The mean over images of ``sqrt(mean(d²) - silog_lambda · mean(d)²)`` with
        ``d = log(prediction) - log(target)`` over its valid pixels (Eigen, Puhrsch, Fergus 2014,
        eq. 4, under a root as in BTS and AdaBins); ``silog_lambda`` 0 is the plain log RMSE, 1
        ignores the scale of the image, and the paper's 0.5 is in between."""
        difference = self.decode_output(output).log() - target.where(valid, 1.0).log()
        difference = difference.where(valid, 0.0)
        count = valid.sum(dim=(1, 2, 3))
        mean = difference.sum(dim=(1, 2, 3)) / count.clamp(min=1)
        mean_square = difference.square().sum(dim=(1, 2, 3)) / count.clamp(min=1)
        # the root's slope is infinite at zero: a perfect image must not give NaN gradients
        losses = (mean_square - self.silog_lambda * mean.square()).clamp(min=1e-8).sqrt()
        return (losses * (count > 0)).sum() / (count > 0).sum().clamp(min=1)

    def _sig(self, depth: Tensor, target: Tensor, valid: Tensor, iteration: Any) -> Tensor:
        """SigLoss: ``sqrt(var(g) + 0.15 · mean(g)²)`` with
        ``g = log(prediction + ε) - log(target + ε)``, ε = 1 mm, over all valid pixels of the batch
        (AdaBins' eq. 2 with λ = 0.85; the variance is the unbiased one, and left out in the first
        ``sig_warmup`` iterations); 0 where less than two pixels are valid."""
        if self.bins_loss.startswith("probe3d"):
            return self._probe3d(depth, target, valid)
        if valid.sum() < 2:
            return depth.sum() * 0.0
        g = (depth[valid] + EPS).log() - (target[valid] + EPS).log()
        variance = g.var() * (iteration >= self.sig_warmup) if self.sig_warmup else g.var()
        return (variance + 0.15 * g.mean().square()).clamp(min=1e-8).sqrt()

    def _probe3d(self, depth: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """probe3d's loss: ten times SigLoss (of the biased variance), and half of the absolute
        differences of the log error between entries two apart along two axes, over all entries and
        over every second, every fourth and every sixth of both.

        Its first code (1fff822) calls this the gradient, and takes batch and channel for rows and
        columns: images are compared, not pixels. With ``probe3d-gradient`` the axes are those that
        are meant, as in its code since ac00369.
        """
        prediction, metres = (each.where(valid, 1.0) for each in (depth, target))
        g = (prediction + EPS).log() - (metres + EPS).log()
        count = valid.sum().clamp(min=1)
        square = g.square().sum() / count - 0.85 * (g.sum() / count).square()
        loss = 10 * square.clamp(min=1e-8).sqrt()
        axes = (2, 3) if self.bins_loss == "probe3d-gradient" else (0, 1)
        g, valid = (each.movedim(axes, (0, 1)) for each in (g, valid))
        for step in (1, 2, 4, 6):
            error, counted = g[::step, ::step], valid[::step, ::step]
            difference = (error[:-2] - error[2:]).abs() * (counted[:-2] & counted[2:])
            across = (error[:, :-2] - error[:, 2:]).abs() * (counted[:, :-2] & counted[:, 2:])
            total = difference.sum() + across.sum()
            loss = loss + 0.5 * total / counted.sum().clamp(min=1)
        return loss

    def evaluator(self, settings: Any, spec: DatasetSpec) -> dict[str, Any]:
        crop = settings.test_area or spec.extra.get("crop")
        names = ("cut", "several_sizes")
        options = {name: spec.extra[name] for name in names if name in spec.extra}
        bounds = _bounds(spec)
        return {"type": "TaskScores", "task": "depth", **bounds, "crop": crop, **options}

    def score(self, prediction: Tensor, target: Tensor) -> dict[str, Any]:
        """``depth_scores``, as mmseg and most papers on NYU-v2 report them, of pixels with
        min_depth < ground truth < max_depth inside the crop; images without any are left out, with
        a note."""
        from cliptex_common.metrics import depth_scores

        crop = self.crop
        if self.several_sizes and crop:
            height, width = target.shape[-2:]
            crop = (crop[0], min(crop[1], height), crop[2], min(crop[3], width))
        prediction, target = (cropped(each[0], crop) for each in (prediction, target))
        if self.cut is not None:
            prediction, target = prediction.clamp(max=self.cut), target.clamp(max=self.cut)
        valid = (target > self.min_depth) & (target < self.max_depth)
        return depth_scores(prediction, target, valid) | {"pixels": valid.sum()}

    def metrics_of(self, arrays: Arrays, notes: list[str]) -> dict[str, float]:
        note_empty(arrays, notes)
        return super().metrics_of(arrays, notes)

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
