"""What is trained: an open_clip model, and the light task heads on its feature maps, which are
discarded after fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    set_image_size,
)
from backbones.backbone import Backbone, DataConfig, Weights, state_sha256
from backbones.cliptex.encoders import PACKAGED, timm_encoder
from backbones.cliptex.tasks import find_task
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
        start = backbones.create("cliptex", weights=init)  # of whatever architecture they are
        start.weights = replace(start.weights, source=Path(init).name)
    else:
        start = backbones.create(init, seed=seed)
    if not isinstance(start, OpenClipBackbone) or not start.has_text:
        raise UserError(
            f"--init {init} has no image and text tower of open_clip; start from"
            " open_clip/ARCH/PRETRAINED"
        )
    if image_size and (image_size, image_size) != tuple(start.data.size):
        _change_image_size(start, image_size)
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


def _change_image_size(start: OpenClipBackbone, size: int) -> None:
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
    """An open_clip model and its task heads, which share one pass of the image tower.

    Args:
        layers: indices, from 0, of the blocks or stages whose maps the heads read.
        heads: None without tasks.
    """

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
        """The image tower's last block, which every loss passes through if the heads read it, as by
        default; if the tower is no ViT, all of it."""
        visual: Any = self.clip.visual
        last = visual.transformer.resblocks[-1] if isinstance(visual, VisionTransformer) else visual
        return [parameter for parameter in last.parameters() if parameter.requires_grad]


class TaskHead(nn.Sequential):
    """One task's head: a 1×1 convolution, GELU, and one that writes ``upsample``² sub-pixels of
    each of its ``outputs`` channels (pixel shuffle, Shi et al. 2016).

    The last convolution and what follows are in float32 under autocast, too: a depth that varies
    little around a large value has too few digits in bf16, and its gradient points elsewhere.
    """

    def __init__(self, width: int, outputs: int, upsample: int) -> None:
        super().__init__(
            nn.Conv2d(width, width, 1),
            nn.GELU(),
            nn.Conv2d(width, outputs * upsample**2, 1),
            nn.PixelShuffle(upsample),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(N, width, h, w) → float32 (N, outputs, upsample · h, upsample · w)."""
        convolution, activation, last, shuffle = self
        hidden = activation(convolution(features))
        with torch.autocast(features.device.type, enabled=False):
            return shuffle(last(hidden.float()))


class TaskHeads(nn.Module):
    """Feature maps → one dense prediction for each task.

    Shared: a norm for each map, a 1×1 convolution of them all to ``width`` channels, GELU, a 3×3
    convolution, GELU. For each task a ``TaskHead``, its output resized bilinearly where labels are
    larger still.

    Args:
        channels: of each feature map.
        outputs: task → output channels, see ``Task.output_channels``.
        width: channels between the convolutions.
        upsample: side of the square of sub-pixels that a head writes for each cell of the largest
            map.
    """

    def __init__(
        self, channels: Sequence[int], outputs: Mapping[str, int], width: int, upsample: int = 4
    ) -> None:
        super().__init__()
        # the blocks of a transformer differ in scale by an order of magnitude
        self.norms = nn.ModuleList(nn.GroupNorm(1, count) for count in channels)
        self.shared = nn.Sequential(
            nn.Conv2d(sum(channels), width, 1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
        )
        self.tasks = nn.ModuleDict(
            {task: TaskHead(width, count, upsample) for task, count in outputs.items()}
        )

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """Maps (N, channels[i], h_i, w_i) → task → prediction of ``size``, as its loss takes it."""
        features = self.shared[1:](self._mix(maps))  # ``_mix`` is shared[0]
        outputs = {task: head(features) for task, head in self.tasks.items()}
        with torch.autocast(features.device.type, enabled=False):
            return {
                task: find_task(task).activate(_resize(output, size))
                for task, output in outputs.items()
            }

    def _mix(self, maps: Sequence[Tensor]) -> Tensor:
        """The first convolution of all maps.

        It is linear in each pixel, so each map is convolved before it is enlarged: of a CNN's
        coarsest map at 16 × 16 pixels that saves most of the work.
        """
        first: Any = self.shared[0]
        largest = max((m.shape[-2:] for m in maps), key=lambda shape: shape[0] * shape[1])
        weights = first.weight.split([m.shape[1] for m in maps], 1)
        mixed = first.bias[:, None, None]
        for norm, part, weight in zip(self.norms, maps, weights, strict=True):
            mixed = mixed + _resize(F.conv2d(norm(part), weight), largest)
        return mixed


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
