"""The head of the linear probe."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from cliptex_common.device import is_accelerator
from probes.upsamplers.operators import UpsampledMaps


@MODELS.register_module()
class LinearHead(BaseDecodeHead):
    """The linear probe: batch normalisation, then one 1×1 convolution.

    Input (N, in_channels, H, W), output (N, out_channels, H, W).

    Of ``UpsampledMaps`` it upsamples its outputs where that gives the same: it does not where
    training normalises or drops channels.

    Args:
        dropout_first: dropout before the normalisation, not after it.
        norm: whether there is the normalisation.
    """

    def __init__(self, dropout_first: bool = False, norm: bool = True, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "channels": kwargs["in_channels"]})
        self.norm = nn.BatchNorm2d(self.in_channels) if norm else nn.Identity()
        self.has_norm, self.dropout_first = norm, dropout_first

    def forward(self, inputs: tuple[Tensor | UpsampledMaps, ...]) -> Tensor:
        if isinstance(inputs[0], UpsampledMaps):
            if not self.training or (not self.has_norm and self.dropout is None):
                return self._project_and_upsample(inputs[0])
            inputs = (inputs[0].features,)
        maps = self._transform_inputs(inputs)
        if self.dropout is not None and not self.dropout_first:
            return self.cls_seg(self.norm(maps))
        if self.dropout is not None:
            maps = self.dropout(maps)
        on_cpu = not is_accelerator(maps.device)  # a GPU's time is not in this head
        if self.has_norm and on_cpu and self.training and not maps.requires_grad:
            return self._normalise_and_project(maps)
        return self.conv_seg(self.norm(maps))

    def _project_and_upsample(self, maps: UpsampledMaps) -> Tensor:
        """``conv_seg(norm(maps.features))`` with the statistics of training."""
        weight, bias = self.conv_seg.weight.flatten(1), self.conv_seg.bias
        if not self.has_norm:
            return maps.project(weight, bias, weight.new_zeros(weight.shape[1]))
        norm: Any = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return maps.project(weight * scale, bias + weight @ norm.bias, norm.running_mean)

    def _normalise_and_project(self, maps: Tensor) -> Tensor:
        """``conv_seg(norm(maps))`` of constant maps, with the normalisation's scale and bias in
        those of the convolution: equal up to float32's rounding, and three times as fast, because
        no gradient passes through arrays as large as the maps."""
        norm: Any = self.norm
        weight = self.conv_seg.weight.flatten(1)
        norm.num_batches_tracked += 1
        mean, variance = torch.batch_norm_update_stats(
            maps, norm.running_mean, norm.running_var, norm.momentum
        )
        scaled = weight * (norm.weight * (variance + norm.eps).rsqrt())
        bias = self.conv_seg.bias + weight @ norm.bias
        # centred first: a bias that undoes a large mean would lose digits
        return F.conv2d(maps - mean[:, None, None], scaled[:, :, None, None], bias)
