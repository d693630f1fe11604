"""Experts whose weights their authors published.

``dpt``: relative inverse depth (Ranftl et al., TPAMI 2022, and later). ``nll-angmf``: surface
normals and their uncertainty, by the network of Bae, Budvytis and Cipolla (ICCV 2021) as its
authors released it: EfficientNet-B5, a decoder, and per-pixel MLPs that refine the coarse normals
at strides 4, 2 and 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN as MEAN
from timm.data import IMAGENET_DEFAULT_STD as STD
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.adapters.common import hub_reachable
from backbones.checkpoint import fit_state, load_checkpoint
from backbones.cliptex import losses
from backbones.cliptex.encoders import Normalise
from backbones.cliptex.experts.base import Expert, FitSettings, resize
from backbones.cliptex.experts.unet import scaled
from cliptex_common.errors import UserError, first_line

SUGGESTED = "Intel/dpt-large or depth-anything/Depth-Anything-V2-Small-hf"


class DPT(Expert):
    """A depth model of transformers that predicts relative inverse depth.

    Its own processor resizes and normalises the images.
    """

    name = "dpt"
    task = "depth"

    def __init__(self, net: nn.Module, processor: Any) -> None:
        super().__init__(FitSettings())
        self.net: Any = net
        self.processor = processor

    def identity(self) -> dict[str, Any]:
        parts = {"model": self.net.config.to_dict(), "processor": self.processor.to_dict()}
        described = {
            part: {k: v for k, v in config.items() if not k.startswith(("_", "transformers"))}
            for part, config in parts.items()
        }
        return {**super().identity(), "settings": {}, **described}

    def trunk(self) -> Iterable[nn.Module]:
        return [part for name, part in self.net.named_children() if name != "head"]

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, np.ndarray]:
        # on the CPU: other devices round bytes that are resized in another way
        pixels = self.processor(images=images.cpu(), return_tensors="pt")["pixel_values"]
        depth = self.net(pixel_values=pixels.to(self.device)).predicted_depth
        return {"depth": resize(depth[:, None].float(), images.shape[-2:])[:, 0].cpu().numpy()}

    @classmethod
    def load(cls, source: str, device: torch.device | str = "cpu") -> Self:
        """Published weights.

        Args:
            source: a hub name (``Intel/dpt-large``, ``depth-anything/Depth-Anything-V2-Small-hf``),
                or a folder as transformers saves it.
        Raises:
            UserError: no such model, missing weights, or not relative inverse depth.
        """
        if Path(source).is_file():
            raise UserError(
                f"{source} is a file, and MiDaS's own checkpoints are not read; use the same"
                f" weights from the hub, such as dpt={SUGGESTED}"
            )
        net, processor = _from_transformers(source)
        _check_convention(source, net.config)
        expert = cls(net, processor)
        expert.source = source
        return expert.freeze(device)


def _from_transformers(source: str) -> tuple[Any, Any]:
    """The model and its image processor; a torch file is not unpickled."""
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    # without a network transformers would try again for minutes before it reads the cache
    options: dict[str, Any] = {"local_files_only": Path(source).exists() or not hub_reachable()}
    try:
        processor = AutoImageProcessor.from_pretrained(source, **options)
        net, report = AutoModelForDepthEstimation.from_pretrained(
            source, weights_only=True, output_loading_info=True, **options
        )
    except Exception as error:  # transformers and the hub raise nearly anything
        raise UserError(
            f"no depth model at {source!r} ({first_line(error)}); give a folder with config.json,"
            " preprocessor_config.json and model.safetensors, or be online and use a hub name such"
            f" as {SUGGESTED}"
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    if report["missing_keys"]:
        raise UserError(f"{source} lacks weights of its model, first {min(report['missing_keys'])}")
    return net, processor


def _check_convention(source: str, config: Any) -> None:
    """Refuse models that are not known to predict relative inverse depth: labels would be inverted.

    Depth Anything's config says it (``depth_estimation_type``). DPT's has no such field: those of
    MiDaS' authors (``Intel/dpt-…``) are relative, and a DPT head on DINOv2 (``add_projection``)
    predicts metres.
    """
    default = "relative" if source.startswith("Intel/dpt-") else "unknown"
    depth_type = getattr(config, "depth_estimation_type", default)
    if getattr(config, "add_projection", False):
        depth_type = "metric"
    if config.model_type not in ("dpt", "depth_anything"):
        raise UserError(f"{source} is of type {config.model_type}, not DPT; use {SUGGESTED}")
    if depth_type != "relative":
        raise UserError(
            f"{source} is not known to predict relative inverse depth, as labels need it"
            f" (depth_estimation_type: {depth_type}); use {SUGGESTED}, or, if it does, write"
            ' "depth_estimation_type": "relative" into the config.json of a copy'
        )


AT_ONCE = 8  # images: at 480 × 640 px the last MLP takes 0.5 GB each


class NllAngMF(Expert):
    """The authors' own network with their weights.

    Their normals have x left, y up, z towards the camera; ``predict`` negates x to give
    ``cliptex_common.images.AXES``. (Their repository does not say so; its issue 13 found it by
    trial, and their DSINE, which reads the same ground truth of NYU-v2 and ScanNet, says it: x
    right, y down, z to the front, of normals that point into the surface.)
    """

    name = "nll-angmf"
    task = "normal"

    def __init__(self, norm: Norm, size: int = 480) -> None:
        super().__init__(FitSettings(size=size))  # their weights are for images of 480 × 640
        self.net = UncertaintyGuided(norm)
        self.normalise = Normalise(MEAN, STD)

    @classmethod
    def load(cls, source: str, device: torch.device | str = "cpu") -> Self:
        """A checkpoint of the authors (``scannet.pt``, ``nyu.pt``)."""
        checkpoint = load_checkpoint(source)
        norm: Norm = "BN" if "decoder.up1._net.1.running_mean" in checkpoint.state else "GN"
        expert = cls(norm)
        fit_state(expert.net, checkpoint, f"the authors' NLL-AngMF network with {norm}")
        expert.source = source
        return expert.freeze(device)

    def identity(self) -> dict[str, Any]:
        settings = {"size": self.settings.size, "norm": self.net.norm}
        return {**super().identity(), "settings": settings}

    def trunk(self) -> Iterable[nn.Module]:
        return self.net.trunk()

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, np.ndarray]:
        size, device = images.shape[-2:], self.device
        inner = [max(1, round(side / STRIDE)) * STRIDE for side in scaled(size, self.settings.size)]
        normals, kappas = [], []
        for chunk in images.split(AT_ONCE):
            pixels = resize(chunk.to(device).float() / 255, inner)
            normal, kappa = self.net(self.normalise(pixels))
            normal = torch.cat([-normal[:, :1], normal[:, 1:]], dim=1)
            normals.append(F.normalize(resize(normal, size), dim=1).cpu().numpy())
            kappas.append(resize(kappa[:, None], size)[:, 0].cpu().numpy())
        return {"normal": np.concatenate(normals), "confidence": np.concatenate(kappas)}


Norm = Literal["BN", "GN"]
STRIDE = 32
SKIPS = (176, 64, 40, 24)  # channels of the encoder's maps at strides 16, 8, 4 and 2


class UncertaintyGuided(nn.Module):
    """Unit normals and κ of every pixel.

    Modules are named as in https://github.com/baegwangbin/surface_normal_uncertainty
    (``models/NNET.py``), whose checkpoints (``scannet.pt``, ``nyu.pt``) hold these names, so that a
    state dict fits as it is. timm's EfficientNet and the geffnet of those checkpoints name and
    shape every parameter alike. In training the MLPs see the pixels of largest uncertainty only; a
    prediction, which is all that is done here, is made of every pixel.

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
    mean, kappa = losses.split_angmf(raw)
    return torch.cat([mean, kappa[:, None]], 1)
