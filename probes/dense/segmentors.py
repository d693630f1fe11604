"""mmseg's encoder-decoder with predictions at the resolution of the image files, for segmentation
and regression."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import probes.runner.bridge  # noqa: F401  before mmseg, which it prepares

# isort: split
import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS
from torch import Tensor


class FlipTest(EncoderDecoder):
    """mmseg's encoder-decoder, which averages the outputs of an image and of its mirror image where
    ``test_cfg.flip`` is set, and pads sliding crops where ``test_cfg.padded`` is."""

    def inference(self, inputs: Tensor, metas: list[dict[str, Any]]) -> Tensor:
        raw = super().inference(inputs, metas)
        if not self.test_cfg.get("flip"):
            return raw
        return (raw + self.mirror(super().inference(inputs.flip(-1), metas))) / 2

    def slide_inference(self, inputs: Tensor, metas: list[dict[str, Any]]) -> Tensor:
        if not self.test_cfg.get("padded"):
            return super().slide_inference(inputs, metas)
        (height, width), (down, across) = self.test_cfg.crop_size, self.test_cfg.stride
        rows, columns = inputs.shape[2:]
        padded = F.pad(inputs, (0, width, 0, height))
        total = padded.new_zeros((len(inputs), self.out_channels, *padded.shape[2:]))
        count = padded.new_zeros(padded.shape[2:])
        metas[0]["img_shape"] = torch.Size((height, width))  # mmseg reads the padded shape else
        for y in range(0, rows, down):
            for x in range(0, columns, across):
                window = slice(y, y + height), slice(x, x + width)
                raw = self.encode_decode(padded[:, :, *window], metas)
                total[:, :, *window] += self.averaged(raw)
                count[*window] += 1
        return self.from_average((total / count)[:, :, :rows, :columns])

    def averaged(self, raw: Tensor) -> Tensor:
        """What is averaged where padded crops overlap."""
        return raw

    def from_average(self, values: Tensor) -> Tensor:
        """Outputs from an average."""
        return values

    def mirror(self, raw: Tensor) -> Tensor:
        """Outputs for a mirrored image → for the image itself."""
        return raw.flip(-1)


@MODELS.register_module()
class DenseSegmenter(FlipTest):
    """mmseg's encoder-decoder: predictions are ``pred_sem_seg`` (1, H, W; int64 class indices) at
    the resolution of the image file. Images of one shape are decoded together; logits are not
    kept."""

    def averaged(self, raw: Tensor) -> Tensor:
        return raw.softmax(dim=1)

    def postprocess_result(self, logits: Tensor, samples: list[Any] | None = None) -> Any:
        if samples is None:
            return super().postprocess_result(logits)
        for indices, part in at_own_size(logits, samples, self.align_corners):
            for index, labels in zip(indices, part.argmax(dim=1, keepdim=True), strict=True):
                samples[index].set_data({"pred_sem_seg": PixelData(data=labels)})
        return samples


@MODELS.register_module()
class DenseRegressor(FlipTest):
    """mmseg's encoder-decoder with a regressing head: predictions are ``pred_depth_map`` (1, H, W;
    metres) or ``pred_normal_map`` (3, H, W; unit length), at the resolution of the image file."""

    def averaged(self, raw: Tensor) -> Tensor:
        return self.decode_head.loss_decode.averaged(raw)

    def from_average(self, values: Tensor) -> Tensor:
        return self.decode_head.loss_decode.from_average(values)

    def mirror(self, raw: Tensor) -> Tensor:
        return self.decode_head.loss_decode.mirror(raw)

    def postprocess_result(self, raw: Tensor, samples: list[Any] | None = None) -> Any:
        objective = self.decode_head.loss_decode
        if samples is None:
            return objective.decode(raw)
        for indices, part in at_own_size(raw, samples, self.align_corners):
            for index, decoded in zip(indices, objective.decode(part), strict=True):
                samples[index].set_data({f"pred_{objective.field}": PixelData(data=decoded)})
        return samples


def at_own_size(
    raw: Tensor, samples: list[Any], align_corners: bool
) -> Iterator[tuple[list[int], Tensor]]:
    """(N, C, H, W) outputs at the resolution of the image files, without padding: those of one
    shape together, as (their indices in the batch, (n, C, height, width)). Around an ``area`` the
    values at its edge are repeated."""
    indices_by_shape: dict[Any, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        padding = tuple(sample.metainfo.get("img_padding_size", (0, 0, 0, 0)))
        rows, columns = sample.ori_shape[:2]
        y1, y2, x1, x2 = sample.metainfo.get("area", (0, rows, 0, columns))
        margins = (x1, max(0, columns - x2), y1, max(0, rows - y2))
        indices_by_shape[(rows, columns), padding, margins].append(index)
    for ((rows, columns), padding, margins), indices in indices_by_shape.items():
        west, east, north, south = padding
        size = (rows - sum(margins[2:]), columns - sum(margins[:2]))
        part = raw if len(indices) == len(raw) else raw[indices]
        part = part[:, :, north : part.shape[2] - south, west : part.shape[3] - east].float()
        if tuple(part.shape[2:]) != size:  # resizing to the same size would copy it
            part = F.interpolate(part, size, mode="bilinear", align_corners=align_corners)
        if any(margins):
            part = F.pad(part, margins, mode="replicate")
        yield indices, part
