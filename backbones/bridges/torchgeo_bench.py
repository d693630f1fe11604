"""torchgeo-bench's interface: a ``BenchModel`` for the bands of a dataset."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchgeo_bench.datasets.base import BandSpec
from torchgeo_bench.models import BenchModel, InputUnit
from torchvision.transforms.v2.functional import to_pil_image

from backbones.backbone import Preprocessing, in_memory_format
from backbones.registry import create
from cliptex_common.errors import UserError

RGB = [BandSpec("aerial", name, name, 127.5, 74.0, 0.0, 255.0) for name in ("red", "green", "blue")]


class TorchgeoBenchModel(BenchModel):
    """See ``backbones.as_torchgeo_bench``. 8-bit images of another size are resized as here.

    Raises:
        UserError: there are not three bands.
    """

    expected_input_unit = InputUnit.REFLECTANCE_0_1

    def __init__(
        self, name: str, bands: Any, normalization: str = "model_native", **options: Any
    ) -> None:
        bands = list(bands or RGB)
        if len(bands) != 3:
            raise UserError(f"{name!r} takes three bands, not {len(bands)}; set dataset.bands=rgb")
        model = create(name, **options)
        self.pretrain_mean, self.pretrain_std = list(model.data.mean), list(model.data.std)
        super().__init__(bands, normalization)
        self.model, self.prepare = model, Preprocessing(model.data)
        self.maps = nn.ModuleList(nn.Identity() for _ in model.strides)
        self.is_8_bit = 10 < max(band.max for band in bands) <= 255  # as the suite tells units

    def normalize_inputs(self, images: Tensor) -> Tensor:
        if self.is_8_bit and not self._gives_maps() and images.shape[-2:] != self.model.data.size:
            pixels = images.round().byte().cpu()
            resized = [self.prepare.resize(to_pil_image(each)) for each in pixels]
            images = torch.stack(resized).to(images)
        if self.is_8_bit and self.normalization == "model_native":
            return self.prepare.normalise(images)  # the suite's rounds otherwise
        return super().normalize_inputs(images)

    def _forward_patch_features(self, images: Tensor) -> Tensor:
        images = in_memory_format(images, self.model)
        if not self._gives_maps():
            return self.model.encode_image(images)
        maps = [hooked(each) for hooked, each in zip(self.maps, self.model(images), strict=True)]
        return maps[-1].mean(dim=(2, 3))

    def _gives_maps(self) -> bool:
        """Whether a segmentation probe has hooked into the maps."""
        return any(each._forward_hooks for each in self.maps)
