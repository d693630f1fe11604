"""Images of a batch are encoded alone, or with those of their own shape; only the maps that heads
read are padded.

In a batch padded to its largest image, a ViT attends to the padding (its features move by a third
of their norm) and the group norms of the pyramid count it, while images that are evaluated one by
one have none. Here the maps of an image are the same in every batch, in training and in evaluation,
cached or not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.utils.misc import samplelist_boxtype2tensor
from mmengine.model import BaseModule, ImgDataPreprocessor, stack_batch
from mmengine.registry import MODELS
from torch import Tensor

Part = dict[str, Any]  # of a config
Maps = Sequence[Tensor]  # (C, h, w), of one image


@MODELS.register_module()
class PerShape(BaseModule):
    """A backbone and a neck on images of several shapes, those of one shape together.

    Args:
        backbone, neck: their configs (or a list of necks, one after the other).
    """

    def __init__(self, backbone: Part, neck: Part | list[Part]) -> None:
        super().__init__()
        self.backbone, self.neck = MODELS.build(backbone), MODELS.build(neck)

    def forward(self, images: Sequence[Tensor | Maps]) -> tuple[Tensor, ...]:
        """(3, H, W) images, or cached maps of each, padded to the backbone's divisor only → levels
        (N, C, h, w) of the largest, with zeros where an image is smaller."""
        indices_by_shape: dict[Any, list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            maps = [image] if isinstance(image, Tensor) else image
            indices_by_shape[tuple(each.shape for each in maps)].append(index)
        levels: list[Maps] = [()] * len(images)
        for indices in indices_by_shape.values():
            group: list[Any] = [images[index] for index in indices]
            if isinstance(group[0], Tensor):
                batch: Any = torch.stack(group)
            else:
                batch = tuple(map(torch.stack, zip(*group, strict=True)))
            outputs = self.neck(self.backbone(batch))
            if len(indices) == len(images):
                return tuple(outputs)
            for row, index in enumerate(indices):
                levels[index] = [output[row] for output in outputs]
        return tuple(stack_batch(list(maps)) for maps in zip(*levels, strict=True))


@MODELS.register_module()
class UnstackedDetPreprocessor(DetDataPreprocessor):
    """``DetDataPreprocessor`` whose ``inputs`` are a list of images (3, H, W), each padded to
    ``pad_size_divisor`` only; maps of images are not changed."""

    def forward(self, data: Mapping[str, Any], training: bool = False) -> dict[str, Any]:
        samples = self.cast_data(data["data_samples"])
        if isinstance(data["inputs"][0], Tensor):
            inputs: list[Any] = [
                ImgDataPreprocessor.forward(self, {"inputs": image[None]}, training)["inputs"][0]
                for image in data["inputs"]
            ]
            for sample, image in zip(samples, inputs, strict=True):
                sample.set_metainfo({"pad_shape": tuple(image.shape[-2:])})
        else:
            inputs = self.cast_data(data["inputs"])
        shape = tuple(max(sample.pad_shape[side] for sample in samples) for side in (0, 1))
        for sample in samples:
            sample.set_metainfo({"batch_input_shape": shape})
        samplelist_boxtype2tensor(samples)
        if self.pad_mask and training:
            self.pad_gt_masks(samples)
        return {"inputs": inputs, "data_samples": samples}
