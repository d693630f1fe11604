"""``unet``: semantic segmentation by a timm encoder with a U-Net decoder (Ronneberger et al. 2015).

Also the base of the other experts that are one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.cliptex.data.augment import IGNORE as UNLABELLED
from backbones.cliptex.experts.base import IGNORE, Expert, resize
from backbones.cliptex.experts.data import ExpertData
from backbones.cliptex.experts.fit import ExpertTrainer, FitSettings
from backbones.cliptex.training.encoders import PACKAGED, Normalise, timm_encoder
from backbones.cliptex.training.trainer import TrainContext
from common.settings import settings_dataclass

LONGEST = 8


class UNet(nn.Module):
    """Dense maps from a timm encoder.

    Args:
        encoder: name of a timm model that gives feature maps.
        pretrained: start from ImageNet weights, see ``timm_encoder``.
        channels: of the output.
        width: channels of the decoder's finest level; coarser levels have up to four times as many.
        stride: of the decoder's finest level (2 or 4); its output is brought to the input's size
            bilinearly.
    """

    def __init__(
        self, encoder: str, *, pretrained: bool, channels: int, width: int = 32, stride: int = 2
    ) -> None:
        super().__init__()
        self.encoder, mean, std = timm_encoder(encoder, pretrained)
        strides = self.encoder.feature_info.reduction()
        depths = self.encoder.feature_info.channels()
        self.levels = [level for level, reduction in enumerate(strides) if reduction >= stride]
        self.divisor = max(strides)
        self.blocks = nn.ModuleList()
        below = depths[self.levels[-1]]
        for depth in reversed(range(len(self.levels) - 1)):
            outputs = min(width * 2**depth, width * 4)
            self.blocks.append(_block(below + depths[self.levels[depth]], outputs))
            below = outputs
        self.head = nn.Conv2d(below, channels, 1)
        self.normalise = Normalise(mean, std)

    def forward(self, images: Tensor) -> Tensor:
        """RGB in [0, 1], (N, 3, H, W) of any size → (N, channels, H, W)."""
        size = images.shape[-2:]
        inner = [max(1, round(side / self.divisor)) * self.divisor for side in size]
        x = self.normalise(images)
        if inner != list(size):
            x = F.interpolate(x, inner, mode="bilinear", align_corners=False)
        maps = self.encoder(x.contiguous(memory_format=torch.channels_last))
        x = maps[self.levels[-1]]
        for block, level in zip(self.blocks, reversed(self.levels[:-1]), strict=True):
            x = F.interpolate(x, maps[level].shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([x, maps[level]], 1))
        return F.interpolate(self.head(x), size, mode="bilinear", align_corners=False)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


@settings_dataclass
class UNetSettings(FitSettings):
    """``FitSettings`` and, as in ``UNet``, ``encoder``, ``pretrained``, ``width``, ``stride``."""

    encoder: str = PACKAGED
    pretrained: bool = True
    width: PositiveInt = 32
    stride: PositiveInt = 2


class UNetExpert(Expert):
    """An expert that is a ``UNet``: an output for each class, or the four of AngMF.

    WHERE: a folder that ``experts train`` wrote.
    """

    settings_type = UNetSettings
    settings: UNetSettings

    def __init__(
        self, settings: UNetSettings, classes: tuple[str, ...] = (), *, pretrained: bool = False
    ) -> None:
        super().__init__(settings, classes)
        self.net: nn.Module = UNet(
            settings.encoder,
            pretrained=pretrained,
            channels=len(classes) or 4,
            width=settings.width,
            stride=settings.stride,
        )

    @classmethod
    def create(cls, settings: UNetSettings, classes: tuple[str, ...]) -> Self:
        return cls(settings, classes, pretrained=settings.pretrained)

    def trunk(self) -> Iterable[nn.Module]:
        net: Any = self.net
        return [net.encoder, *net.blocks]

    def outputs(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 → (N, channels, H, W), computed at ``size`` on the short side."""
        size = images.shape[-2:]
        inner = scaled(size, self.settings.size)
        return resize(self.net(resize(images.to(self.device).float() / 255, inner)), size)


def scaled(size: tuple[int, ...], side: int) -> tuple[int, int]:
    """(H, W) brought to ``side`` on the short side, its aspect kept so that normals stay valid.

    The long side is at most ``LONGEST`` times the short one: a banner of 1 × 1,000 pixels must not
    become an image of 384 × 384,000.
    """
    scale, longest = side / min(size), LONGEST * side
    height, width = (min(longest, max(1, round(length * scale))) for length in size)
    return height, width


@settings_dataclass
class UNetSegSettings(UNetSettings):
    """Settings of ``unet``.

    Attributes (besides those of ``UNetSettings``):
        score_threshold: pixels whose likeliest class has a lower probability are ignored.
        balance: 0 counts every pixel alike, 1 every class: the weight of a class is its share of
            the pixels to the power of -balance.
    """

    score_threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    balance: NonNegativeFloat = 0.0


class UNetSeg(UNetExpert):
    """Semantic segmentation by a U-Net: background and the classes of a COCO file."""

    name = "unet"
    task = "seg"
    settings_type = UNetSegSettings
    settings: UNetSegSettings

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, np.ndarray]:
        best, index = self.outputs(images).softmax(1).max(1)
        sure = best >= self.settings.score_threshold
        labels = torch.where(sure, index, self.ignore_index).cpu().numpy()
        return {"seg": labels.astype(np.uint8 if self.ignore_index == IGNORE else np.uint16)}

    def train_on(self, data: ExpertData, context: TrainContext, seed: int) -> Mapping[str, float]:
        weight = _class_weights(data, self.settings.balance).to(context.device)

        def loss(images: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(
                self.net(images).float(), target, weight=weight, ignore_index=UNLABELLED
            )

        return ExpertTrainer(self, loss, data, self.settings, context, seed).fit()


def _class_weights(data: ExpertData, balance: float) -> Tensor:
    """(classes,) weights whose mean over the labelled pixels is 1."""
    share = data.pixels[: len(data.classes)].float()
    share /= share.sum()
    weight = share.clamp(min=1e-6) ** -balance
    return weight / (weight * share).sum()
