"""Light task heads on the image encoder's patch features. They steer fine-tuning and are thrown away afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TaskHead(nn.Module):
    """Concatenated feature maps → one dense prediction.

    1×1 convolution to ``width`` channels, GELU, 3×3 convolution, GELU, then a 1×1 convolution that writes
    ``upsample``² sub-pixels (pixel shuffle, Shi et al. 2016), resized bilinearly where labels are larger still.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int = 128, upsample: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, width, 1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, out_channels * upsample**2, 1),
            nn.PixelShuffle(upsample),
        )

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, in_channels, h, w) → (N, out_channels, *size)."""
        dense = self.layers(features)
        if dense.shape[-2:] != size:
            dense = F.interpolate(dense, size=size, mode="bilinear", align_corners=False)
        return dense


class TaskHeads(nn.Module):
    """A head for each task over the same normalised features.

    Args:
        channels: of each feature map.
        outputs: task → output channels: ``seg`` number of classes, ``depth`` 1, ``normal`` 3.
    """

    def __init__(
        self, channels: Sequence[int], outputs: Mapping[str, int], width: int = 128, upsample: int = 4
    ) -> None:
        super().__init__()
        # blocks of a transformer differ in scale by an order of magnitude; without this the deepest drowns the others
        self.norms = nn.ModuleList(nn.GroupNorm(1, count) for count in channels)
        self.heads = nn.ModuleDict(
            {task: TaskHead(sum(channels), count, width, upsample) for task, count in outputs.items()}
        )

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """Maps (N, channels[i], h_i, w_i) → task → (N, C, H, W), but ``depth`` (N, H, W); ``normal`` of unit length."""
        largest = max((m.shape[-2:] for m in maps), key=lambda shape: shape[0] * shape[1])
        resized = [
            normed if normed.shape[-2:] == largest else F.interpolate(normed, size=largest, mode="bilinear")
            for normed in (norm(m) for norm, m in zip(self.norms, maps, strict=True))
        ]
        features = torch.cat(resized, 1)
        dense = {task: head(features, size) for task, head in self.heads.items()}
        if "depth" in dense:
            dense["depth"] = dense["depth"].squeeze(1)
        if "normal" in dense:
            dense["normal"] = F.normalize(dense["normal"].float(), dim=1, eps=1e-6)
        return dense
