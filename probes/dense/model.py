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

from probes.dense.heads import ModuleHead, has_own_loss
from probes.dense.losses import TaskObjective, is_plain, resized_cross_entropy

CLASSES = TaskObjective("segmentation")


@MODELS.register_module()
class DenseModel(EncoderDecoder):
    """mmseg's encoder-decoder, for any ``DenseTask``: its head's loss is mmseg's, or a
    ``TaskObjective`` of outputs that are no classes. Losses are in fp32, also where the head runs
    under autocast.

    It averages the outputs of an image and of its mirror image where ``test_cfg.flip`` is set, and
    pads sliding crops where ``test_cfg.padded`` is. Predictions are ``pred_FIELD``, as the
    task decodes them at the resolution of the image file; images of one shape are decoded
    together, and outputs are not kept.

    Args:
        loss_images: the setting.
        **kwargs: of mmseg's ``EncoderDecoder``.
    """

    out_channels: int

    def __init__(self, loss_images: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss_images = loss_images
        raw = torch.zeros(1, self.out_channels, 1, 1)
        self.out_channels = self.objective.task.read_output(raw).shape[1]

    @property
    def objective(self) -> TaskObjective:
        """What the head's outputs are."""
        loss = self.decode_head.loss_decode
        return loss if isinstance(loss, TaskObjective) else CLASSES

    def init_weights(self) -> None:
        """mmseg's initialisation, but for the bias of the last convolution of what regresses."""
        super().init_weights()
        head, objective = self.decode_head, self.objective
        if objective is not CLASSES:
            bias = head.start if isinstance(head, ModuleHead) else head.conv_seg.bias
            with torch.no_grad():
                bias.copy_(torch.tensor(objective.task.first_output))

    def _decode_head_forward_train(self, maps: Any, samples: list[Any]) -> dict[str, Tensor]:
        head = self.decode_head
        if has_own_loss(type(head)):
            return super()._decode_head_forward_train(maps, samples)
        output = self.objective.task.read_output(head(maps))
        with torch.autocast(output.device.type, enabled=False):
            if self.objective is not CLASSES:
                losses = self._task_loss(output.float(), samples)
            elif head.sampler is None and is_plain(head.loss_decode):
                losses = self._cross_entropy(output.float(), samples)
            else:
                losses = head.loss_by_feat(output.float(), samples)
        return {f"decode.{name}": value for name, value in losses.items()}

    def _cross_entropy(self, logits: Tensor, samples: list[Any]) -> dict[str, Tensor]:
        """What the head's ``loss_by_feat`` computes, by ``resized_cross_entropy``."""
        head, loss = self.decode_head, self.decode_head.loss_decode
        labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
        images = self.loss_images or len(labels)
        options = head.ignore_index, head.align_corners, not loss.avg_non_ignore
        groups = [
            torch.stack(resized_cross_entropy(part, target, *options))
            for part, target in zip(logits.split(images), labels.split(images), strict=True)
        ]
        means, right, scored = torch.stack(groups).T
        return {
            loss.loss_name: loss.loss_weight * means.mean(),
            "acc_seg": 100 * right.sum() / scored.sum().clamp(min=1),
        }

    def _task_loss(self, output: Tensor, samples: list[Any]) -> dict[str, Tensor]:
        objective = self.objective
        target = torch.stack([sample.get(f"gt_{objective.field}").data for sample in samples])
        output = F.interpolate(
            output, target.shape[2:], mode="bilinear", align_corners=self.align_corners
        )
        if not self.loss_images:
            loss = objective(output, target)
        else:  # the images of a group as one tall image
            groups = [
                [part.transpose(0, 1).flatten(1, 2)[None] for part in each.split(self.loss_images)]
                for each in (output, target)
            ]
            loss = torch.stack([objective(*pair) for pair in zip(*groups, strict=True)]).mean()
        objective.iterations += 1
        return {objective.loss_name: loss}

    def encode_decode(self, inputs: Tensor, metas: list[dict[str, Any]]) -> Tensor:
        head = self.decode_head
        if has_own_loss(type(head)):
            return super().encode_decode(inputs, metas)
        output = self.objective.task.read_output(head(self.extract_feat(inputs)))
        if self.objective is not CLASSES:
            return head.predict_by_feat(output, metas)
        with torch.autocast(output.device.type, enabled=False):
            return head.predict_by_feat(output.float(), metas)

    def inference(self, inputs: Tensor, metas: list[dict[str, Any]]) -> Tensor:
        output = super().inference(inputs, metas)
        if not self.test_cfg.get("flip"):
            return output
        mirrored = super().inference(inputs.flip(-1), metas)
        return (output + self.objective.mirror(mirrored)) / 2

    def slide_inference(self, inputs: Tensor, metas: list[dict[str, Any]]) -> Tensor:
        if not self.test_cfg.get("padded"):
            return super().slide_inference(inputs, metas)
        task = self.objective.task
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
                total[:, :, *window] += task.to_average(raw)
                count[*window] += 1
        return task.from_average((total / count)[:, :, :rows, :columns])

    def postprocess_result(self, raw: Tensor, samples: list[Any]) -> list[Any]:
        objective = self.objective
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
