"""The network of Bae, Budvytis and Cipolla (ICCV 2021) as its authors released it.

EfficientNet-B5, a decoder, and per-pixel MLPs that refine the coarse normals at strides 4, 2 and 1.

Modules are named as in https://github.com/baegwangbin/surface_normal_uncertainty
(``models/NNET.py``), whose checkpoints (``scannet.pt``, ``nyu.pt``) hold these names, so that a
state dict fits as it is. timm's EfficientNet and the geffnet of those checkpoints name and shape
every parameter alike. In training the MLPs see the pixels of largest uncertainty only; a
prediction, which is all that is done here, is made of every pixel.
"""

from __future__ import annotations

from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.cliptex.tasks import angmf

Norm = Literal["BN", "GN"]
STRIDE = 32
SKIPS = (176, 64, 40, 24)  # channels of the encoder's maps at strides 16, 8, 4 and 2


class UncertaintyGuided(nn.Module):
    """Unit normals and κ of every pixel.

    Args:
        norm: the decoder's: ``BN``, or ``GN``, which comes with standardised weights (the authors'
            ``--architecture``).
    """

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.norm = norm
        self.encoder = _Encoder()
        self.decoder = _Decoder(norm)

    def trunk(self) -> list[nn.Module]:
        """All but what predicts normals."""
        part = self.decoder
        return [self.encoder, part.conv2, part.up1, part.up2, part.up3, part.up4]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """ImageNet-normalised RGB (N, 3, H, W) → unit μ (N, 3, H, W) and κ > 0 (N, H, W).

        Sides are multiples of 32.
        """
        return self.decoder(*self.encoder(images))


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.original_model: Any = timm.create_model("tf_efficientnet_b5", num_classes=0)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps at strides 32 (the head's convolution, before its norm), 16, 8, 4 and 2."""
        model, maps = self.original_model, []
        x = model.bn1(model.conv_stem(images))
        for stage, block in enumerate(model.blocks):
            x = block(x)
            if stage in (0, 1, 2, 4):
                maps.append(x)
        return [model.conv_head(x), *reversed(maps)]


class _Decoder(nn.Module):
    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.conv2 = nn.Conv2d(2048, 2048, 1)
        widths = (2048, 1024, 512, 256, 128)
        self.up1, self.up2, self.up3, self.up4 = (
            _Up(inputs + skip, outputs, norm)
            for inputs, skip, outputs in zip(widths[:-1], SKIPS, widths[1:], strict=True)
        )
        self.out_conv_res8 = nn.Conv2d(512, 4, 3, padding=1)
        self.out_conv_res4, self.out_conv_res2, self.out_conv_res1 = (
            _mlp(width + 4) for width in (512, 256, 128)
        )

    def forward(self, *maps: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv2(maps[0])
        fused = []
        for up, skip in zip((self.up1, self.up2, self.up3, self.up4), maps[1:], strict=True):
            x = up(x, skip)
            fused.append(x)
        output = _activated(self.out_conv_res8(fused[1]))
        mlps = (self.out_conv_res4, self.out_conv_res2, self.out_conv_res1)
        for mlp, features in zip(mlps, fused[1:], strict=True):
            # the first layer is linear in each pixel, so it and the enlargement may change places:
            # a quarter of the work
            x = _per_pixel(mlp[:1], torch.cat([features, output], 1))
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            output = _activated(_per_pixel(mlp[1:], x))
        return output[:, :3], output[:, 3]


class _Up(nn.Module):
    """Enlarge, join with the encoder's map, and convolve twice."""

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            layers += [
                nn.Conv2d(channels, outputs, 3, padding=1),
                nn.BatchNorm2d(outputs),
                nn.LeakyReLU(),
            ]
            if norm == "GN":
                layers[-3:-1] = [
                    _StandardisedConv(channels, outputs, 3, padding=1),
                    nn.GroupNorm(8, outputs),
                ]
        self._net = nn.Sequential(*layers)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, skip.shape[-2:], mode="bilinear", align_corners=True)
        return self._net(torch.cat([x, skip], 1))


class _StandardisedConv(nn.Conv2d):
    """Each filter has mean 0 and standard deviation 1 (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        std, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / (std + 1e-5), self.bias)


def _mlp(inputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, 128, 128):
        layers += [nn.Conv1d(channels, 128, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv1d(128, 4, 1))


def _per_pixel(layers: nn.Module, maps: Tensor) -> Tensor:
    output: Tensor = layers(maps.flatten(2))
    return output.unflatten(2, maps.shape[-2:])


def _activated(raw: Tensor) -> Tensor:
    mean, kappa = angmf.split(raw)
    return torch.cat([mean, kappa[:, None]], 1)
