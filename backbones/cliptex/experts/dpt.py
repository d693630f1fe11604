"""``dpt``: relative inverse depth, by a published model or a small one that is trained here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForDepthEstimation, DPTConfig
from transformers.models.dpt.modeling_dpt import DPTDepthEstimationHead, DPTNeck
from transformers.utils import logging as transformers_logging

from backbones.cliptex.experts.base import CONFIG, Expert, resize
from backbones.cliptex.experts.data import ExpertData
from backbones.cliptex.experts.fit import ExpertTrainer, FitSettings
from backbones.cliptex.tasks.depth import depth_loss
from backbones.cliptex.training.encoders import PACKAGED, Normalise, timm_encoder
from backbones.cliptex.training.trainer import TrainContext
from common.errors import UserError, first_line
from common.settings import settings_dataclass

STRIDES = (4, 8, 16, 32)
SUGGESTED = "Intel/dpt-large or depth-anything/Depth-Anything-V2-Small-hf"


class PublishedDepth(Expert):
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
        pixels = self.processor(images=images.to(self.device), return_tensors="pt")["pixel_values"]
        depth = self.net(pixel_values=pixels.to(self.device)).predicted_depth
        return {"depth": resize(depth[:, None].float(), images.shape[-2:])[:, 0].cpu().numpy()}

    @classmethod
    def load(cls, source: str, device: torch.device | str = "cpu") -> Self:
        """The model at a hub name or in a folder as transformers saves it.

        Raises:
            UserError: no such model, missing weights, or not relative inverse depth.
        """
        net, processor = _from_transformers(source)
        _check_convention(source, net.config)
        expert = cls(net, processor)
        expert.source = source
        return expert.freeze(device)


def _from_transformers(source: str) -> tuple[Any, Any]:
    """The model and its image processor; a torch file is not unpickled."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    options = {"local_files_only": Path(source).exists()}
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


@settings_dataclass
class DPTSettings(FitSettings):
    """The small model that is trained here: ``FitSettings`` and

    Attributes:
        encoder, pretrained: see ``timm_encoder``; it needs maps at strides 4 to 32.
        fusion: channels of the fusion blocks.
    """

    lr: float = 5e-4
    encoder: str = PACKAGED
    pretrained: bool = True
    fusion: PositiveInt = 128


class ConvDPT(nn.Module):
    """DPT's decoder over a convolutional encoder (MiDaS v2.1 small; Ranftl et al., TPAMI 2022).

    A timm encoder's maps at strides 4, 8, 16 and 32 go into transformers' own fusion blocks and
    depth head. Quick to train, because the encoder can start from ImageNet weights.
    """

    def __init__(self, encoder: str, *, pretrained: bool, fusion: int) -> None:
        super().__init__()
        self.encoder, mean, std = timm_encoder(encoder, pretrained)
        info = self.encoder.feature_info
        self.levels = [info.reduction().index(stride) for stride in STRIDES]
        config = DPTConfig(
            neck_hidden_sizes=[info.channels()[level] for level in self.levels],
            fusion_hidden_size=fusion,
            patch_size=max(STRIDES),
            readout_type="ignore",
            reassemble_factors=[1, 1, 1, 1],
        )
        self.neck = DPTNeck(config)
        # as for every hierarchical encoder: its outputs are maps, not tokens
        self.neck.reassemble_stage = None
        self.head = DPTDepthEstimationHead(config)
        self.normalise = Normalise(mean, std)

    def forward(self, images: Tensor) -> Tensor:
        """RGB in [0, 1] (N, 3, S, S), S a multiple of 32 → relative inverse depth (N, S, S)."""
        pixels = self.normalise(images)
        maps: Any = self.encoder(pixels.contiguous(memory_format=torch.channels_last))
        depth = self.head(self.neck([maps[level] for level in self.levels]))
        return resize(depth[:, None], images.shape[-2:])[:, 0]


class DPT(Expert):
    """Relative inverse depth by a Dense Prediction Transformer (Ranftl et al., ICCV 2021).

    WHERE: a hub name (``Intel/dpt-large``, ``depth-anything/Depth-Anything-V2-Small-hf``), a folder
    as transformers saves it, or a folder that ``experts train`` wrote.
    """

    name = "dpt"
    task = "depth"
    settings_type = DPTSettings
    settings: DPTSettings

    def __init__(
        self, settings: DPTSettings, classes: tuple[str, ...] = (), *, pretrained: bool = False
    ) -> None:
        super().__init__(settings)
        self.net = ConvDPT(settings.encoder, pretrained=pretrained, fusion=settings.fusion)

    @classmethod
    def create(cls, settings: DPTSettings, classes: tuple[str, ...]) -> Self:
        expert = cls(settings, pretrained=settings.pretrained)
        # transformers' initial weights (σ = 0.02) are for fine-tuning: through fourteen
        # convolutions they give 1e-10 everywhere, behind a final ReLU
        modules = [*expert.net.neck.modules(), *expert.net.head.modules()]
        convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
        for convolution in convolutions:
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        nn.init.ones_(convolutions[-1].bias)  # type: ignore[arg-type]
        return expert

    def trunk(self) -> Iterable[nn.Module]:
        return [self.net.encoder, self.net.neck]

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, np.ndarray]:
        stride = max(STRIDES)
        side = max(1, round(self.settings.size / stride)) * stride
        depth = self.net(resize(images.to(self.device).float() / 255, (side, side)))
        return {"depth": resize(depth[:, None], images.shape[-2:])[:, 0].cpu().numpy()}

    def train_on(self, data: ExpertData, context: TrainContext, seed: int) -> Mapping[str, float]:
        def loss(images: Tensor, depth: Tensor) -> Tensor:
            total, count = depth_loss(self.net(images).float(), depth)
            return total / count.clamp(min=1)

        return ExpertTrainer(self, loss, data, self.settings, context, seed).fit()

    @classmethod
    def load(cls, source: str, device: torch.device | str = "cpu") -> Any:
        path = Path(source)
        if (path / CONFIG).is_file():
            return super().load(source, device)
        if path.is_file():
            raise UserError(
                f"{source} is a file, and MiDaS's own checkpoints are not read; use the same"
                f" weights from the hub, such as dpt={SUGGESTED}"
            )
        return PublishedDepth.load(source, device)
