"""Objectives: what a head's raw outputs mean, and the loss of those that regress.

Raw outputs are resized to the label's resolution first and decoded there; what ``read`` does (the
mean over bins of depth) comes before that, at the resolution of the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from probes.dense.tasks import DENSE_TASKS, DenseTask


@MODELS.register_module()
class TaskObjective(nn.Module):
    """The meaning of a head's raw outputs, and their loss: those of a ``DenseTask``, unless a
    subclass has its own. In this order: ``read`` at the resolution of the features; where it is
    tested, ``mirror``, ``averaged`` and ``from_average``; at the resolution of the ground truth
    ``forward`` or ``decode``; ``at_own_scale`` where the image was resized.

    Args:
        task: the dense task, or its name.

    Attributes:
        field: of a sample: ``gt_FIELD`` is its ground truth, ``pred_FIELD`` its prediction.
        loss_name: key of the loss.
        channels: raw outputs of a pixel.
        first_raw: raw outputs at the start of training: the bias of the last convolution.
        iterations: of training so far.
    """

    loss_name: ClassVar[str] = "loss_task"
    first_raw: tuple[float, ...]
    iterations: Tensor

    def __init__(self, task: str | DenseTask) -> None:
        super().__init__()
        self.task = DENSE_TASKS.find(task) if isinstance(task, str) else task
        self.field, self.channels = self.task.field, self.task.outputs
        self.first_raw = (0.0,) * self.channels
        self.register_buffer("iterations", torch.zeros((), dtype=torch.long))

    def read(self, raw: Tensor) -> Tensor:
        """(N, channels, h, w) raw outputs as they are resized and averaged."""
        return raw

    def mirror(self, raw: Tensor) -> Tensor:
        """``raw`` (as read) of a mirrored image → of the image itself."""
        return _multiplied(raw.flip(-1), self.task.factors(True, (1.0, 1.0)), dim=1)

    def averaged(self, raw: Tensor) -> Tensor:
        """What is averaged where padded sliding crops overlap; ``from_average`` undoes it."""
        return raw

    def from_average(self, values: Tensor) -> Tensor:
        return values

    def decode(self, raw: Tensor) -> Tensor:
        """``raw`` (as read), float32 → predictions, (N, channels of the ground truth, H, W)."""
        prediction = self.task.predict(raw)
        return prediction[:, None] if prediction.ndim == 3 else prediction

    def at_own_scale(self, prediction: Tensor, scale: tuple[float, float]) -> Tensor:
        """A prediction (channels, H, W) of an image that was resized by factors of width and height
        → of the image itself."""
        factors = self.task.factors(False, (1 / scale[0], 1 / scale[1]))
        return _multiplied(prediction, factors, dim=0)

    def forward(self, raw: Tensor, target: Tensor) -> Tensor:
        """Loss of ``raw`` (as read), float32, against ``target`` of the same size; a scalar."""
        total, count = self.task.loss(self.task.activate(raw), target.squeeze(1))
        return total / count.clamp(min=1)


class ClassObjective(TaskObjective):
    """Logits of classes, whose loss is mmseg's."""

    def __init__(self) -> None:
        super().__init__("segmentation")

    def averaged(self, raw: Tensor) -> Tensor:
        return raw.softmax(dim=1)

    def decode(self, raw: Tensor) -> Tensor:
        """(N, classes, H, W) logits → (N, 1, H, W) int64 class indices."""
        return raw.argmax(dim=1, keepdim=True)


def _multiplied(values: Tensor, factors: Sequence[float], dim: int) -> Tensor:
    """The first channels, which are along ``dim``, by a factor each."""
    if all(factor == 1 for factor in factors):
        return values
    first, rest = values.split([len(factors), values.shape[dim] - len(factors)], dim)
    return torch.cat([first * values.new_tensor(factors).view(-1, 1, 1), rest], dim)
