"""A dense head of your own: each map is projected, and all are brought to the finest and added. Try
it:

python -m benchmark run --plugin sum-of-maps.py --backbone random --task camvid/sum-of-maps \\
    --set head.width=128 --set max_iters=50 --set size=64 --data camvid=DIR
"""

import torch
from torch import nn
from torch.nn import functional as F

from probes.dense.probe import register_head


class SumOfMaps(nn.Module):
    """Arguments other than these two are options: ``--set head.width=128`` changes one, and all are
    part of a number's identity.

    Args:
        in_channels: channels of each map, shallow to deep.
        out_channels: numbers of a pixel: classes; 1 of depth, 3 of normals, or more with ``bins``
            and ``uncertainty``.
        width: of the sum.
    """

    def __init__(self, in_channels: list[int], out_channels: int, width: int = 64) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in in_channels)
        self.predict = nn.Conv2d(width, out_channels, 1)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Maps (N, in_channels[i], h_i, w_i) → logits (N, out_channels, h, w) of any resolution."""
        size = maps[0].shape[2:]
        projected = [
            F.interpolate(layer(x), size, mode="bilinear", align_corners=False)
            for layer, x in zip(self.project, maps, strict=True)
        ]
        return self.predict(torch.stack(projected).sum(dim=0).relu())


# the probe sum-of-maps on every dataset with segmentation, depth or normals; further keywords are
# defaults of its options
register_head("sum-of-maps", SumOfMaps)
