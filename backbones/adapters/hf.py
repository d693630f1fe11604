"""``hf/REPO``: any image encoder of transformers, by its config alone; code that a repository
carries is never run.

Of a plain ViT the tokens after each block are read: the config gives the number of registers, and
what remains beside the patches is a class token or nothing. Of a network of stages
(``AutoBackbone``) the feature maps are read. CLIP, SigLIP and SigLIP 2 bring their text towers.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from transformers import MODEL_FOR_BACKBONE_MAPPING, MODEL_MAPPING, AutoConfig, AutoTokenizer

from backbones.adapters.hub import hub_file, load_tokenizer
from backbones.adapters.layers import TokenBackbone, evenly_spaced, layers_of, with_mean
from backbones.base import Backbone, DataConfig
from backbones.checkpoint import check_architecture, fit_state
from backbones.registry import Request
from common.errors import UserError, first_line

TEXT_MODELS = ("clip", "siglip", "siglip2")
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
NOT_ARCHITECTURE = (  # keys of a config
    "architectures",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "_name_or_path",
    "auto_map",
)
ADVICE = "take it from timm or open_clip, or copy backbones/template.py"


class HfStages(Backbone):
    """A network of stages. The embedding is the mean of the last map."""

    libraries = ("transformers",)

    def __init__(self, model: nn.Module, data: DataConfig) -> None:
        super().__init__()
        self.model = model.eval()
        with torch.inference_mode():
            maps = self.model(torch.zeros(1, 3, 128, 128)).feature_maps
        strides = [128 // each.shape[-1] for each in maps]
        layers = data.layers or layers_of(strides)
        self.data = data.with_layers(layers)
        self.strides = tuple(strides[layer] for layer in layers)
        self.channels = tuple(maps[layer].shape[1] for layer in layers)
        self.divisor, self.embed_dim = max(self.strides), self.channels[-1]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.model(images).feature_maps
        return tuple(maps[layer] for layer in self.data.layers)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.encode_tokens(images, 1)[0][0]


class HfBackbone(TokenBackbone):
    """A plain ViT of transformers. The embedding is CLIP's or SigLIP's, else the class token or the
    mean of the patches.

    Raises:
        UserError: its tokens are not patches, registers and class tokens.
    """

    libraries = ("transformers",)

    def __init__(
        self, model: nn.Module, config: Any, data: DataConfig, *, name: str, repo: str
    ) -> None:
        super().__init__()
        self.model, self.name = model.eval(), name
        self.repo = repo  # of the tokenizer
        self.has_text = config.model_type in TEXT_MODELS
        self.text_length = config.text_config.max_position_embeddings if self.has_text else 0
        vision_config = getattr(config, "vision_config", config)
        self.vision: Any = getattr(model, "vision_model", model)
        lists = [module for module in self.vision.modules() if isinstance(module, nn.ModuleList)]
        self.blocks = max(lists, key=len, default=nn.ModuleList())  # the longest list
        self.depth, self.divisor = len(self.blocks), vision_config.patch_size
        layers = data.layers or evenly_spaced(vision_config.num_hidden_layers)
        self._check_blocks(max(layers) + 1, self.depth)
        self.data = data.with_layers(layers)
        self.strides = (self.divisor,) * len(layers)
        self.channels = (vision_config.hidden_size,) * len(layers)
        projected = config.projection_dim if config.model_type == "clip" else None
        self.embed_dim = projected or vision_config.hidden_size
        self.registers = getattr(vision_config, "num_register_tokens", 0)
        self.class_tokens = getattr(vision_config, "n_cls_tokens", 1)  # Pixio's mean of eight
        self.prefix = self._count_prefix()

    @property
    def norm(self) -> nn.Module:
        """The final norm: the last one that is a child of the model itself."""
        norms = [module for module in self.vision.children() if "Norm" in type(module).__name__]
        return norms[-1] if norms else nn.Identity()

    def read_tokens(self, images: Tensor, layers: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        outputs = [self.norm(tokens) for tokens in self._after_blocks(images, layers)]
        if self.prefix == self.registers:  # no class token
            return [with_mean(tokens[:, self.prefix :]) for tokens in outputs]
        return [
            (tokens[:, : self.class_tokens].mean(dim=1), tokens[:, self.prefix :])
            for tokens in outputs
        ]

    def encode_image(self, images: Tensor) -> Tensor:
        if not self.has_text:
            return super().encode_image(images)
        projection = getattr(self.model, "visual_projection", nn.Identity())
        return projection(self.encode_features(images))

    def encode_features(self, images: Tensor) -> Tensor:
        if not self.has_text:
            return self.encode_image(images)
        return self.vision(**self._inputs(images)).pooler_output

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        if not self.has_text:
            return super().encode_text(texts)
        # SigLIP was trained on lower-cased texts, padded to the full length, without a mask; CLIP's
        # tower attends backwards from the end of the text, so padding has no effect
        tokens: Any = self.tokenizer(
            [text.lower() for text in texts],
            padding="max_length",
            truncation=True,
            max_length=self.text_length,
            return_tensors="pt",
        )
        ids = tokens["input_ids"].to(next(self.model.parameters()).device)
        return cast(Any, self.model).get_text_features(input_ids=ids).pooler_output

    @functools.cached_property
    def tokenizer(self) -> Callable[..., Mapping[str, Tensor]]:
        """Raises ``UserError`` if the tokenizer is neither in the local cache nor reachable."""
        load = functools.partial(AutoTokenizer.from_pretrained, self.repo, trust_remote_code=False)
        return load_tokenizer(load, self.repo, self.name)

    def _after_blocks(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """(N, prefix + patches, C) after each of these blocks, before the final norm: by hooks,
        since ``hidden_states`` have passed that norm in some models and not in others."""
        outputs: dict[int, Tensor] = {}

        def store(layer: int, output: Any) -> None:
            outputs[layer] = output[0] if isinstance(output, tuple) else output

        hooks = [
            self.blocks[i].register_forward_hook(lambda _, __, out, i=i: store(i, out))
            for i in layers
        ]
        try:
            self.vision(**self._inputs(images))
        finally:
            for hook in hooks:
                hook.remove()
        return [outputs[layer] for layer in layers]

    def _inputs(self, images: Tensor) -> dict[str, Any]:
        parameters = inspect.signature(self.vision.forward).parameters
        if "interpolate_pos_encoding" in parameters:
            return {"pixel_values": images, "interpolate_pos_encoding": True}
        if "spatial_shapes" not in parameters:
            return {"pixel_values": images}
        # SigLIP 2 of any aspect ratio takes patches in rows
        patches = nn.functional.pixel_unshuffle(images, self.divisor).unflatten(1, (3, -1))
        rows = patches.flatten(3).permute(0, 3, 2, 1).flatten(2)
        grid = [side // self.divisor for side in images.shape[-2:]]
        return {
            "pixel_values": rows,
            "pixel_attention_mask": torch.ones_like(rows[..., 0], dtype=torch.int64),
            "spatial_shapes": torch.tensor([grid] * len(images), device=images.device),
        }

    def _count_prefix(self) -> int:
        """Number of tokens before the patches: registers, and class tokens or none."""
        try:
            with torch.inference_mode():
                images = torch.zeros(1, 3, 4 * self.divisor, 6 * self.divisor)
                (tokens,) = self._after_blocks(images, [0])
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(
                f"{self.name!r} does not take images of any size ({first_line(error)}); {ADVICE}"
            ) from error
        prefix = tokens.shape[1] - 24 if tokens.ndim == 3 else -1
        if prefix - self.registers not in (0, self.class_tokens):
            raise UserError(
                f"{self.name!r} gives {tuple(tokens.shape[1:])} for 24 patches: no patches with"
                f" {self.registers} registers and {self.class_tokens} class tokens or none;"
                f" {ADVICE}"
            )
        return prefix


def has_stages(vision_config: Any) -> bool:
    """Whether it is a network of stages, not a plain ViT."""
    return hasattr(vision_config, "depths") or not hasattr(vision_config, "patch_size")


def architecture_config(config: Any) -> dict[str, Any]:
    """What builds the architecture again: the config's differences from its class's defaults."""
    changes = json.loads(config.to_json_string(use_diff=True))
    settings = {key: value for key, value in changes.items() if key not in NOT_ARCHITECTURE}
    return {**settings, "model_type": config.model_type}


def build(request: Request) -> Backbone:
    """The builder of ``hf/REPO``; REPO is one of the hub's, or a local folder in the same layout.

    Settings: ``repo``, ``model_config`` (of ``architecture_config``, instead of the repository's),
    ``layers``, ``size``.

    Raises:
        UserError: see ``backbones.create``.
    """
    settings, checkpoint = request.settings, request.checkpoint
    repo = settings.get("repo", request.name.removeprefix("hf/"))
    config = _config(repo, settings, request.name)
    vision = getattr(config, "vision_config", config)
    pretrained = checkpoint is None and not request.random
    model = _model(config, repo, request.name, pretrained, has_stages(vision))
    if checkpoint is not None:
        model_config = architecture_config(config)
        check_architecture(checkpoint, f"hf/{config.model_type}", model_config)
        fit_state(model, checkpoint, request.name)
    data = checkpoint.data if checkpoint is not None else None
    data = data or _data(repo, vision, settings, request.name, needed=pretrained)
    backbone: HfStages | HfBackbone
    if has_stages(vision):
        backbone = HfStages(model, data)
    else:
        backbone = HfBackbone(model, config, data, name=request.name, repo=repo)
    backbone.architecture = f"hf/{config.model_type}"
    backbone.model_config = architecture_config(config)
    backbone.weights = request.weights(backbone.model_state(), f"hf/{repo}")
    return backbone


def _model(config: Any, repo: str, backbone: str, pretrained: bool, stages: bool) -> nn.Module:
    """The library's own class, not AutoModel, which can run a repository's code, nor AutoBackbone,
    which asks the network."""
    classes = MODEL_FOR_BACKBONE_MAPPING if stages else MODEL_MAPPING
    if stages:
        config.out_indices = list(range(len(getattr(config, "stage_names", ()))))
    try:
        cls = cast(Any, classes[type(config)])
        if not pretrained:
            return cls(config)
        file = _file(repo, WEIGHTS, backbone)
        is_index = file.suffix == ".json"  # it names shards to be fetched
        return cls.from_pretrained(
            repo, config=config, dtype=torch.float32, local_files_only=not is_index
        )
    except UserError:
        raise
    except (ValueError, KeyError, OSError) as error:
        raise UserError(
            f"transformers has no image encoder for {backbone!r} ({first_line(error)}); {ADVICE}"
        ) from error


def _file(repo: str, names: Sequence[str], backbone: str) -> Path:
    """The first of ``names`` in a local folder or a hub repository. Raises ``UserError`` if there
    is none."""
    if not Path(repo).is_dir():
        return hub_file(repo, names, backbone=backbone)
    for name in names:
        if (path := Path(repo, name)).is_file():
            return path
    raise UserError(
        f"{repo} has no {names[0]} for {backbone!r}; save_pretrained of transformers writes it"
    )


def _config(repo: str, settings: Mapping[str, Any], backbone: str) -> Any:
    """The model's config, from the settings or the repository. Raises ``UserError`` if transformers
    does not have the model."""
    stored = settings.get("model_config")
    if not stored:
        stored = json.loads(_file(repo, ("config.json",), backbone).read_text(encoding="utf-8"))
    try:
        return AutoConfig.for_model(
            **{key: value for key, value in stored.items() if key not in NOT_ARCHITECTURE}
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"transformers does not know the model of {backbone!r} ({first_line(error)}), and code"
            f" of a repository is never run; {ADVICE}"
        ) from error


def _data(
    repo: str, vision: Any, settings: Mapping[str, Any], backbone: str, *, needed: bool
) -> DataConfig:
    """The repository's own preprocessing with the settings over it; for random weights it may be
    missing."""
    stored: dict[str, Any] = {}
    try:
        file = _file(repo, ("preprocessor_config.json",), backbone)
        stored = json.loads(file.read_text(encoding="utf-8"))
    except UserError:
        if needed:
            raise
    side = getattr(vision, "image_size", 224)
    native = side if isinstance(side, list | tuple) else (side, side)
    resize, crop = _size(stored.get("size")), _size(stored.get("crop_size"))
    cropped = bool(stored.get("do_center_crop")) and "height" in crop
    shape = crop if cropped else resize
    edge = resize.get("shortest_edge") or resize.get("height") or native[0]
    size = (shape["height"], shape["width"]) if "height" in shape else (edge, edge)
    return DataConfig(
        size=tuple(settings.get("size", size)),
        mean=tuple(stored.get("image_mean", IMAGENET_DEFAULT_MEAN)),
        std=tuple(stored.get("image_std", IMAGENET_DEFAULT_STD)),
        interpolation="bilinear" if stored.get("resample") == 2 else "bicubic",
        crop_pct=crop["height"] / edge if cropped else 1.0,
        squash=not cropped and "height" in resize,
        layers=tuple(settings.get("layers", ())),
    )


def _size(stored: Any) -> dict[str, int]:
    return {"height": stored, "width": stored} if isinstance(stored, int) else stored or {}
