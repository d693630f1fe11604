"""``unet-seg``, ``unet-depth``, ``unet-normals``: experts that are trained here.

Each is a timm encoder with a U-Net decoder (Ronneberger et al. 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.backbone import state_sha256
from backbones.cliptex import losses
from backbones.cliptex.encoders import PACKAGED, Normalise, timm_encoder
from backbones.cliptex.experts.base import Expert, ExpertData, FitSettings, Loss, resize
from backbones.cliptex.losses import IGNORE
from backbones.cliptex.tasks import find_label_map
from cliptex_common.images import UNKNOWN_CLASS
from cliptex_common.settings import settings_dataclass

LONGEST = 8  # of a long side in short ones


class LastOutput:
    """A function that returns its last output again where the next input is equal: experts with
    one encoder see the same images one after another."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        self.function = function
        self.input: Tensor | None = None
        self.output: Any = None

    def __call__(self, pixels: Tensor) -> Any:
        if self.input is None or not torch.equal(pixels, self.input):
            self.input, self.output = pixels, self.function(pixels)
        return self.output


class UNet(nn.Module):
    """Dense maps from a timm encoder.

    Args:
        encoder: name of a timm model that gives feature maps.
        pretrained: start from ImageNet weights, see ``timm_encoder``.
        frozen: leave the encoder as it is; only the decoder and the head are trained.
        channels: of the output.
        width: channels of the decoder's finest level; coarser levels have up to four times as many.
        stride: of the decoder's finest level (2 or 4); its output is brought to the input's size
            bilinearly.
    """

    def __init__(
        self,
        encoder: str,
        *,
        pretrained: bool,
        channels: int,
        frozen: bool = False,
        width: int = 32,
        stride: int = 2,
    ) -> None:
        super().__init__()
        self.encoder, mean, std = timm_encoder(encoder, pretrained)
        self.frozen = frozen
        self.encode_once: LastOutput | None = None  # shared with networks of the same encoder
        self.encoder.requires_grad_(not frozen)
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

    def train(self, mode: bool = True) -> Self:
        """As usual, but a frozen encoder keeps the statistics of its batch norms."""
        super().train(mode)
        self.encoder.train(mode and not self.frozen)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """RGB in [0, 1], (N, 3, H, W) of any size → (N, channels, H, W)."""
        size = images.shape[-2:]
        inner = [max(1, round(side / self.divisor)) * self.divisor for side in size]
        x = self.normalise(images)
        if inner != list(size):
            x = F.interpolate(x, inner, mode="bilinear", align_corners=False)
        encode = self.encode_once or self.encoder
        maps = encode(x.contiguous(memory_format=torch.channels_last))
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
    """``FitSettings`` and, as in ``UNet``, the encoder and decoder.

    Attributes:
        encoder: name of a timm model that gives feature maps.
        pretrained: start from ImageNet weights.
        frozen: train the decoder and the head alone.
        width: channels of the decoder's finest level.
        stride: of the decoder's finest level, 2 or 4.
    """

    encoder: str = PACKAGED
    pretrained: bool = True
    frozen: bool = False
    width: PositiveInt = 32
    stride: PositiveInt = 2


