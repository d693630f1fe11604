"""kaiko-eva's interface: a module from normalised images to embeddings or maps, and a transform of
its datasets, which give 8-bit tensors."""

from __future__ import annotations

from typing import Any

import torch
from eva.core.models.wrappers import BaseModel
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import to_pil_image

from backbones.backbone import Backbone, Preprocessing, in_memory_format, resizing
from backbones.registry import create


class EvaEncoder(BaseModel):
    """See ``backbones.as_eva``."""

    def __init__(self, name: str, maps: bool, **options: Any) -> None:
        super().__init__()
        self.maps = maps
        self.model = self.load_model(name, **options)
        self.transform = EvaTransform(self.model)

    def load_model(self, name: str, **options: Any) -> Backbone:
        return create(name, **options)

    def model_forward(self, tensor: Tensor) -> Tensor | list[Tensor]:
        images = in_memory_format(tensor, self.model)
        return list(self.model(images)) if self.maps else self.model.encode_image(images)


class EvaTransform(v2.Transform):
    """Images and masks as a backbone takes them, in place of eva's ``ResizeAndCrop``.

    Args:
        backbone: it, or its name; ``weights``: a file of this one's.
    """

    def __init__(self, backbone: str | Backbone, weights: str | None = None) -> None:
        super().__init__()
        if isinstance(backbone, str):
            backbone = create(backbone, weights=weights)
        data = backbone.data
        self.prepare, self.resize_mask = Preprocessing(data), resizing(data, "nearest")

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Image):
            return tv_tensors.Image(self.prepare(to_pil_image(inpt)))
        if isinstance(inpt, tv_tensors.Mask):
            classes = Image.fromarray(inpt.reshape(inpt.shape[-2:]).to(torch.int32).numpy())
            mask = self.resize_mask(classes).to(inpt.dtype)
            return tv_tensors.Mask(mask if inpt.ndim == 3 else mask[0])
        return inpt
