"""What a dense task computes of a head's outputs, as a loss in mmseg's registry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from probes.dense.tasks import DENSE_TASKS, DenseTask


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
        return self.task.decode(output)

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