class UNetExpert(Expert):
    """An expert that is a ``UNet``, learned by the loss of its task. A subclass gives ``name``,
    ``task`` and, where a label is not what the task's loss takes, ``labels``.

    Attributes:
        channels: of the output; 0: those of the task's head.
    """

    settings_type = UNetSettings
    channels: ClassVar[int] = 0
    settings: UNetSettings

    def __init__(
        self, settings: UNetSettings, classes: tuple[str, ...] = (), *, pretrained: bool = False
    ) -> None:
        super().__init__(settings, classes)
        self.net = UNet(
            settings.encoder,
            pretrained=pretrained,
            channels=self.channels or find_label_map(self.task).output_channels(classes),
            frozen=settings.frozen,
            width=settings.width,
            stride=settings.stride,
        )

    @classmethod
    def create(cls, settings: UNetSettings, classes: tuple[str, ...]) -> Self:
        return cls(settings, classes, pretrained=settings.pretrained)

    def trunk(self) -> Iterable[nn.Module]:
        return [self.net.encoder, *self.net.blocks]

    def share_with(self, earlier: Expert) -> None:
        """Take the encoder of an earlier U-Net if both are the same frozen one."""
        if not isinstance(earlier, UNetExpert) or not (
            self.settings.frozen and earlier.settings.frozen
        ):
            return
        own, shared = self.net.encoder, earlier.net.encoder
        if state_sha256(own.state_dict()) == state_sha256(shared.state_dict()):
            earlier.net.encode_once = earlier.net.encode_once or LastOutput(shared)
            self.net.encoder, self.net.encode_once = shared, earlier.net.encode_once

    def outputs(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 → (N, channels, H, W), computed at ``size`` on the short side."""
        size = images.shape[-2:]
        inner = scaled(size, self.settings.size)
        return resize(self.net(resize(images.to(self.device).float() / 255, inner)), size)

    def labels(self, output: Tensor) -> Tensor:
        """Labels of N images from the network's output, (N, channels, H, W)."""
        return find_label_map(self.task).predict(output)

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, np.ndarray]:
        return {self.task: self.labels(self.outputs(images)).cpu().numpy()}

    def loss(self, data: ExpertData) -> Loss:
        def mean_loss(images: Tensor, target: Tensor) -> Tensor:
            total, count = self.summed_loss(self.net(images).float(), target)
            return total / count.clamp(min=1)

        return mean_loss

    def summed_loss(self, output: Tensor, target: Tensor) -> losses.Summed:
        """As ``Task.loss``, of the network's output."""
        task = find_label_map(self.task)
        return task.loss(task.activate(output), target)


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
    """Settings of ``unet-seg``.

    Attributes:
        score_threshold: pixels whose likeliest class has a lower probability are ignored.
        balance: 0 counts every pixel alike, 1 every class: the weight of a class is its share of
            the pixels to the power of -balance.
    """

    score_threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    balance: NonNegativeFloat = 0.0


class UNetSeg(UNetExpert):
    """Background and the classes of a COCO file."""

    name = "unet-seg"
    task = "seg"
    settings_type = UNetSegSettings
    settings: UNetSegSettings

    def labels(self, output: Tensor) -> Tensor:
        best, index = output.softmax(1).max(1)
        sure = best >= self.settings.score_threshold
        labels = torch.where(sure, index, self.ignore_index)
        return labels.to(torch.uint8 if self.ignore_index == UNKNOWN_CLASS else torch.uint16)

    def loss(self, data: ExpertData) -> Loss:
        weight = _class_weights(data, self.settings.balance).to(self.device)

        def weighted(images: Tensor, target: Tensor) -> Tensor:
            output = self.net(images).float()
            return F.cross_entropy(output, target, weight, ignore_index=IGNORE)

        return weighted


def _class_weights(data: ExpertData, balance: float) -> Tensor:
    """(classes,) weights whose mean over the labelled pixels is 1."""
    share = data.pixels[: len(data.classes)].float()
    share /= share.sum()
    weight = share.clamp(min=1e-6) ** -balance
    return weight / (weight * share).sum()


class UNetDepth(UNetExpert):
    """Relative inverse depth, learned by the loss of MiDaS (Ranftl et al., TPAMI 2022)."""

    name = "unet-depth"
    task = "depth"


class UNetNormals(UNetExpert):
    """Surface normals and their uncertainty, learned by the likelihood of AngMF (Bae et al., ICCV
    2021)."""

    name = "unet-normals"
    task = "normal"
    channels = 4

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, np.ndarray]:
        mean, kappa = losses.split_angmf(self.outputs(images))
        return {"normal": mean.cpu().numpy(), "confidence": kappa.cpu().numpy()}

    def summed_loss(self, output: Tensor, target: Tensor) -> losses.Summed:
        return losses.angmf_loss(output, target)
