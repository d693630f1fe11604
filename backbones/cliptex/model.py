"""What is trained: an open_clip model to start from, and the task heads beside it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import PatchDropout, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

import backbones
from backbones.adapters.open_clip import (
    OpenClipBackbone,
    build_model,
    default_layers,
    native_size,
    normalizes,
)
from backbones.adapters.positions import set_image_size
from backbones.backbone import Backbone, DataConfig, Weights, state_sha256
from backbones.cliptex.training.encoders import PACKAGED, timm_encoder
from backbones.cliptex.training.heads import TaskHeads
from cliptex_common.errors import UserError, suggest
from cliptex_common.files import read_json

# A CLIP that learns within minutes on two cores: 64 px, 3.4 M parameters in the image tower, whose
# ImageNet weights (``--init imagenet``) are installed with this project. A small ViT from nothing
# learns no shapes from so few pairs. Most of the text tower is CLIP's own vocabulary
# (49,408 × 128), kept so that any open_clip tool reads the weights. Captions end at 24 tokens.
MINI_CLIP: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "timm_model_name": PACKAGED,
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 64,
    },
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2},
}
# For tests: the same, in milliseconds.
TINY_CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
MODELS = {"mini": MINI_CLIP, "tiny": TINY_CLIP}


def load_initial_clip(
    init: str, model: str, *, image_size: int = 0, seed: int = 0
) -> OpenClipBackbone:
    """The backbone to train: its ``model`` is in training mode, in float32, on the CPU.

    Args:
        init: ``random`` (build ``model``), ``imagenet`` (the same, its timm image tower starting
            from ImageNet weights), ``open_clip/ARCH/PRETRAINED``, or a weights file of this
            package.
        model: what ``random`` builds, see ``Recipe.model``.
        image_size: side in pixels; 0 keeps the model's own. Position embeddings of a ViT are
            interpolated.
        seed: of random initialisation.

    Raises:
        UserError: no such model or file, weights without a text tower, or an image size that does
            not fit.
    """
    start: Backbone
    if init in ("random", "imagenet"):
        start = _build(model, seed, imagenet=init == "imagenet")
    elif Path(init).is_file():
        start = backbones.create("cliptex", weights=init)
        start.weights = replace(start.weights, source=Path(init).name)
    else:
        start = backbones.create(init, seed=seed)
    if not isinstance(start, OpenClipBackbone) or not start.has_text:
        raise UserError(
            f"--init {init} has no image and text tower of open_clip; start from"
            " open_clip/ARCH/PRETRAINED"
        )
    if image_size and (image_size, image_size) != tuple(start.data.size):
        _resize(start, image_size)
    start.model.requires_grad_(True).train()
    return start


def _build(name: str, seed: int, *, imagenet: bool) -> OpenClipBackbone:
    config = _model_config(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config, backbone=name)
    visual: Any = model.visual
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    source, licence = f"random(seed={seed})", "none"
    if imagenet:
        if not isinstance(visual, TimmModel):
            raise UserError(
                f"--init imagenet is for timm image towers, and model {name!r} has none; use --init"
                " random"
            )
        trunk = config["vision_cfg"]["timm_model_name"]
        pretrained, mean, std = timm_encoder(trunk, pretrained=True, features_only=False)
        # all but the classifier
        visual.trunk.load_state_dict(pretrained.state_dict(), strict=False)
        source, licence = f"image tower {trunk} (ImageNet), text tower {source}", "Apache-2.0"
    backbone = OpenClipBackbone(
        model,
        name=name,
        arch=f"{name}-clip" if name in MODELS else Path(name).stem,
        model_config=config,
        data=DataConfig(native_size(visual), mean, std, layers=default_layers(visual)),
    )
    backbone.weights = Weights(source, state_sha256(model.state_dict()), licence)
    return backbone


def _model_config(name: str) -> dict[str, Any]:
    if name in MODELS:
        return deepcopy(MODELS[name])
    if name.endswith(".json"):
        try:
            config = read_json(name)
            missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(config)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"cannot read model config {name}: {error}") from error
        if missing:
            raise UserError(
                f"model config {name} lacks {', '.join(sorted(missing))}; see open_clip's"
                " model_configs"
            )
        return config
    config = open_clip.get_model_config(name.removeprefix("open_clip/"))
    if config is None:
        raise UserError(f"no model {name!r}; {suggest(name, [*MODELS, *open_clip.list_models()])}")
    return config


def _resize(start: OpenClipBackbone, size: int) -> None:
    """Train the same weights at another image size."""
    visual, config = start.visual, start.model_config
    if not isinstance(visual, VisionTransformer):
        raise UserError(
            f"{start.architecture} has no plain ViT, whose image size can be changed; leave"
            " image_size at 0"
        )
    if size % visual.patch_size[0]:
        raise UserError(
            f"image_size {size} is not a multiple of the patch size {visual.patch_size[0]}"
        )
    set_image_size(visual, (size, size))
    start.model_config = {**config, "vision_cfg": {**config["vision_cfg"], "image_size": size}}
    start.data = replace(start.data, size=(size, size))


class CLIPWithHeads(nn.Module):
    """An open_clip model and its task heads, which share one pass of the image tower."""

    def __init__(self, clip: nn.Module, layers: tuple[int, ...], heads: TaskHeads | None) -> None:
        super().__init__()
        if heads is not None and any(isinstance(part, PatchDropout) for part in clip.modules()):
            raise UserError(
                "the task heads need every patch, and this model drops some; set patch_dropout to 0"
                " in its config"
            )
        self.clip = clip
        self.heads = heads
        self.layers = list(layers)

    def forward(self, images: Tensor, tokens: Tensor, label_size: int = 0) -> dict[str, Any]:
        """Embed pairs and, with heads and ``label_size`` > 0, predict the tasks' maps.

        Args:
            images: (N, 3, S, S), normalised; tokens: (N, L).

        Returns:
            ``image`` and ``text`` (N, d), of unit length; ``logit_scale`` (exponentiated);
            ``logit_bias`` where the model has one; ``dense``: task → prediction, see
            ``TaskHeads``.
        """
        clip: Any = self.clip
        dense: dict[str, Tensor] = {}
        if isinstance(clip.visual, TimmModel):  # convolutions are faster so
            images = images.contiguous(memory_format=torch.channels_last)
        if self.heads is not None and label_size:
            visual = clip.visual
            features = visual.forward_intermediates(
                images, indices=self.layers, normalize_intermediates=normalizes(visual)
            )
            image = features["image_features"]
            dense = self.heads(features["image_intermediates"], (label_size, label_size))
        else:
            image = clip.encode_image(images)
        bias = getattr(clip, "logit_bias", None)
        return {
            "image": F.normalize(image, dim=-1),
            "text": clip.encode_text(tokens, normalize=True),
            "logit_scale": clip.logit_scale.exp(),
            **({} if bias is None else {"logit_bias": bias + 0.0}),
            "dense": dense,
        }

    def shared_parameters(self) -> list[nn.Parameter]:
        """The image tower's last block, which every loss passes through; if it is no ViT, all."""
        visual: Any = self.clip.visual
        last = visual.transformer.resblocks[-1] if isinstance(visual, VisionTransformer) else visual
        return [parameter for parameter in last.parameters() if parameter.requires_grad]
