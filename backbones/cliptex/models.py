"""What is trained: an open_clip model to start from, and the task heads beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

import backbones
from backbones.adapters.layers import evenly_spaced
from backbones.adapters.open_clip import OpenClipBackbone, build_model, make_tokenizer, resize_position
from backbones.base import DataConfig, state_sha256
from backbones.cliptex.heads import TaskHeads
from backbones.errors import UserError, nearest

# A CLIP that learns on two cores: 64 px in patches of 8, 0.8 M parameters in the image tower. Most of the text tower is
# CLIP's own vocabulary (49,408 × 128), kept so that any open_clip tool reads the weights. Captions end at 24 tokens.
MINI_CLIP: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2},
}
# For tests: the same, in milliseconds.
TINY_CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
MODELS = {"mini": MINI_CLIP, "tiny": TINY_CLIP}


@dataclass(frozen=True)
class Start:
    """Where training starts.

    Attributes:
        model: an open_clip model in training mode, float32, on the CPU.
        architecture, model_config, data, licence, source: as ``backbones.save_checkpoint`` takes them.
        digest: identity of the initial weights.
        tokenizer: texts → (N, context_length) int64.
    """

    model: nn.Module
    architecture: str
    model_config: Mapping[str, Any]
    data: DataConfig
    licence: str
    source: str
    digest: str
    tokenizer: Callable[[list[str]], Tensor]


def load_start(init: str, model: str, *, image_size: int = 0, seed: int = 0) -> Start:
    """The model to train.

    Args:
        init: ``random`` (build ``model``), ``open_clip/ARCH/PRETRAINED``, or a weights file of this suite.
        model: what ``random`` builds, see ``Recipe.model``.
        image_size: side in pixels; 0 keeps the model's own. Position embeddings of a ViT are interpolated.
        seed: of random initialisation.

    Raises:
        UserError: no such model or file, weights without a text tower, or an image size that does not fit.
    """
    if init == "random":
        start = _random_start(model, seed)
    else:
        is_file = Path(init).is_file()
        backbone = (
            backbones.create("cliptex", weights=init, any_architecture=True)
            if is_file
            else backbones.create(init, seed=seed)
        )
        if not isinstance(backbone, OpenClipBackbone) or not backbone.has_text:
            raise UserError(
                f"--init {init} has no image and text tower of open_clip; start from open_clip/ARCH/PRETRAINED"
            )
        start = Start(
            backbone.model,
            backbone.architecture,
            backbone.model_config,
            backbone.data,
            backbone.weights.licence,
            backbone.weights.source if not is_file else Path(init).name,
            backbone.weights.sha256,
            backbone.tokenizer,
        )
    if image_size and (image_size, image_size) != tuple(start.data.size):
        start = _resized(start, image_size)
    start.model.requires_grad_(True).train()
    return start


def _random_start(name: str, seed: int) -> Start:
    config = _model_config(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config, backbone=name)
    visual: Any = model.visual
    if not isinstance(visual, VisionTransformer):
        raise UserError(f"model {name!r} has no plain ViT; for others start from --init open_clip/ARCH/PRETRAINED")
    data = DataConfig(
        size=tuple(visual.image_size),
        mean=open_clip.OPENAI_DATASET_MEAN,
        std=open_clip.OPENAI_DATASET_STD,
        layers=evenly_spaced(len(visual.transformer.resblocks)),
    )
    arch = Path(name).stem if name.endswith(".json") else f"{name}-clip" if name in MODELS else name
    digest, source = state_sha256(model.state_dict()), f"random(seed={seed})"
    tokenizer = make_tokenizer(config, backbone=name)
    return Start(model, f"open_clip/{arch}", config, data, "none", source, digest, tokenizer)


def _model_config(name: str) -> dict[str, Any]:
    if name in MODELS:
        return deepcopy(MODELS[name])
    if name.endswith(".json"):
        try:
            config = json.loads(Path(name).read_text(encoding="utf-8"))
            missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(config)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"model config {name} cannot be read: {error}") from error
        if missing:
            raise UserError(f"model config {name} lacks {', '.join(sorted(missing))}; see open_clip's model_configs")
        return config
    config = open_clip.get_model_config(name.removeprefix("open_clip/"))
    if config is None:
        raise UserError(f"no model {name!r}; {nearest(name, [*MODELS, *open_clip.list_models()])}")
    return config


def _resized(start: Start, size: int) -> Start:
    """The same weights at another image size."""
    visual: Any = start.model.visual
    if not isinstance(visual, VisionTransformer):
        raise UserError(
            f"{start.architecture} has no plain ViT, whose image size can be changed; leave image_size at 0"
        )
    if size % visual.patch_size[0]:
        raise UserError(f"image_size {size} is no multiple of the patch size {visual.patch_size[0]}")
    config = deepcopy(dict(start.model_config))
    config["vision_cfg"]["image_size"] = size
    model = build_model(config)
    state = start.model.state_dict()
    grid = size // visual.patch_size[0]
    name = "visual.positional_embedding"
    state[name] = resize_position(state[name], visual.grid_size, (grid, grid))
    model.load_state_dict(state)
    return replace(start, model=model, model_config=config, data=replace(start.data, size=(size, size)))


class Towers(nn.Module):
    """An open_clip model and its task heads: one pass of the image tower serves the contrast and all heads."""

    def __init__(self, clip: nn.Module, layers: tuple[int, ...], heads: TaskHeads | None) -> None:
        super().__init__()
        self.clip = clip
        self.heads = heads
        self.layers = list(layers)

    def forward(self, images: Tensor, tokens: Tensor, label_size: int = 0) -> dict[str, Any]:
        """(N, 3, S, S) normalised images and (N, L) tokens → ``image``, ``text`` (N, d) unit length, ``logit_scale``
        (exponentiated), and with ``label_size`` > 0 and heads ``dense``: task → prediction (see ``TaskHeads``)."""
        clip: Any = self.clip
        dense: dict[str, Tensor] = {}
        if self.heads is not None and label_size:
            visual = clip.visual
            normalize = getattr(visual, "attn_pool", None) is None  # as the probed feature maps are, see the adapter
            seen = visual.forward_intermediates(images, indices=self.layers, normalize_intermediates=normalize)
            image = seen["image_features"]
            dense = self.heads(seen["image_intermediates"], (label_size, label_size))
        else:
            image = clip.encode_image(images)
        return {
            "image": F.normalize(image, dim=-1),
            "text": clip.encode_text(tokens, normalize=True),
            "logit_scale": clip.logit_scale.exp(),
            "dense": dense,
        }

    def shared_parameters(self) -> list[nn.Parameter]:
        """The last block of the image tower, which every loss passes through; the whole tower if it is no ViT."""
        visual: Any = self.clip.visual
        last = visual.transformer.resblocks[-1] if isinstance(visual, VisionTransformer) else visual
        return [parameter for parameter in last.parameters() if parameter.requires_grad]


def map_channels(start: Start, layers: tuple[int, ...]) -> tuple[int, ...]:
    """Channels of the feature maps of ``layers``."""
    visual: Any = start.model.visual
    with torch.no_grad():
        image = torch.zeros(1, 3, *start.data.size)
        training, _ = visual.training, visual.eval()
        maps = visual.forward_intermediates(image, indices=list(layers), intermediates_only=True)["image_intermediates"]
        visual.train(training)
    return tuple(m.shape[1] for m in maps)
