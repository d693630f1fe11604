"""A family of dense tasks: one object that says what its ground truth is, how a head learns it, and
how predictions are scored and drawn.

Importing this imports neither torch nor mmseg.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from PIL import Image

from cliptex_common.errors import UserError
from cliptex_common.images import IMAGE_ERRORS, read_scalars, scalar_picture, scale_bar
from cliptex_common.metrics import Arrays, mean_of_images
from cliptex_common.settings import settings_dataclass
from probes.datasets.base import DatasetSpec, PreparedDataset
from probes.dense.settings import (
    DenseSettings,
    ModuleHeadSettings,
    ShippedHeadSettings,
    bounds_scored,
)
from reports.per_image import ImageScores
from reports.records import Metric

if TYPE_CHECKING:
    from torch import Tensor

Draw = Callable[[np.ndarray], np.ndarray]  # maps (channels, H, W) → (H, W, 3) uint8 RGB
Drawing = tuple[Draw, np.ndarray | None]
ROWS = 500  # images that are scored alone at once


class JoinedSettings:
    """A probe's settings: those of its task and those of its kind of head, in one class, which is
    made when it is first asked for."""

    def __init__(self, of_head: type) -> None:
        self._of_head = of_head
        self._classes: dict[type, type[DenseSettings]] = {}

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type[DenseTask]) -> type[DenseSettings]:
        if owner not in self._classes:
            # named by where it is found, so that it can be pickled
            qualified = f"{owner.__qualname__}.{self._name}"
            names = {"__module__": owner.__module__, "__qualname__": qualified}
            bases = owner.settings, self._of_head
            self._classes[owner] = settings_dataclass(type(self._name, bases, names))
        return self._classes[owner]


class DenseTask:
    """A family of dense tasks; ``probes.dense.probe.register_dense_task`` makes probes of it with
    every head.

    A subclass that is learned by a loss of its own, without classes, gives ``name``, ``metrics``,
    ``loss`` and ``score``; what else differs from these defaults it overrides. One that is also a
    ``backbones.cliptex.targets.Task`` (``class Edges(ScalarMap, DenseTask)``) is a task of
    CLIPTeX, too: reading, activation, loss, predictions and scores are the same methods of both.

    Attributes:
        name: the ``kind`` of its datasets.
        field: of a sample: ``gt_FIELD`` is its ground truth, ``pred_FIELD`` the prediction; by
            default the name.
        metrics: see ``probes.base.Probe``; the main metric first.
        settings: of its probes, besides those of their heads.
        shipped_settings, head_settings: of the shipped heads, and of those that the setting
            ``head`` names: ``settings`` and theirs.
        declared: what its datasets give in ``DatasetSpec.extra``, and its unit.
        outcomes: name → RGB of what ``outcome`` marks.
        is_picture: whether its files are pictures; else ``read`` decides if they can be used.
        has_classes: whether the ground truth is numbers of classes: of ``Segmentation``.
        channels: numbers of a pixel of the ground truth.
        outputs: numbers of a pixel that a head puts out.
        value_range: smallest and largest value of ground truth that is a number a pixel.
        unknown: value of pixels without ground truth, a number.
        level: what it asks of features, of ``reports.records.LEVELS``.
        unit: of ground truth that is a number a pixel, as it follows the number (`` m``, ``°``).
        loss_name: key of the loss in curves.
        version: of all of its probes, added to that of the head: raise it when the same settings
            give other numbers.
        classes: names of the classes that are scored.
        pooled: counts over all images scored so far, which are too many to be stored for each.
    """

    name: ClassVar[str]
    field: ClassVar[str]
    metrics: ClassVar[Mapping[str, Metric]]
    settings: ClassVar[type[DenseSettings]] = DenseSettings
    shipped_settings = JoinedSettings(ShippedHeadSettings)
    head_settings = JoinedSettings(ModuleHeadSettings)
    declared: ClassVar[Mapping[str, str]] = {}
    is_picture: ClassVar[bool] = True
    outcomes: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    has_classes: ClassVar[bool] = False
    channels: ClassVar[int] = 1
    outputs: ClassVar[int] = 1
    value_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    unknown: ClassVar[float] = 0.0
    level: ClassVar[str] = "high"
    unit: ClassVar[str] = ""
    loss_name: ClassVar[str] = "loss_task"
    version: ClassVar[int] = 1
    classes: Sequence[str] = ()
    pooled: Tensor | None = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not hasattr(cls, "field"):
            cls.field = f"{cls.name}_map"

    # --- ground truth

    def check_dataset(self, data: PreparedDataset) -> None:
        """Raise ``UserError`` where a dataset does not declare what the task needs."""

    def check_file(self, spec: DatasetSpec, classes: int, path: Path, image: Image.Image) -> None:
        """Check a decoded file of ground truth, whose size is that of its photograph.

        Raises:
            Unreadable: the sample cannot be used.
            UserError: the dataset is not what its declaration says.
        """

    def reading(self, spec: DatasetSpec, classes: int, settings: Any = None) -> dict[str, Any]:
        """Options of ``read`` for a dataset and, unless None, the settings of a probe."""
        return {}

    def read(self, path: Any, **options: Any) -> np.ndarray:
        """The ground truth of an image, (H, W) or (H, W, channels), float32 unless it is classes;
        here a grey PNG, black the smallest value and white the largest.

        Raises:
            OSError, ValueError: it cannot be read.
        """
        return read_scalars(path, *self.value_range)

    def load(self, path: str, **options: Any) -> np.ndarray:
        """``read``, with one line for the user.

        Raises:
            UserError: it cannot be read.
        """
        try:
            return self.read(path, **options)
        except UserError:
            raise
        except IMAGE_ERRORS as error:
            raise UserError(f"cannot read ground truth {path}: {error}") from error

    def padding(self, spec: DatasetSpec) -> float:
        """The value that crops of small images are filled up with."""
        return self.unknown

    def stored_type(self, spec: DatasetSpec, classes: int) -> str:
        """How the ground truth of crops is cached; a key of ``probes.features.store.DTYPES``."""
        return "fp32"

    def factors(self, flipped: bool, scale: tuple[float, float]) -> Sequence[float]:
        """What the values of each channel are multiplied by where the image is mirrored (left to
        right) or resized, as the x of a normal and both components of a flow are; empty for
        nothing.

        Args:
            scale: factors of width and height.
        """
        return ()

    def labelled(self, values: np.ndarray) -> np.ndarray:
        """Which pixels, (n,) or (n, channels), have ground truth: (n,) bool."""
        valid = np.isfinite(values) & (values != self.unknown)
        return valid if values.ndim == 1 else valid.any(axis=1)

    def counted(self, maps: np.ndarray) -> np.ndarray:
        """Which pixels of ground truth (channels, H, W) are learned and scored: (H, W) bool."""
        return self.labelled(maps.reshape(len(maps), -1).T).reshape(maps.shape[1:])

    def described(self, maps: np.ndarray) -> str:
        """What ground truth (channels, H, W) holds, in words: here the range of its numbers."""
        values = maps[0].ravel()
        return range_text(values[self.labelled(values)], self.unit)

    # --- learning: of a head's output first ``read_output``, then it is resized (and averaged where
    # crops overlap, between ``to_average`` and ``from_average``); then ``batch_loss`` in training,
    # and ``decode_output``, which gives what is scored

    def bound(self, **options: Any) -> Self:
        """The task with attributes that follow from a dataset and settings: those that
        ``objective`` or ``evaluator`` name."""
        task = copy.copy(self)
        if unknown := sorted(name for name in options if not hasattr(self, name)):
            raise UserError(f"dense task {self.name!r} has no option {', '.join(unknown)}")
        vars(task).update(options)
        return task

    def objective(self, settings: Any, spec: DatasetSpec, classes: int) -> dict[str, Any]:
        """Options of the decode head: ``loss_decode`` with the config of a ``TaskObjective``, its
        name and attributes; or ``num_classes`` and a loss of mmseg's for classes."""
        return {"loss_decode": {"type": "TaskObjective", "task": self.name}}

    @property
    def first_output(self) -> tuple[float, ...]:
        """A head's outputs of a pixel at the start of training: the bias of its last layer."""
        return (0.0,) * self.outputs

    def read_output(self, output: Tensor) -> Tensor:
        """A head's output, (N, outputs, h, w) at the resolution of the features, as it is resized
        to that of the ground truth and averaged."""
        return output

    def to_average(self, output: Tensor) -> Tensor:
        """What is averaged where padded sliding crops overlap; ``from_average`` undoes it."""
        return output

    def from_average(self, values: Tensor) -> Tensor:
        return values

    def activate(self, output: Tensor) -> Tensor:
        """A head's output, (N, outputs, H, W) float32, in the form that the loss takes: without
        the second dimension where it is one number a pixel."""
        return output.squeeze(1)

    def loss(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """(sum, count) of the loss over the pixels with ground truth; a sum of 0 without any.

        Args:
            prediction: as ``activate`` gives it, at the resolution of the ground truth.
            target: (N, H, W), or (N, channels, H, W) of more than one channel.
        """
        raise NotImplementedError

    def batch_loss(self, output: Tensor, target: Tensor, iteration: Any) -> Tensor:
        """The loss of a batch, a scalar, of outputs as read, float32, at the resolution of
        ``target``, (N, channels, H, W); ``iteration`` of training so far."""
        total, count = self.loss(self.activate(output), target.squeeze(1))
        return total / count.clamp(min=1)

    def predict(self, output: Tensor) -> Tensor:
        """A head's output → predictions of the shape of ``loss``'s target."""
        return self.activate(output)

    def decode_output(self, output: Tensor) -> Tensor:
        """Outputs as read, float32 → predictions, (N, channels of the ground truth, H, W)."""
        prediction = self.predict(output)
        return prediction[:, None] if prediction.ndim == 3 else prediction

    # --- scores

    def evaluator(self, settings: Any, spec: DatasetSpec) -> dict[str, Any]:
        """Config of the metric of mmengine that scores it: by default a
        ``probes.dense.losses.TaskScores``, its name and attributes."""
        return {"type": "TaskScores", "task": self.name}

    def score(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Statistics of one image, from which ``summary`` computes the metrics.

        Args:
            prediction: (channels, H, W), at the resolution of the ground truth.
            target: likewise.
        """
        raise NotImplementedError

    def arrays_of_set(self, images: int) -> Arrays:
        """Statistics of all images together, from ``pooled``, for ``summary``: an entry for each
        of so many ``images``, all the same. Here none."""
        return {}

    def metrics_of(self, arrays: Arrays, notes: list[str]) -> dict[str, float]:
        """The metrics of all images, from their statistics; may add ``notes`` for the user."""
        scores = self.summary(arrays, np.ones((1, len(arrays["image"]))))
        return {name: float(values[0]) for name, values in scores.items()}

    def summary(self, arrays: Arrays, weights: np.ndarray) -> dict[str, Any]:
        """The metrics of sets of images: here the mean of each image's metric of that name, without
        NaN. A probe's own are those of weights of one, and reports resample images by it.

        Args:
            arrays: the statistics of N images.
            weights: (R, N) how often each image is in each set.

        Returns:
            metric → (R,).
        """
        names = [name for name in self.metrics if name in arrays]
        return {name: mean_of_images(arrays[name], weights) for name in names}

    def image_scores(self, images: tuple[str, ...], arrays: Arrays) -> ImageScores:
        """The statistics of a report."""
        main, metric = next(iter(self.metrics.items()))
        count = len(images)

        def of_images() -> np.ndarray:
            blocks = [
                np.eye(min(ROWS, count - start), count, start) for start in range(0, count, ROWS)
            ]
            return np.concatenate([self.summary(arrays, block)[main] for block in blocks])

        # reports ask for all metrics of the same weights, one after the other
        last_weights: Callable[[], Any] = lambda: None
        last_summary: dict[str, Any] = {}

        def metric_of(name: str, weights: np.ndarray) -> np.ndarray:
            nonlocal last_weights, last_summary
            if len(weights) == 1:
                return self.summary(arrays, weights)[name]
            if last_weights() is not weights:
                last_weights, last_summary = weakref.ref(weights), self.summary(arrays, weights)
            return last_summary[name]

        names = self.summary(arrays, np.ones((1, count)))
        metrics = {name: partial(metric_of, name) for name in self.metrics if name in names}
        return ImageScores(images, metrics, of_images, main, metric.direction)

    def best_constant(self, pixels: np.ndarray, data: PreparedDataset) -> Any:
        """The best prediction for every pixel, here the mean.

        Args:
            pixels: (n,) or (n, channels) ground truth of pixels of ``train``.
        """
        values = pixels[self.labelled(pixels)]
        return values.mean(axis=0, dtype=np.float64) if len(values) else np.zeros(self.channels)

    def constant_score(self, constant: Any, per_image: Mapping[str, np.ndarray]) -> float | None:
        """The main metric of a constant prediction where it follows from what an evaluation
        counted, else None: then it is scored like any prediction."""
        return None

    def constant_name(self, constant: Any, data: PreparedDataset) -> str:
        """A constant in words."""
        return ", ".join(f"{value:.3g}" for value in np.atleast_1d(constant))

    # --- pictures

    def drawing(self, classes: Sequence[str], targets: Sequence[np.ndarray]) -> Drawing:
        """How a map (channels, H, W) is drawn as (H, W, 3) uint8 RGB, and a legend: here the first
        channel in viridis over the range of ``targets``, grey where unknown."""

        values = np.concatenate([target[0][self.counted(target)] for target in targets])
        low, high = np.percentile(values, (1, 99)) if values.size else (0.0, 1.0)

        def draw(maps: np.ndarray) -> np.ndarray:
            return scalar_picture(np.nan_to_num(maps[0]), low, high, self.counted(maps))

        return draw, scale_bar(low, high, self.unit)

    def outcome(self, draw: Draw, target: np.ndarray, prediction: np.ndarray) -> np.ndarray:
        """A prediction (channels, H, W) drawn for a gallery as (H, W, 3) uint8 RGB: here by
        ``draw`` of ``drawing``. Colours of its own are in ``outcomes``, for the legend."""
        return draw(prediction)


def range_text(values: np.ndarray, unit: str) -> str:
    """``0.7 to 8.9 m, median 2.6 m``: the middle 98 % of numbers (n,)."""
    if not values.size:
        return "no pixel is known"
    low, median, high = np.percentile(values, (1, 50, 99))
    return f"{low:.3g} to {high:.3g}{unit}, median {median:.3g}{unit}"


def cropped(pixels: Tensor, crop: Sequence[Any] | None) -> Tensor:
    """(…, H, W) inside ``crop``, see ``Area``; all of it when None. On a device that can sum it in
    float64: its own, else the CPU.

    Raises:
        UserError: the crop does not fit.
    """
    from cliptex_common.device import float64_device

    pixels = pixels.to(float64_device(pixels.device))
    if crop is None:
        return pixels
    height, width = pixels.shape[-2:]
    y1, y2, x1, x2 = bounds_scored(tuple(crop), height, width)
    if y2 > height or x2 > width:
        raise UserError(
            f"the evaluation crop (rows {y1}-{y2}, columns {x1}-{x2}) does not fit a"
            f" {width}×{height} label map; the dataset must be at its official resolution"
        )
    return pixels[..., y1:y2, x1:x2]


def note_empty(arrays: Arrays, notes: list[str]) -> None:
    """Add a note on images without a valid pixel."""
    empty = arrays["image"][arrays["pixels"] == 0]
    if len(empty):
        count = f"{len(empty)} of {len(arrays['image'])}"
        notes.append(
            f"{count} images have no valid pixel and are not scored: {', '.join(empty[:5])}"
        )
