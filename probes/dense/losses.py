"""What is computed of the outputs of a dense head: ``TaskObjective``, the loss of a ``DenseTask``;
``resized_cross_entropy`` of logits that are resized to labels; and ``TaskScores``, its metrics.

``F.cross_entropy(F.interpolate(logits, size, mode="bilinear"), labels)`` and its gradient take most
of a linear probe's time: each of a dozen passes goes over logits many times as large as the cache.
Here a few images at a time are resized (by two products with small matrices: bilinear resizing is
linear and separable), scored and differentiated while they are in the cache; only the gradient at
the features' resolution remains.

Metrics are at the labels' own resolution, over the set and for each image, and computed where the
model is (no number leaves the device before the end of an evaluation). Percentages are 0–100.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from mmengine.registry import MODELS
from mmseg.models.losses import CrossEntropyLoss
from mmseg.registry import METRICS
from torch import Tensor, nn

from cliptex_common.device import is_accelerator
from probes.dense.tasks import DENSE_TASKS, DenseTask

CACHED_BYTES = 2**20  # of resized logits at once on a CPU; more where images are larger
GPU_BYTES = 2**28


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # it is used where gradients are, too
def resizing(old: int, new: int, align_corners: bool, device: torch.device) -> Tensor:
    """(old, new) weights: a row of ``old`` values times them is that row resized as
    ``F.interpolate`` does it."""
    rows = torch.eye(old)[None]
    return F.interpolate(rows, new, mode="linear", align_corners=align_corners)[0].to(device)


class _ResizedCrossEntropy(torch.autograd.Function):
    """Sum of the loss over all scored pixels, and how many pixels are right."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool
    ) -> tuple[Tensor, Tensor]:
        images, classes, *low = logits.shape
        high = labels.shape[1:]
        rows, columns = (
            resizing(old, new, align_corners, logits.device)
            for old, new in zip(low, high, strict=True)
        )
        bytes_at_once = GPU_BYTES if is_accelerator(logits.device) else CACHED_BYTES
        step = max(1, bytes_at_once // (4 * classes * high[0] * high[1]))
        total, right = logits.new_zeros(()), labels.new_zeros(())
        gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
        for start in range(0, images, step):
            part, target = logits[start : start + step], labels[start : start + step]
            scored = target != ignore_index
            target = torch.where(scored, target, 0)[:, None]
            large = rows.T @ (part @ columns)
            is_best = (large.gather(1, target) >= large.amax(dim=1, keepdim=True))[:, 0]
            right += (scored & is_best).sum()
            large = F.log_softmax(large, dim=1)
            total -= (large.gather(1, target)[:, 0] * scored).sum()
            large.exp_().scatter_add_(1, target, large.new_full((), -1.0).expand(target.shape))
            large *= scored[:, None]
            gradient[start : start + step] = (rows @ large) @ columns.T
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(right)
        return total, right

    @staticmethod
    def backward(ctx: Any, slope: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return slope * gradient, None, None, None


def resized_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool, over_all: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross-entropy over the scored pixels of logits resized (bilinear) to the labels, as a
    scalar with a gradient; the number of pixels that are right; the number that are scored.

    The same as ``F.interpolate`` and ``F.cross_entropy`` up to float32's rounding.

    Args:
        logits: (N, classes, h, w) float32.
        labels: (N, H, W) int64, class indices or ``ignore_index``.
        over_all: the mean is over all pixels, those that are not scored as 0.
    """
    total, right = _ResizedCrossEntropy.apply(logits, labels, ignore_index, align_corners)
    scored = (labels != ignore_index).sum()
    return total / (labels.numel() if over_all else scored.clamp(min=1)), right, scored


def is_plain(loss: Any) -> bool:
    """Whether a loss is the mean cross-entropy over the pixels, with or without those that are
    ignored."""
    return (
        type(loss) is CrossEntropyLoss
        and not loss.use_sigmoid
        and not loss.use_mask
        and loss.class_weight is None
        and loss.reduction == "mean"
    )


@MODELS.register_module()
class TaskObjective(nn.Module):
    """The meaning of a head's raw outputs, and their loss: those of a ``DenseTask``.
    ``read_output`` comes first, at the resolution of the features; the loss or ``decode`` at that
    of the ground truth.

    Args:
        task: the dense task, or its name.
        **options: its attributes, as ``DenseTask.objective`` gives them.

    Attributes:
        field: of a sample: ``gt_FIELD`` is its ground truth, ``pred_FIELD`` its prediction.
        channels: raw outputs of a pixel.
        iterations: of training so far.
    """

    iterations: Tensor

    def __init__(self, task: str | DenseTask, **options: Any) -> None:
        super().__init__()
        self.task = (DENSE_TASKS.find(task) if isinstance(task, str) else task).bound(**options)
        self.field, self.channels = self.task.field, len(self.task.first_output)
        self.loss_name = self.task.loss_name
        self.register_buffer("iterations", torch.zeros((), dtype=torch.long))

    def mirror(self, output: Tensor) -> Tensor:
        """Outputs (as read) of a mirrored image → of the image itself."""
        return _multiplied(output.flip(-1), self.task.factors(True, (1.0, 1.0)), dim=1)

    def decode(self, output: Tensor) -> Tensor:
        """See ``DenseTask``."""
        return self.task.decode_output(output)

    def at_own_scale(self, prediction: Tensor, scale: tuple[float, float]) -> Tensor:
        """A prediction (channels, H, W) of an image that was resized by factors of width and height
        → of the image itself."""
        factors = self.task.factors(False, (1 / scale[0], 1 / scale[1]))
        return _multiplied(prediction, factors, dim=0)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Loss of outputs (as read), float32, against ``target`` of the same size; a scalar."""
        return self.task.batch_loss(output, target, self.iterations)


def _multiplied(values: Tensor, factors: Sequence[float], dim: int) -> Tensor:
    """The first channels, which are along ``dim``, by a factor each."""
    if all(factor == 1 for factor in factors):
        return values
    first, rest = values.split([len(factors), values.shape[dim] - len(factors)], dim)
    return torch.cat([first * values.new_tensor(factors).view(-1, 1, 1), rest], dim)


SHOWN_SIDE = 512  # of what is drawn, pixels


@METRICS.register_module()
class TaskScores(BaseMetric):
    """The metrics of a ``DenseTask`` for mmengine's evaluator.

    Args:
        task: name of the dense task.
        **options: its attributes, as ``DenseTask.evaluator`` gives them.

    Attributes:
        per_image: after ``compute_metrics``: arrays whose first axis is the images in the order of
            the dataset, with ``image``, their relative paths.
        notes: lines on what was left out.
        shown: prediction and ground truth of the images in ``dataset_meta["gallery"]``, with every
            k-th row and column, so that at most ``SHOWN_SIDE`` are left.
    """

    default_prefix = ""  # mmengine warns of None

    def __init__(self, task: str, **options: Any) -> None:
        super().__init__(collect_device="cpu")
        self.task = DENSE_TASKS.find(task).bound(**options)
        self.per_image: dict[str, np.ndarray] = {}
        self.notes: list[str] = []
        self.shown: dict[str, list[Tensor]] = {}

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Score a batch: all of its images count or, where one fails, none does."""
        task, metainfo = self.task, self.dataset_meta or {}
        before = None if task.pooled is None else task.pooled.clone()
        task.classes = metainfo.get("classes", ())
        results = []
        try:
            for sample in data_samples:
                maps = [sample[f"{which}_{task.field}"]["data"] for which in ("pred", "gt")]
                results.append({"image": sample["image"], **task.score(*maps)})
                if sample["image"] in metainfo.get("gallery", ()):
                    self.shown[sample["image"]] = list(map(_shrunk, maps))
        except Exception:
            task.pooled = before
            raise
        self.results += results

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        self.per_image = {
            key: np.array([np.asarray(result[key]) for result in results]) for key in results[0]
        }
        self.per_image |= self.task.arrays_of_set(len(results))
        self.notes = []
        metrics = self.task.metrics_of(self.per_image, self.notes)
        self.task.pooled = None
        return metrics


def _shrunk(values: Tensor) -> Tensor:
    """A copy of (channels, H, W) to be drawn; see ``TaskScores.shown``."""
    step = math.ceil(max(values.shape[1:]) / SHOWN_SIDE)
    part = values[:, ::step, ::step]
    return part.clone() if values.is_floating_point() else part.short()
