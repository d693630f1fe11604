"""``hf/REPO``: any image encoder of transformers, by its config alone; code that a repository
carries is never run.

Of a transformer the tokens after each block are read: the config says how many registers there are,
and what is left over beside the patches is a class token or nothing. Of a network of stages
(``AutoBackbone``) the maps are. CLIP, SigLIP and SigLIP 2 bring their text towers.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import constants
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from transformers import MODEL_FOR_BACKBONE_MAPPING, MODEL_MAPPING, AutoConfig, AutoTokenizer

from backbones.adapters.hub import hub_file, hub_reachable
from backbones.adapters.layers import evenly_spaced, layers_of
from backbones.base import Backbone, DataConfig
from backbones.checkpoint import check_architecture, fit_state
from backbones.registry import Request
from common.errors import UserError, first_line

WITH_TEXT = ("clip", "siglip", "siglip2")
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_NO_SETTINGS = (
    "architectures",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "_name_or_path",
    "auto_map",
)
_ELSE = "take it from timm or open_clip, or copy backbones/template.py"


class HfBackbone(Backbone):
    """A model of transformers. Patch tokens pass the model's own final norm after each block read,
    as DINOv2's ``get_intermediate_layers``; the embedding is CLIP's or SigLIP's, else the class
    token or the mean of the patches.

    Args:
        layers: to be read; evenly spaced blocks, or one stage for each stride, where nothing is
            said.

    Raises:
        UserError: its tokens are not patches, registers and at most one class token.
    """

    libraries = ("transformers",)

    def __init__(
        self, model: nn.Module, config: Any, *, name: str, repo: str, layers: Sequence[int]
    ) -> None:
        super().__init__()
        self.model = model
        self.name = name
        self.repo = repo  # of the tokenizer
        self.architecture = f"hf/{config.model_type}"
        self.model_config = settings_of(config)
        self.has_text = config.model_type in WITH_TEXT
        self.text_length = config.text_config.max_position_embeddings if self.has_text else 0
        vision_config = getattr(config, "vision_config", config)
        self.patch = 0 if has_stages(vision_config) else vision_config.patch_size
        if self.patch:
            self.registers = getattr(vision_config, "num_register_tokens", 0)
            self.strides = (self.patch,) * len(
                layers or evenly_spaced(vision_config.num_hidden_layers)
            )
            self.layers = tuple(layers) or evenly_spaced(vision_config.num_hidden_layers)
            self._check_blocks(max(self.layers) + 1, len(self.blocks))
            self.prefix = self._count_prefix()
            self.channels = (vision_config.hidden_size,) * len(self.layers)
        else:
            with torch.inference_mode():
                maps = cast(Any, model).eval()(torch.zeros(1, 3, 128, 128)).feature_maps
            strides = [128 // one.shape[-1] for one in maps]
            self.layers = tuple(layers) or layers_of(strides)
            self.strides = tuple(strides[layer] for layer in self.layers)
            self.channels = tuple(maps[layer].shape[1] for layer in self.layers)
        self.divisor = max(self.strides)
        projected = getattr(config, "projection_dim", None) if config.model_type == "clip" else None
        self.embed_dim = projected or self.channels[-1]

    @property
    def vision(self) -> Any:
        return getattr(self.model, "vision_model", self.model)

    @property
    def blocks(self) -> nn.ModuleList:
        """The longest list of modules is that of the blocks."""
        lists = [each for each in self.vision.modules() if isinstance(each, nn.ModuleList)]
        return max(lists, key=len, default=nn.ModuleList())

    @property
    def norm(self) -> nn.Module:
        """The final norm: the last one that is a child of the model itself."""
        norms = [each for each in self.vision.children() if "Norm" in type(each).__name__]
        return norms[-1] if norms else nn.Identity()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if not self.patch:
            maps = cast(Any, self.model)(images).feature_maps
            return tuple(maps[layer] for layer in self.layers)
        grid = images.shape[-2] // self.patch, images.shape[-1] // self.patch
        tokens = [
            self.norm(each)[:, self.prefix :] for each in self._after_blocks(images, self.layers)
        ]
        return tuple(each.transpose(1, 2).unflatten(2, grid).contiguous() for each in tokens)

    def encode_image(self, images: Tensor) -> Tensor:
        if self.has_text:
            projection = getattr(self.model, "visual_projection", nn.Identity())
            return projection(self.encode_features(images))
        token, patches = self.encode_tokens(images, 1)[0]
        return token if self.patch else patches.mean(dim=1)

    def encode_features(self, images: Tensor) -> Tensor:
        if self.has_text:
            return self.vision(**self._inputs(images)).pooler_output
        return self.encode_image(images)

    def encode_tokens(self, images: Tensor, blocks: int) -> list[tuple[Tensor, Tensor]]:
        if not self.patch:
            return super().encode_tokens(images, blocks)
        depth = len(self.blocks)
        self._check_blocks(blocks, depth)
        layers = [
            self.norm(each) for each in self._after_blocks(images, range(depth - blocks, depth))
        ]
        patches = [each[:, self.prefix :] for each in layers]
        if self.prefix == self.registers:  # no class token
            return [(each.mean(dim=1), each) for each in patches]
        return [(layer[:, 0], each) for layer, each in zip(layers, patches, strict=True)]

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        if not self.has_text:
            return super().encode_text(texts)
        # SigLIP was trained on lower-cased texts, padded to the full length and without a mask;
        # CLIP's tower looks back only, from the end of the text, so that padding means nothing to
        # it
        texts = [text.lower() for text in texts]
        tokens = self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self.text_length,
            return_tensors="pt",
        )
        ids = cast(Any, tokens)["input_ids"].to(next(self.model.parameters()).device)
        return cast(Any, self.model).get_text_features(input_ids=ids).pooler_output

    @functools.cached_property
    def tokenizer(self) -> Callable[..., Mapping[str, Tensor]]:
        """Raises ``UserError`` when the tokenizer's files can be neither found in the local cache
        nor fetched."""
        try:
            return AutoTokenizer.from_pretrained(
                self.repo, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, TypeError) as error:
            if Path(self.repo).is_dir() or not hub_reachable():
                raise UserError(
                    f"no tokenizer for {self.name!r} ({first_line(error)}): copy the hub cache of"
                    f" {self.repo} to {constants.HF_HUB_CACHE}"
                ) from error
        return AutoTokenizer.from_pretrained(self.repo, trust_remote_code=False)

    def model_state(self) -> dict[str, Tensor]:
        """The model's own state dict, as ``save_checkpoint`` writes it."""
        return self.model.state_dict()

    def _after_blocks(self, images: Tensor, wanted: Sequence[int]) -> list[Tensor]:
        """(N, prefix + patches, C) after each block of ``wanted``, before the final norm: by hooks,
        since what is called ``hidden_states`` has passed that norm in some models and not in
        others."""
        found: dict[int, Tensor] = {}

        def keep(layer: int, output: Any) -> None:
            found[layer] = output[0] if isinstance(output, tuple) else output

        blocks = self.blocks
        hooks = [
            blocks[i].register_forward_hook(lambda _, __, out, i=i: keep(i, out)) for i in wanted
        ]
        try:
            self.vision(**self._inputs(images))
        finally:
            for hook in hooks:
                hook.remove()
        return [found[layer] for layer in wanted]

    def _inputs(self, images: Tensor) -> dict[str, Any]:
        known = inspect.signature(self.vision.forward).parameters
        if "spatial_shapes" in known:  # SigLIP 2 of any aspect ratio takes patches in rows
            patches = (
                nn.functional.pixel_unshuffle(images, self.patch).unflatten(1, (3, -1)).flatten(3)
            )
            grid = torch.tensor(
                [[side // self.patch for side in images.shape[-2:]]], device=images.device
            )
            rows = patches.permute(0, 3, 2, 1).flatten(2)
            mask = torch.ones(rows.shape[:2], dtype=torch.int64, device=images.device)
            return {
                "pixel_values": rows,
                "pixel_attention_mask": mask,
                "spatial_shapes": grid.expand(len(images), 2),
            }
        resized = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in known else {}
        return {"pixel_values": images, **resized}

    def _count_prefix(self) -> int:
        """How many tokens come before the patches: registers, and a class token or none."""
        self.model.eval()
        try:
            with torch.inference_mode():
                tokens = self._after_blocks(torch.zeros(1, 3, 4 * self.patch, 6 * self.patch), [0])[
                    0
                ]
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(
                f"{self.name!r} does not take images of any size ({first_line(error)}); {_ELSE}"
            ) from error
        prefix = tokens.shape[1] - 24 if tokens.ndim == 3 else -1
        if prefix - self.registers not in (0, 1):
            raise UserError(
                f"{self.name!r} gives {tuple(tokens.shape[1:])} for 24 patches: no patches with"
                f" {self.registers} registers and at most one class token; {_ELSE}"
            )
        return prefix


def has_stages(vision_config: Any) -> bool:
    """Whether it is a network of stages, not a plain ViT."""
    return hasattr(vision_config, "depths") or not hasattr(vision_config, "patch_size")


def settings_of(config: Any) -> dict[str, Any]:
    """What builds the architecture again: the config where it differs from its class's defaults,
    without where it came from."""
    told = json.loads(config.to_json_string(use_diff=True))
    return {key: value for key, value in told.items() if key not in _NO_SETTINGS} | {
        "model_type": config.model_type
    }


def build(request: Request) -> Backbone:
    """The builder of ``hf/REPO``; REPO is one of the hub's, or a local folder in the same layout.

    Settings understood: ``repo``, ``model_config`` (of ``settings_of``, in place of the
    repository's), ``layers``, ``size``, ``licence``.

    Raises:
        UserError: see ``backbones.create``.
    """
    settings, checkpoint = request.settings, request.checkpoint
    repo = settings.get("repo", request.name.removeprefix("hf/"))
    config = _config(repo, settings, request.name)
    vision = getattr(config, "vision_config", config)
    classes = MODEL_FOR_BACKBONE_MAPPING if has_stages(vision) else MODEL_MAPPING
    if has_stages(vision):
        config.out_indices = list(range(len(getattr(config, "stage_names", ()))))
    pretrained = checkpoint is None and not request.random
    try:
        # the library's own class, without AutoModel, which can run a repository's, or AutoBackbone,
        # which asks the network
        kind = cast(Any, classes[type(config)])
        if pretrained:
            file = _file(repo, _WEIGHTS, request.name)
            whole = file.suffix != ".json"  # an index says which shards are to be fetched
            model = kind.from_pretrained(
                repo, config=config, dtype=torch.float32, local_files_only=whole
            )
        else:
            model = kind(config)
    except UserError:
        raise
    except (ValueError, KeyError, OSError) as error:
        raise UserError(
            f"transformers has no image encoder for {request.name!r} ({first_line(error)}); {_ELSE}"
        ) from error
    if checkpoint is not None:
        check_architecture(checkpoint, f"hf/{config.model_type}", settings_of(config))
        fit_state(model, checkpoint.state, path=checkpoint.path, architecture=request.name)
    data = checkpoint.data if checkpoint and checkpoint.data else None
    layers = data.layers if data else tuple(settings.get("layers", ()))
    backbone = HfBackbone(model, config, name=request.name, repo=repo, layers=layers)
    backbone.data = data or _data(repo, vision, settings, backbone, needed=pretrained)
    backbone.weights = request.weights(
        backbone.model_state(), f"hf/{repo}", settings.get("licence", "unknown")
    )
    return backbone


def _file(repo: str, names: Sequence[str], backbone: str) -> Path:
    """The first of ``names`` that a local folder or a hub repository has. Raises ``UserError`` when
    there is none."""
    if not Path(repo).is_dir():
        return hub_file(repo, names, backbone=backbone)
    for name in names:
        if (path := Path(repo, name)).is_file():
            return path
    raise UserError(
        f"{repo} has no {names[0]} for {backbone!r}; save_pretrained of transformers writes it"
    )


def _config(repo: str, settings: Mapping[str, Any], backbone: str) -> Any:
    """The model's config, from the settings or the repository. Raises ``UserError`` where
    transformers does not know it."""
    told = settings.get("model_config") or json.loads(
        _file(repo, ("config.json",), backbone).read_text(encoding="utf-8")
    )
    try:
        return AutoConfig.for_model(
            **{key: value for key, value in told.items() if key not in _NO_SETTINGS}
        )
    except (ValueError, KeyError, TypeError) as error:
        own = (
            ", which needs its repository's own code (never run here)" if "auto_map" in told else ""
        )
        raise UserError(
            f"transformers does not know the model of {backbone!r}{own}: {first_line(error)};"
            f" {_ELSE}"
        ) from error


def _data(
    repo: str, vision: Any, settings: Mapping[str, Any], backbone: HfBackbone, needed: bool
) -> DataConfig:
    """The repository's own preprocessing, with the entry's settings over it. Random weights do
    without."""
    told: dict[str, Any] = {}
    with suppress(*(() if needed else (UserError,))):
        told = json.loads(
            _file(repo, ("preprocessor_config.json",), backbone.name).read_text(encoding="utf-8")
        )
    resize, crop = (told.get(key) or {} for key in ("size", "crop_size"))
    resize, crop = (
        {"height": each, "width": each} if isinstance(each, int) else each
        for each in (resize, crop)
    )
    side = getattr(vision, "image_size", 224)
    native = side if isinstance(side, list | tuple) else (side, side)
    cropped = bool(told.get("do_center_crop")) and "height" in crop
    shape = crop if cropped else resize
    edge = resize.get("shortest_edge") or resize.get("height") or native[0]
    size = (shape["height"], shape["width"]) if "height" in shape else (edge, edge)
    return DataConfig(
        size=tuple(settings.get("size", size)),
        mean=tuple(told.get("image_mean", IMAGENET_DEFAULT_MEAN)),
        std=tuple(told.get("image_std", IMAGENET_DEFAULT_STD)),
        interpolation="bilinear" if told.get("resample") == 2 else "bicubic",
        crop_pct=crop["height"] / edge if cropped else 1.0,
        squash=not cropped and "height" in resize,
        layers=backbone.layers,
    )
