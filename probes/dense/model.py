"""mmseg's encoder-decoder with predictions at the resolution of the image files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS
from torch import Tensor

from probes.dense.losses import build_head


@MODELS.register_module()
class DenseModel(EncoderDecoder):
    """mmseg's encoder-decoder, whose head has an ``objective``; see ``decode_heads.objectives``.

    It averages the outputs of an image and of its mirror image where ``test_cfg.flip`` is set, and
    pads sliding crops where ``test_cfg.padded`` is. Predictions are ``pred_FIELD``, as the
    objective decodes them at the resolution of the image file; images of one shape are decoded
    together, and outputs are not kept.
    """

    def _init_decode_head(self, decode_head: Any) -> None:
        self.decode_head = head = build_head(decode_head)
        self.align_corners, self.out_channels = head.align_corners, head.out_channels
        self.num_classes = head.num_classes

    def inference(self, inputs: Tensor, metas: list[dict[str, Any]]) -> Tensor:
        raw = super().inference(inputs, metas)
        if not self.test_cfg.get("flip"):
            return raw
        mirrored = super().inference(inputs.flip(-1), metas)
        return (raw + self.decode_head.objective.mirror(mirrored)) / 2

    def slide_inference(self, inputs: Tensor, metas: list[dict[str, Any]]) -> Tensor:
        if not self.test_cfg.get("padded"):
            return super().slide_inference(inputs, metas)
        objective = self.decode_head.objective
        (height, width), (down, across) = self.test_cfg.crop_size, self.test_cfg.stride
        rows, columns = inputs.shape[2:]
        padded = F.pad(inputs, (0, width, 0, height))
        total = padded.new_zeros((len(inputs), self.out_channels, *padded.shape[2:]))
        count = padded.new_zeros(padded.shape[2:])
        # mmseg resizes outputs to this if it is a torch.Size, else to the padded image's shape
        metas[0]["img_shape"] = torch.Size((height, width))
        for y in range(0, rows, down):
            for x in range(0, columns, across):
                window = slice(y, y + height), slice(x, x + width)
                raw = self.encode_decode(padded[:, :, *window], metas)
                total[:, :, *window] += objective.averaged(raw)
                count[*window] += 1
        return objective.from_average((total / count)[:, :, :rows, :columns])

    def postprocess_result(self, raw: Tensor, samples: list[Any]) -> list[Any]:
        objective = self.decode_head.objective
        for indices, part in at_own_size(raw, samples, self.align_corners):
            for index, decoded in zip(indices, objective.decode(part), strict=True):
                prediction = objective.at_own_scale(decoded, _scale(samples[index]))
                samples[index].set_data({f"pred_{objective.field}": PixelData(data=prediction)})
        return samples


def _scale(sample: Any) -> tuple[float, float]:
    """Factors of width and height by which an image, or its ``area``, was resized for the model."""
    rows, columns = sample.ori_shape[:2]
    y1, y2, x1, x2 = sample.metainfo.get("area", (0, rows, 0, columns))
    height, width = sample.img_shape[:2]
    return width / (min(x2, columns) - x1), height / (min(y2, rows) - y1)


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
