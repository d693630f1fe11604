"""``dpt``: relative inverse depth by a Dense Prediction Transformer (Ranftl, Bochkovskiy, Koltun,
ICCV 2021)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DPTConfig, DPTForDepthEstimation
from transformers.modeling_outputs import DepthEstimatorOutput
from transformers.models.dpt.modeling_dpt import DPTDepthEstimationHead, DPTNeck
from transformers.utils import logging as transformers_logging

from backbones.checkpoint import load_checkpoint
from backbones.cliptex.experts.base import CONFIG, Expert, read_settings, resize
from backbones.cliptex.experts.data import ExpertData
from backbones.cliptex.experts.fit import FitRun, FitSettings, fit
from backbones.cliptex.experts.midas import from_midas
from backbones.cliptex.experts.unet import timm_encoder
from backbones.cliptex.tasks.depth import depth_loss
from common.errors import UserError, first_line
from common.files import read_json

STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True)
class DPTSettings(FitSettings):
    """A DPT to train here (a pretrained one brings its own configuration).

    Attributes (besides those of ``FitSettings``):
        size: side of its square input in pixels, a multiple of the patch; images are squeezed into
            it.
        encoder: a timm encoder with maps at strides 4 to 32 in place of the ViT (see ``ConvDPT``),
            which then starts from ImageNet weights if ``pretrained``; empty for the paper's ViT,
            from nothing.
        patch, width, depth, heads: of the ViT.
        neck: channels of its four reassembled maps, finest first.
        fusion: channels of the fusion blocks.
        mean, std: statistics of the ViT's input, scaled to [0, 1]; those of a timm encoder are its
            own.
    """

    lr: float = 5e-4
    size: int = 384
    encoder: str = ""
    pretrained: bool = True
    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    neck: tuple[int, ...] = (48, 96, 192, 384)
    fusion: int = 128
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder:
            return
        if (
            self.patch not in (4, 8, 16, 32)
            or self.size % self.patch
            or self.depth < 4
            or self.width % self.heads
        ):
            raise UserError(
                f"dpt: patch {self.patch} must be 4, 8, 16 or 32 and divide size {self.size}; depth"
                f" {self.depth} at least 4, heads {self.heads} divide width {self.width}"
            )

    def model_config(self) -> dict[str, Any]:
        """transformers' ``DPTConfig`` of it."""
        layers = [round((place + 1) * self.depth / 4) - 1 for place in range(4)]
        return {
            "image_size": self.size,
            "patch_size": self.patch,
            "hidden_size": self.width,
            "num_hidden_layers": self.depth,
            "num_attention_heads": self.heads,
            "intermediate_size": 4 * self.width,
            "backbone_out_indices": layers,
            # maps at strides 4, 8, 16 and 32 whatever the patch (the paper's patch is 16), so that
            # the output has the input's size
            "reassemble_factors": [
                max(self.patch // stride, self.patch / stride) for stride in STRIDES
            ],
            "neck_hidden_sizes": list(self.neck),
            "fusion_hidden_size": self.fusion,
            "is_hybrid": False,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }


class ConvDPT(nn.Module):
    """DPT's decoder over a convolutional encoder, as MiDaS v2.1 small has it (EfficientNet-Lite;
    Ranftl et al., TPAMI 2022): a timm encoder's maps at strides 4, 8, 16 and 32 into transformers'
    own fusion blocks and depth head. Quick to train, because the encoder can start from ImageNet
    weights.

    Attributes:
        config: the ``DPTConfig`` of neck and head.
        mean, std: statistics of the encoder's input.
    """

    def __init__(self, encoder: str, *, pretrained: bool, fusion: int) -> None:
        super().__init__()
        self.encoder, self.mean, self.std = timm_encoder(encoder, pretrained)
        found = dict(
            zip(
                self.encoder.feature_info.reduction(),
                self.encoder.feature_info.channels(),
                strict=True,
            )
        )
        self.places = [list(found).index(stride) for stride in STRIDES]
        self.config = DPTConfig(
            neck_hidden_sizes=[found[stride] for stride in STRIDES],
            fusion_hidden_size=fusion,
            patch_size=max(STRIDES),
            readout_type="ignore",
            reassemble_factors=[1, 1, 1, 1],
        )
        self.neck = DPTNeck(self.config)
        self.neck.reassemble_stage = (
            None  # as for every hierarchical encoder: its maps are maps already
        )
        self.head = DPTDepthEstimationHead(self.config)

    def forward(self, pixel_values: Tensor) -> DepthEstimatorOutput:
        """Normalised RGB (N, 3, H, W), sides multiples of 32 → relative inverse depth (N, H, W)."""
        maps: Any = self.encoder(pixel_values.contiguous(memory_format=torch.channels_last))
        return DepthEstimatorOutput(
            predicted_depth=self.head(self.neck([maps[place] for place in self.places]))
        )


class DPT(Expert):
    """transformers' ``DPTForDepthEstimation``.

    WHERE: a hub name (``Intel/dpt-large``, ``Intel/dpt-hybrid-midas``), a folder as transformers
    saves it (``config.json`` and weights), MiDaS's own checkpoint (``dpt_large_384.pt``,
    ``dpt_hybrid_384.pt``), or a folder that ``experts train`` wrote.
    """

    name = "dpt"
    task = "depth"
    settings_type = DPTSettings
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        settings: DPTSettings,
        classes: tuple[str, ...] = (),
        *,
        model: DPTForDepthEstimation | ConvDPT | None = None,
    ) -> None:
        super().__init__(settings)
        self.net: Any = model or DPTForDepthEstimation(DPTConfig(**settings.model_config()))
        convolutional = isinstance(self.net, ConvDPT)
        mean, std = (
            (self.net.mean, self.net.std) if convolutional else (settings.mean, settings.std)
        )
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def create(cls, settings: DPTSettings, classes: tuple[str, ...]) -> Self:
        expert = cls(settings, model=_convolutional(settings, fresh=True))
        # transformers' initial weights (σ = 0.02) are for fine-tuning: through fourteen
        # convolutions they give 1e-10 everywhere, behind a final ReLU
        convolutions = [
            m
            for m in [*expert.net.neck.modules(), *expert.net.head.modules()]
            if isinstance(m, nn.Conv2d)
        ]
        for convolution in convolutions:
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        nn.init.ones_(convolutions[-1].bias)  # type: ignore[arg-type]
        return expert

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> Self:
        settings = read_settings(cls.settings_type, config["settings"])
        model: Any = _convolutional(settings) or DPTForDepthEstimation(
            DPTConfig.from_dict(dict(config["model"]))
        )
        return cls(settings, model=model)

    def identity(self) -> dict[str, Any]:
        config = {
            key: value
            for key, value in self.net.config.to_dict().items()
            if not key.startswith(("_", "trans"))
        }
        return {**super().identity(), "model": config}

    def trunk(self) -> Iterable[nn.Module]:
        parts = (getattr(self.net, name, None) for name in ("dpt", "backbone", "encoder", "neck"))
        return [part for part in parts if part is not None]

    def forward(self, images: Tensor) -> Tensor:
        """RGB in [0, 1] (N, 3, S, S), S a multiple of the patch → relative inverse depth (N, S,
        S)."""
        depth = self.net(pixel_values=(images - self.mean) / self.std).predicted_depth
        return resize(depth[:, None], images.shape[-2:])[:, 0]

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, np.ndarray]:
        size = images.shape[-2:]
        # a hybrid's convolutional backbone has no patch of its own, but its ViT has
        config = self.net.config
        patch = (
            getattr(getattr(config, "backbone_config", None), "patch_size", 0) or config.patch_size
        )
        side = (
            max(1, round(self.settings.size / patch)) * patch
        )  # square, as transformers' own processor makes it
        depth = self(resize(images.to(self.device).float() / 255, (side, side)))
        return {"depth": resize(depth[:, None], size)[:, 0].cpu().numpy()}

    def train_on(self, data: ExpertData, run: FitRun) -> None:
        def loss(images: Tensor, depth: Tensor) -> Tensor:
            total, count = depth_loss(self(images).float(), depth)
            return total / count.clamp(min=1)

        self.spent = fit(self, loss, data, self.settings, run)

    @classmethod
    def load(cls, source: str, device: torch.device | str = "cpu") -> Self:
        if (Path(source) / CONFIG).is_file():
            return super().load(source, device)
        path = Path(source)
        model: Any = (
            from_midas(load_checkpoint(path).state, path)
            if path.is_file()
            else _from_transformers(source)
        )
        expert = cls(cls.pretrained_settings(source, model.config.image_size), model=model)
        expert.source = source
        return expert.freeze(device)

    @classmethod
    def pretrained_settings(cls, source: str, size: int) -> DPTSettings:
        """Statistics of the input from the folder's ``preprocessor_config.json``; else 0.5 (as
        MiDaS's DPT)."""
        path = Path(source) / "preprocessor_config.json"
        given: Mapping[str, Any] = read_json(path) if path.is_file() else {}
        return DPTSettings(
            size=size,
            mean=tuple(given.get("image_mean", (0.5, 0.5, 0.5))),
            std=tuple(given.get("image_std", (0.5, 0.5, 0.5))),
        )


def _from_transformers(source: str) -> DPTForDepthEstimation:
    """By hub name or folder; transformers reads safetensors, else a torch file without unpickling
    it."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        found: Any = DPTForDepthEstimation.from_pretrained(
            source,
            weights_only=True,
            output_loading_info=True,
            local_files_only=Path(source).exists(),
        )
    except Exception as error:  # transformers and the hub raise nearly anything
        raise UserError(
            f"no DPT at {source!r} ({first_line(error)}); give a folder with config.json "
            "and model.safetensors, or be online and use a hub name such as Intel/dpt-large"
        ) from error
    finally:
        transformers_logging.set_verbosity(level)
    model, told = found
    if told["missing_keys"]:
        raise UserError(
            f"{source} lacks weights of a DPT for depth, first {min(told['missing_keys'])}"
        )
    return model


def _convolutional(settings: DPTSettings, fresh: bool = False) -> ConvDPT | None:
    """The model on a timm encoder, where the settings ask for one."""
    if not settings.encoder:
        return None
    return ConvDPT(
        settings.encoder, pretrained=settings.pretrained and fresh, fusion=settings.fusion
    )
