"""Light task heads on the image encoder's feature maps, discarded after fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.cliptex.tasks import find_task

HIDDEN = 2  # layers of a task's head before its last convolution


class TaskHeads(nn.Module):
    """Feature maps → one dense prediction for each task.

    Shared: a norm for each map, a 1×1 convolution of them all to ``width`` channels, GELU, a 3×3
    convolution, GELU. For each task: a 1×1 convolution, GELU, and one that writes ``upsample``²
    sub-pixels (pixel shuffle, Shi et al. 2016), resized bilinearly where labels are larger still.

    The last convolution and what follows are in float32 under autocast, too: a depth that varies
    little around a large value has too few digits in bf16, and its gradient points elsewhere.

    Args:
        channels: of each feature map.
        outputs: task → output channels, see ``Task.output_channels``.
    """

    def __init__(
        self, channels: Sequence[int], outputs: Mapping[str, int], width: int, upsample: int = 4
    ) -> None:
        super().__init__()
        # the blocks of a transformer differ in scale by an order of magnitude
        self.norms = nn.ModuleList(nn.GroupNorm(1, count) for count in channels)
        self.shared = nn.Sequential(
            nn.Conv2d(sum(channels), width, 1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
        )
        self.tasks = nn.ModuleDict(
            {
                task: nn.Sequential(
                    nn.Conv2d(width, width, 1),
                    nn.GELU(),
                    nn.Conv2d(width, count * upsample**2, 1),
                    nn.PixelShuffle(upsample),
                )
                for task, count in outputs.items()
            }
        )

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """Maps (N, channels[i], h_i, w_i) → task → prediction of ``size``, as its loss takes it."""
        features = self.shared[1:](self._mix(maps))
        heads: dict[str, Any] = dict(self.tasks.items())
        hidden = {task: head[:HIDDEN](features) for task, head in heads.items()}
        with torch.autocast(features.device.type, enabled=False):
            return {
                task: find_task(task).activate(_resize(head[HIDDEN:](hidden[task].float()), size))
                for task, head in heads.items()
            }

    def _mix(self, maps: Sequence[Tensor]) -> Tensor:
        """The first convolution of all maps.

        It is linear in each pixel, so each map is convolved before it is enlarged: of a CNN's
        coarsest map at 16 × 16 pixels that saves most of the work.
        """
        first: Any = self.shared[0]
        largest = max((m.shape[-2:] for m in maps), key=lambda shape: shape[0] * shape[1])
        weights = first.weight.split([m.shape[1] for m in maps], 1)
        mixed = first.bias[:, None, None]
        for norm, part, weight in zip(self.norms, maps, weights, strict=True):
            mixed = mixed + _resize(F.conv2d(norm(part), weight), largest)
        return mixed


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
