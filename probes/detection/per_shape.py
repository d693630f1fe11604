"""Images of a batch are encoded alone, or with those of their own shape; only the maps that heads
read are padded.

A batch padded to its largest image is not what a model sees of each: a ViT attends to the padding
(its features move by a third of their norm), and the group norms of the pyramid count it. Evaluated
one by one nothing is padded so, and what was trained is not what is scored. Here the maps of an
image are the same whatever it is in a batch with, in training and in evaluation, encoded as they
are needed or kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from probes.runner import bridge  # before mmdet, which it prepares

# isort: split
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.utils.misc import samplelist_boxtype2tensor
from mmengine.model import BaseModule, ImgDataPreprocessor
from mmengine.registry import MODELS
from torch import Tensor
from torch.nn import functional as F

Part = dict[str, Any]  # of a config
Maps = Sequence[Tensor]  # (C, h, w) of one image: its pixels, or what is kept of it


def per_shape(model: Part) -> Part:
    """The config of a detector, so that backbone and neck see images of one shape at a time."""
    rest = {name: part for name, part in model.items() if name != "neck"}
    return {
        **rest,
        "data_preprocessor": {**model["data_preprocessor"], "type": "UnstackedDetPreprocessor"},
        "backbone": {"type": "PerShape", "backbone": model["backbone"], "neck": model["neck"]},
    }


@MODELS.register_module()
@bridge.mmdet.registry.MODELS.register_module()
class PerShape(BaseModule):
    """A backbone and a neck on images of several shapes, those of one shape together.

    Args:
        backbone, neck: their configs (or a list of necks, one after the other).
    """

    def __init__(self, backbone: Part, neck: Part | list[Part]) -> None:
        super().__init__()
        self.backbone, self.neck = MODELS.build(backbone), MODELS.build(neck)

    def forward(self, images: Sequence[Tensor | Maps]) -> tuple[Tensor, ...]:
        """(3, H, W) images, or kept maps of each, padded to the backbone's divisor only → levels
        (N, C, h, w) of the largest; what an image does not fill is zero."""
        alike: dict[tuple[torch.Size, ...], list[int]] = defaultdict(list)
        for place, image in enumerate(images):
            alike[
                tuple(one.shape for one in ([image] if isinstance(image, Tensor) else image))
            ].append(place)
        found: list[Maps] = [()] * len(images)
        for places in alike.values():
            group: list[Any] = [images[place] for place in places]
            batch = (
                torch.stack(group)
                if isinstance(group[0], Tensor)
                else tuple(map(torch.stack, zip(*group, strict=True)))
            )
            levels = self.neck(self.backbone(batch))
            if len(places) == len(images):
                return tuple(levels)
            for row, place in enumerate(places):
                found[place] = [level[row] for level in levels]
        return tuple(map(stacked, zip(*found, strict=True)))


@MODELS.register_module()
@bridge.mmdet.registry.MODELS.register_module()
class UnstackedDetPreprocessor(DetDataPreprocessor):
    """``DetDataPreprocessor`` whose ``inputs`` are a list of images (3, H, W), each padded to
    ``pad_size_divisor`` only. Maps that come in in the place of images go out as they are."""

    def forward(self, data: Mapping[str, Any], training: bool = False) -> dict[str, Any]:
        samples = self.cast_data(data["data_samples"])
        if isinstance(data["inputs"][0], Tensor):
            inputs: list[Any] = [
                ImgDataPreprocessor.forward(self, {"inputs": [image]}, training)["inputs"][0]
                for image in data["inputs"]
            ]
            for sample, image in zip(samples, inputs, strict=True):
                sample.set_metainfo({"pad_shape": tuple(image.shape[-2:])})
        else:  # collated level by level
            inputs = list(zip(*self.cast_data(data["inputs"]), strict=True))
        shape = tuple(max(sample.pad_shape[side] for sample in samples) for side in (0, 1))
        for sample in samples:
            sample.set_metainfo({"batch_input_shape": shape})
        samplelist_boxtype2tensor(samples)
        if self.pad_mask and training:
            self.pad_gt_masks(samples)
        return {"inputs": inputs, "data_samples": samples}


def stacked(maps: Sequence[Tensor]) -> Tensor:
    """(C, h, w) maps of several sizes → (N, C, H, W) of the largest, zeros at the right and the
    bottom."""
    height, width = (max(one.shape[side] for one in maps) for side in (1, 2))
    return torch.stack(
        [F.pad(one, (0, width - one.shape[2], 0, height - one.shape[1])) for one in maps]
    )
